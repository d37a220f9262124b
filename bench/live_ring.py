"""What reading the packet ring costs, beside its peers: CPU per packet, packets lost, memory.

A generator sends over a veth pair in a network namespace of its own; tcpdump, dumpcap, scapy and
LiveCapture read from that device in turn, each with the same room, for several rounds. Run as root:
``python -m bench.live_ring``; with --write the table goes into docs/performance.md. A reader's CPU
counts from when it listens until it waits for more, so start and end are left out. Lost is what was
sent and not had, whatever the reader says of it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.generate import Traffic
from bench.page import measured_with, table, write_part
from bench.race import Broken
from tests.vm import cost
from vsockdump.packets import decode
from vsockdump.sources.live import RING_BYTES, LiveCapture

CLONE_NEWNET = 0x40000000
DEVICE = "bench0"
ETHERNET = 1
SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
LISTENING = "listening"
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
    """Traffic to send: payload sizes, one in how many packets of a run, packets/s (0: all).

    ``readers`` take turns at it, tcpdump first; ``aim`` is the most CPU it may cost us beside
    tcpdump, losing nothing.
    """

    sizes: tuple[int, ...]
    readers: tuple[str, ...]
    share: int = 1
    rate: int = 0
    aim: float | None = None


FRAMES = 4096
"""Different frames sent, again and again."""
BURST = 1024
"""Most messages that sendmmsg takes at once."""
OURS = ("ring", "ring+decode")
_SMALL = (8, 24, 64, 136)
KINDS = {
    "small": Kind(sizes=_SMALL, readers=("tcpdump", "dumpcap", *OURS), aim=2.5),
    # scapy keeps up with so many, and not with many more.
    "small, slow": Kind(sizes=_SMALL, readers=("tcpdump", "scapy", *OURS), share=50, rate=10_000),
    # At full speed these are 30 Gbit/s, which nobody keeps up with; a vsock makes a tenth.
    "64K": Kind(sizes=(64 * 1024 - 200,), readers=("tcpdump", *OURS), share=50, rate=5000),
}
MEMORY_AIM = 48
"""MiB that a live capture may take, with a ring of 8."""
SETTLE = 1.3
"""Seconds after which a reader has all that was sent: blocks are handed over within one."""
HEADS = (
    *("frames", "reader", "sent/s", "had", "lost", "CPU us/packet"),
    *("against tcpdump (least - most)", "aim", "met", "MiB"),
)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of a reader: CPU seconds, packets had and sent, sent/s, peak memory in MiB."""

    cpu: float
    packets: int
    sent: int
    rate: float
    memory: float

    @property
    def lost(self) -> int:
        """Packets sent that the reader did not have."""
        return self.sent - self.packets

    @property
    def each(self) -> float:
        """CPU microseconds for each packet had."""
        return 1e6 * self.cpu / max(self.packets, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How to run a reader: what it says when it listens, and of how many packets it had."""

    command: Sequence[str]
    listening: str
    had: re.Pattern[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000, help="small packets a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    parser.add_argument("--read", choices=sorted(READING), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        READING[arguments.read]()
        return
    if os.geteuid() != 0 or shutil.which("tcpdump") is None:
        sys.exit("bench.live_ring wants root (for a network namespace) and tcpdump")
    make_device()
    absent = lacking()
    rows: list[list[object]] = []
    for name, kind in KINDS.items():
        rows += compare(name, kind, absent, arguments.packets // kind.share, arguments.rounds)
    command = f"python -m bench.live_ring --packets {arguments.packets}"
    text = report(rows, f"{command} --rounds {arguments.rounds}", absent)
    print(text)
    if arguments.write:
        write_part("live", text)


def lacking() -> list[str]:
    """Peers that are not installed; the race is run without them."""
    absent = [] if shutil.which("dumpcap") else ["dumpcap"]
    return absent if find_spec("scapy") else [*absent, "scapy"]


def report(rows: list[list[object]], command: str, absent: Sequence[str]) -> str:
    """The table and what it was measured with."""
    tools = {
        "tcpdump": ("tcpdump", "--version"),
        "dumpcap": ("dumpcap", "--version"),
        "scapy": (sys.executable, "-c", "import scapy; print(scapy.__version__)"),
    }
    about = [
        measured_with(command, {name: how for name, how in tools.items() if name not in absent}),
        "Medians of alternating runs, packets had and lost in all of them, peak memory; met is the "
        f"aim, with nothing lost, in at most {MEMORY_AIM} MiB. Load of the machine at the end: "
        f"{os.getloadavg()[0]:.1f}.",
        *(f"{name} is not installed and was left out." for name in absent),
    ]
    return "\n".join([*about, "", table(HEADS, rows)])


def compare(
    label: str, kind: Kind, absent: Sequence[str], count: int, rounds: int
) -> list[list[object]]:
    """Run the readers ``rounds`` times in turn; the table's lines."""
    flood = Flood(kind)
    names = [name for name in kind.readers if name not in absent]
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(run(name, flood, count))
    rows: list[list[object]] = []
    for name, found in results.items():
        pairs = zip(found, results["tcpdump"], strict=True)
        ratios = sorted(ours.each / peer.each for ours, peer in pairs)
        ratio = statistics.median(ratios)
        lost, memory = sum(r.lost for r in found), max(r.memory for r in found)
        row: list[object] = [
            label,
            name,
            f"{statistics.median(r.rate for r in found):.0f}",
            sum(r.packets for r in found),
            lost,
            f"{statistics.median(r.each for r in found):.3f}",
            f"{ratio:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})",
        ]
        if name in OURS and kind.aim is not None:
            met = ratio <= kind.aim and not lost and memory <= MEMORY_AIM
            row += [kind.aim, "yes" if met else "**no**"]
        else:
            row += ["", ""]
        rows.append([*row, f"{memory:.0f}"])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return rows


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


def run(name: str, flood: Flood, count: int) -> Result:
    """Have a reader read ``count`` packets; Broken if it fails, or had more than were sent."""
    reader = READERS[name]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        reader.command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        said = ""
        while reader.listening not in said:
            line = process.stderr.readline()
            if not line:
                raise Broken(f"{name} does not listen: {said}")
            said += line
        cpu = cost.cpu_seconds(process.pid)
        begin = time.perf_counter()
        flood.send(count)
        took = time.perf_counter() - begin
        time.sleep(SETTLE)
        cpu = cost.cpu_seconds(process.pid) - cpu
        memory = cost.peak_mib(process.pid)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    found = reader.had.search(said)
    if process.returncode or found is None or int(found[1]) > count:
        raise Broken(f"{name}: status {process.returncode}: {said}")
    return Result(cpu=cpu, packets=int(found[1]), sent=count, rate=count / took, memory=memory)


def read(use: Callable[..., object]) -> None:
    """A reader of our own: capture until interrupted, tell how many packets that were."""
    capture = LiveCapture([DEVICE], hardware_types=(ETHERNET,))
    signal.signal(signal.SIGINT, lambda *_: capture.stop())
    print(LISTENING, file=sys.stderr, flush=True)
    packets = 0
    for batch in capture.batches():
        if len(batch):
            packets += len(batch)
            use(batch)
    capture.close()
    print(f"{packets} packets captured", file=sys.stderr)


def read_with_scapy() -> None:
    """scapy's sniff() with nothing to do for a packet; it takes these for Ethernet frames."""
    from scapy.config import conf
    from scapy.sendrecv import sniff

    listening = conf.L2listen(iface=DEVICE)
    packets = listening.ins
    # The kernel counts twice what is asked for; who is root is not held to the system's limit.
    packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RING_BYTES // 2)
    sniff(
        opened_socket=listening,
        store=False,
        prn=None,
        started_callback=lambda: print(LISTENING, file=sys.stderr, flush=True),
    )
    # struct tpacket_stats: all packets, and those of them that found no room.
    seen, dropped = struct.unpack("II", packets.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(f"{seen - dropped} packets captured", file=sys.stderr)


READING: dict[str, Callable[[], None]] = {
    "ring": lambda: read(lambda batch: None),
    "ring+decode": lambda: read(decode),
    "scapy": read_with_scapy,
}
_CAPTURED = re.compile(r"^(\d+) packets? captured", re.M)
_RING_KIB = RING_BYTES // 1024
READERS = {
    "tcpdump": Reader(
        command=("tcpdump", "-i", DEVICE, "-B", str(_RING_KIB), "-Z", "root", "-w", "/dev/null"),
        listening="listening on",
        had=_CAPTURED,
    ),
    "dumpcap": Reader(
        command=("dumpcap", "-q", "-i", DEVICE, "-B", str(_RING_KIB // 1024), "-w", "/dev/null"),
        listening="File: ",
        had=re.compile(r"^Packets captured: (\d+)", re.M),
    ),
    **{
        name: Reader(
            command=(sys.executable, "-m", "bench.live_ring", "--read", name),
            listening=LISTENING,
            had=_CAPTURED,
        )
        for name in READING
    },
}

if __name__ == "__main__":
    main()
