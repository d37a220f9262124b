"""What reading the packet ring costs, beside tcpdump: CPU per packet, and packets lost.

A generator sends as fast as one processor can over a veth pair in a network namespace of its own;
tcpdump and LiveCapture with decode read from that device in turn, each with the same ring, for
several rounds. Run as root: ``python -m bench.live_ring``; the last column is the ratio of CPU to
tcpdump's, start-up of either left out (a reader counts from when it listens).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.generate import Traffic
from vsockdump.packets import decode
from vsockdump.sources.live import RING_BYTES, LiveCapture

CLONE_NEWNET = 0x40000000
DEVICE = "bench0"
ETHERNET = 1
MMSGHDR = np.dtype(
    {
        "names": ["iov", "iovlen"],
        "formats": ["u8", "u8"],
        "offsets": [16, 24],
        "itemsize": 64,
    }
)
"""``struct mmsghdr`` of a 64-bit machine, as far as it is filled here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Traffic to send: payload sizes, one in how many packets of a run, packets/s (0: all)."""

    sizes: tuple[int, ...]
    share: int = 1
    rate: int = 0


FRAMES = 4096
"""Different frames sent, again and again."""
BURST = 1024
"""Most messages that sendmmsg takes at once."""
KINDS = {
    "small": Kind(sizes=(8, 24, 64, 136)),
    # At full speed these are 30 Gbit/s, which nobody keeps up with; a vsock makes a tenth.
    "64K": Kind(sizes=(64 * 1024 - 200,), share=50, rate=5000),
}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of a reader: CPU seconds, packets it had, packets it lost."""

    cpu: float
    packets: int
    lost: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000, help="small packets a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read", choices=sorted(READERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        READERS[arguments.read]()
        return
    if os.geteuid() != 0 or shutil.which("tcpdump") is None:
        sys.exit("bench.live_ring wants root (for a network namespace) and tcpdump")
    make_device()
    print(f"{'frames':<7}{'reader':<12}{'CPU us/packet':>14}{'lost':>8}{'sent/s':>10}{'ratio':>7}")
    for name, kind in KINDS.items():
        compare(name, kind, arguments.packets // kind.share, arguments.rounds)


def compare(label: str, kind: Kind, count: int, rounds: int) -> None:
    """Run all readers ``rounds`` times in turn and print a line for each."""
    flood = Flood(kind)
    names = ["tcpdump", *READERS]
    results: dict[str, list[Result]] = {name: [] for name in names}
    rates = []
    for _ in range(rounds):
        for name in names:
            run = tcpdump if name == "tcpdump" else ours
            took = 0.0

            def send() -> None:
                nonlocal took
                begin = time.perf_counter()
                flood.send(count)
                took = time.perf_counter() - begin

            results[name].append(run(name, send))
            rates.append(count / took)
    costs = {
        name: 1e6 * statistics.median(r.cpu / max(r.packets, 1) for r in found)
        for name, found in results.items()
    }
    for name in names:
        lost = sum(r.lost for r in results[name])
        ratio = costs[name] / costs["tcpdump"]
        rate = statistics.median(rates)
        print(f"{label:<7}{name:<12}{costs[name]:>14.3f}{lost:>8}{rate:>10.0f}{ratio:>7.2f}")


def make_device() -> None:
    """A veth pair, up, in a namespace of this process and its children."""
    from pyroute2 import IPRoute

    if _libc.unshare(CLONE_NEWNET):
        sys.exit(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    with IPRoute() as netlink:
        far = f"{DEVICE}-far"
        netlink.link("add", ifname=DEVICE, kind="veth", peer={"ifname": far})
        # The end that sends comes up last: then it has a carrier at once.
        for name in (far, DEVICE):
            (index,) = netlink.link_lookup(ifname=name)
            netlink.link("set", index=index, state="up", mtu=65535)


class Flood:
    """Sends the same frames over and over, many to a system call."""

    def __init__(self, kind: Kind) -> None:
        few = FRAMES if max(kind.sizes) < 1 << 12 else FRAMES // 64
        (batch,) = Traffic(packets=few, connections=1, sizes=kind.sizes).batches()
        self._rate = kind.rate
        self._buf = batch.buf
        self._iov = np.empty((few, 2), np.uint64)
        self._iov[:, 0] = batch.buf.ctypes.data + batch.offset
        self._iov[:, 1] = batch.caplen
        self._messages = np.zeros(few, MMSGHDR)
        self._messages["iov"] = self._iov.ctypes.data + 16 * np.arange(few)
        self._messages["iovlen"] = 1
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((DEVICE, 0))

    def send(self, count: int) -> None:
        """Send ``count`` frames; every one is seen by who listens on the device."""
        fd, base = self._socket.fileno(), self._messages.ctypes.data
        place = done = 0
        begin = time.monotonic()
        while done < count:
            if self._rate:
                time.sleep(max(0.0, begin + done / self._rate - time.monotonic()))
            burst = min(BURST if not self._rate else 8, count - done, self._messages.size - place)
            sent = _libc.sendmmsg(fd, ctypes.c_void_p(base + place * MMSGHDR.itemsize), burst, 0)
            if sent < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            done += sent
            place = (place + sent) % self._messages.size


def tcpdump(name: str, send: Callable[[], None]) -> Result:
    """Have tcpdump write what is sent to nowhere."""
    ring = str(RING_BYTES // 1024)
    command = ["tcpdump", "-i", DEVICE, "-B", ring, "-Z", "root", "-w", "/dev/null"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "listening on" not in process.stderr.readline():
            pass
        send()
        # Its blocks are handed over within a second; an interrupt does not wait for that.
        time.sleep(1.3)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in said.splitlines() if line}
    packets = next(n for what, n in counts.items() if what.endswith("captured"))
    lost = next(n for what, n in counts.items() if what.endswith("dropped by kernel"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Result(cpu=cpu, packets=packets, lost=lost)


def ours(name: str, send: Callable[[], None]) -> Result:
    """Have a process of our own read what is sent."""
    command: Sequence[str] = [sys.executable, "-m", "bench.live_ring", "--read", name]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        send()
        process.send_signal(signal.SIGINT)
        return Result(**json.loads(process.stdout.read()))


def read(use: Callable[..., object]) -> None:
    """The reader's side of ``ours``: capture until interrupted, tell what it took."""
    capture = LiveCapture([DEVICE], hardware_types=(ETHERNET,))
    signal.signal(signal.SIGINT, lambda *_: capture.stop())
    print("listening", flush=True)
    begin = time.process_time()
    packets = 0
    for batch in capture.batches():
        if len(batch):
            packets += len(batch)
            use(batch)
    cpu = time.process_time() - begin
    lost = capture.statistics()[0].dropped
    capture.close()
    print(json.dumps({"cpu": cpu, "packets": packets, "lost": lost}))


READERS: dict[str, Callable[[], None]] = {
    "ring": lambda: read(lambda batch: None),
    "ring+decode": lambda: read(decode),
}

if __name__ == "__main__":
    main()
