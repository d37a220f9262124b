"""Scenarios that run vsockdump on the VM's device, beside tcpdump; inside the test VM.

Each writes down what was run and how it ended; what that should have been is for the tests on the
other side to say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import capture, kernel_suite, nested, spawn, traffic
from .agent import DEVICE, Context, add_device, command, remove_device
from .peers import wait_for_quiet
from .truth import Truth

SECOND = "vsockmon1"
MAKERS: dict[str, Callable[[], Truth]] = {
    "echo": traffic.echo,
    "refused": traffic.refused,
    "slow_reader": traffic.slow_reader,
    "never_reads": traffic.never_reads,
    "small_sender": traffic.small_sender,
    "small_receiver": traffic.small_receiver,
    "seqpacket": traffic.seqpacket,
    "seqpacket_bulk": traffic.seqpacket_bulk,
    "half_close": traffic.half_close,
    "many_connections": traffic.many_connections,
    "tiny_flood": traffic.tiny_flood,
    "reused_pair": traffic.reused_pair,
    "dying_server": traffic.dying_server,
    "to_host_cid": traffic.to_host_cid,
}
"""The traffic of the scenario `traffic`, in order."""
WAYS_SIZES = (6, 1, 100, 1000, 5000, 70_000)
LARGE_RING_KIB = 131072
"""Ring of a capture that is to lose nothing of a burst: room for all of it, and then blocks enough
for several seconds in which the emulated processor is elsewhere."""
LIMIT = 7
"""How many packets the capture with -c asks for."""
SNAPLEN = 100


def _beside_tcpdump(
    context: Context, make: Callable[[], Any], *options: str, forked: bool = True
) -> None:
    """Capture what `make` makes with both tools, and keep everything."""
    wait_for_quiet()
    options = ("-B", str(LARGE_RING_KIB), *options)
    # As large a ring as tcpdump is given: the VM's processors are few and emulated.
    ring = ("-B", str(capture.RING_KIB))
    ours = capture.writing(context, "vsockdump.pcapng", *ring, *options, forked=forked)
    judge = capture.tcpdump(context)
    with capture.together([judge, ours]):
        truth = make()
        # Else a late RST comes between the one's end and the other's.
        wait_for_quiet()
        statuses = [ours.stop(), judge.stop()]
    if any(statuses):
        raise RuntimeError(f"statuses {statuses}: {ours.text()} {judge.text()}")
    context.keep("vsockdump.pcapng", "tcpdump.pcap")
    context.write("truth.json", truth)
    context.write("tools.json", {tool.name: tool.story() for tool in (ours, judge)})


def loopback_traffic(context: Context) -> None:
    """Every kind of traffic on loopback, one after the other, in one capture."""
    _beside_tcpdump(
        context, lambda: {name: make().as_json() for name, make in MAKERS.items()}, forked=False
    )


def host_and_guest(context: Context) -> None:
    """Traffic with a real guest."""
    _beside_tcpdump(context, lambda: {"host_and_guest": nested.converse(context).as_json()})


def suite_tests(context: Context) -> None:
    """The kernel's own tests, all of them."""

    def run() -> dict[str, Any]:
        return {
            "vsock_test": kernel_suite.run_pair(context, "vsock_test"),
            "vsock_diag_test": kernel_suite.run_pair(
                context, "vsock_diag_test", kernel_suite.DIAG_SKIPPED
            ),
        }

    _beside_tcpdump(context, run)


def suite_perf(context: Context) -> None:
    """vsock_perf at full rate, captured whole."""
    _beside_tcpdump(context, lambda: kernel_suite.perf(context))


class _Reader:
    """A pipe from a tool, of which only the beginning is read before it is closed."""

    def __init__(self) -> None:
        self.end, self.write = os.pipe()
        self.data = b""

    def read_some(self) -> None:
        """Read what comes first, then close the pipe."""
        os.close(self.write)
        self.data = os.read(self.end, 4096)
        os.close(self.end)


def ways(context: Context) -> None:
    """Captures of the same traffic that are set up and ended in every way there is."""
    wait_for_quiet()
    private = context.work / "private"
    private.mkdir(mode=0o700)
    os.chown(private, spawn.NOBODY, spawn.NOBODY)
    context.work.chmod(0o755)
    text_pipe, write_pipe = _Reader(), _Reader()
    sniffer = [sys.executable, "-m", "tests.vm.sniffer", DEVICE, str(context.work / "sniffed.json")]
    ring = ("-B", str(capture.RING_KIB))

    def writing(file: str, *words: str, **more: Any) -> capture.Tool:
        return capture.writing(context, file, *ring, *words, **more)

    tools = {
        tool.name: tool
        for tool in (
            capture.tcpdump(context),
            writing("interrupted.pcapng"),
            writing("terminated.pcap", "--format", "pcap", end=signal.SIGTERM),
            writing("counted.pcapng", "-c", str(LIMIT), end=None),
            writing("snapped.pcapng", "-s", str(SNAPLEN)),
            writing("private/user.pcapng", "-Z", "nobody", forked=False),
            writing("unbuffered.pcapng", "-U"),
            writing("several.pcapng", "-i", SECOND, "--create", "--immediate-mode"),
            capture.vsockdump(context, *ring, "--json", name="json"),
            capture.vsockdump(context, "-l", name="text", out=text_pipe.write, end=None),
            capture.vsockdump(context, "-w", "-", name="piped", out=write_pipe.write, end=None),
            capture.Tool(context, sniffer, "sniffer", settle=1.0),
        )
    }
    # scapy's socket has to hold what comes while it dissects.
    Path("/proc/sys/net/core/rmem_max").write_text(str(capture.SNIFFER_BUFFER))
    devices = [_devices()]
    with capture.together(list(tools.values())):
        devices.append(_devices())
        truth = traffic.echo(WAYS_SIZES)
        time.sleep(1.0)
        shutil.copyfile(context.work / "unbuffered.pcapng", context.work / "early.pcapng")
        text_pipe.read_some()
        write_pipe.read_some()
        # Whoever reads has gone: the two find out when they next write.
        more = traffic.echo(WAYS_SIZES)
        for tool in tools.values():
            tool.stop()
    devices.append(_devices())
    for file in private.iterdir():
        file.rename(context.work / file.name)
    context.keep(*(path.name for path in context.work.iterdir() if path.is_file()))
    (context.results / "text-head.txt").write_bytes(text_pipe.data)
    (context.results / "piped-head.pcapng").write_bytes(write_pipe.data)
    context.write("devices.json", {"before": devices[0], "during": devices[1], "after": devices[2]})
    context.write("truth.json", {"before": truth.as_json(), "after": more.as_json()})
    context.write("tools.json", {name: tool.story() for name, tool in tools.items()})


def _devices() -> list[str]:
    """The vsockmon devices there are."""
    lines = command("ip", "-o", "link", "show", "type", "vsockmon").splitlines()
    return sorted(line.split(":")[1].strip() for line in lines)


def failures(context: Context) -> None:
    """Everything that cannot work, and every use of `device`; one story each, by name."""
    _open_python()
    run = spawn.Spawner(context.work).run
    file = str(context.work / "never.pcapng")
    stories: dict[str, Any] = {
        "list": run("-D"),
        "device-list": run("device", "list", "--json"),
        "doctor": run("device", "doctor", "--json"),
        "doctor-text": run("device", "doctor"),
        "no-such-device": run("-i", "nosuch0", "-w", file),
        "another-kind": run("-i", "lo", "-w", file),
        "one-of-two": run("-i", DEVICE, "-i", "nosuch0", "-w", file),
        "twice": run("-i", DEVICE, "-i", DEVICE),
        "create-another-kind": run("-i", "lo", "--create"),
        "not-root": run("-i", DEVICE, user=spawn.NOBODY),
        "not-root-create": run("-i", SECOND, "--create", user=spawn.NOBODY),
        "no-such-user": run("-i", DEVICE, "-Z", "nosuchuser", "-w", file),
        "no-such-folder": run("-i", DEVICE, "-w", str(context.work / "no/such/file")),
        "huge-ring": run("-i", DEVICE, "-B", str(64 << 20)),
        "bad-filter": run("-i", DEVICE, "port", "seventeen"),
        "exists": run("device", "create", DEVICE),
        "delete-another-kind": run("device", "delete", "lo"),
        "delete-missing": run("device", "delete", "nosuch0"),
        "bad-name": run("device", "create", "a-name-that-is-far-too-long"),
        "not-root-device": run("device", "create", SECOND, user=spawn.NOBODY),
        "doctor-not-root": run("device", "doctor", user=spawn.NOBODY),
    }
    stories["created"] = run("device", "create", SECOND)
    stories["two-devices"] = run("device", "list", "--json")
    stories["doctor-two"] = run("device", "doctor")
    stories["deleted"] = run("device", "delete", SECOND)
    command("ip", "link", "set", DEVICE, "down")
    stories["down"] = run("-i", DEVICE)
    stories["doctor-down"] = run("device", "doctor")
    remove_device()
    stories["doctor-none"] = run("device", "doctor")
    stories["list-none"] = run("device", "list")
    stories["no-device"] = run("-i", DEVICE)
    with _no_module():
        stories["no-module"] = run("device", "create")
        stories["no-module-create"] = run("-i", DEVICE, "--create")
        stories["doctor-no-module"] = run("device", "doctor")
    stories["created-again"] = run("device", "create")
    context.write("stories.json", {**stories, "never-written": Path(file).exists()})
    context.write("devices.json", _devices())


@contextmanager
def _no_module() -> Iterator[None]:
    """While entered, there is no module for this kernel to load."""
    command("modprobe", "-r", "vsockmon")
    folder = str(Path(f"/lib/modules/{os.uname().release}").resolve())
    # The kernel asks for modules in the root of process 1, tools in ours.
    roots: tuple[tuple[str, ...], ...] = ((), ("chroot", "/proc/1/root"))
    for root in roots:
        command(*root, "mount", "-t", "tmpfs", "tmpfs", folder)
    try:
        yield
    finally:
        for root in roots:
            command(*root, "umount", folder)


def _open_python() -> None:
    """Let every user run this Python, wherever it stands; this root is a layer in memory."""
    for path in (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), capture.VSOCKDUMP):
        for folder in {*path.resolve().parents, *path.parents}:
            folder.chmod(folder.stat().st_mode | 0o555)


def unprivileged(context: Context) -> None:
    """What doctor tells an ordinary user to have done, done, and then a capture by that user."""
    _open_python()
    folder = context.work / "open"
    folder.mkdir()
    os.chown(folder, spawn.NOBODY, spawn.NOBODY)
    context.work.chmod(0o755)
    as_nobody: dict[str, Any] = {"user": spawn.NOBODY, "group": spawn.NOBODY, "extra_groups": []}
    doctor = [str(capture.VSOCKDUMP), "device", "doctor"]
    before = subprocess.run(doctor, capture_output=True, text=True, **as_nobody)
    advice = next(x for x in before.stdout.splitlines() if "setcap " in x)
    line = advice[advice.index("setcap ") :].split(" (")[0]
    command("sh", "-c", line)
    after = subprocess.run(doctor, capture_output=True, text=True, **as_nobody)
    file = folder / "unprivileged.pcapng"
    words = [str(capture.VSOCKDUMP), "-i", SECOND, "--create", "-w", str(file)]
    tool = capture.Tool(context, words, "unprivileged", user=spawn.NOBODY)
    remove_device()
    try:
        with tool:
            truth = traffic.echo((6, 100))
    finally:
        add_device()
    shutil.copyfile(file, context.results / file.name)
    context.write("doctor.json", {"before": before.stdout, "after": after.stdout, "line": line})
    context.write("owner.json", [file.stat().st_uid, _devices()])
    context.write("truth.json", truth.as_json())
    context.write("tools.json", {tool.name: tool.story()})


SCENARIOS: dict[str, Callable[[Context], None]] = {
    "traffic": loopback_traffic,
    "ways": ways,
    "host-and-guest": host_and_guest,
}
"""Carried out on every kernel."""
SUITE_SCENARIOS: dict[str, Callable[[Context], None]] = {
    "suite": suite_tests,
    "perf": suite_perf,
}
"""Carried out on the kernel that the suite's source belongs to."""
LAST_SCENARIOS: dict[str, Callable[[Context], None]] = {
    "failures": failures,
    "unprivileged": unprivileged,
}
"""Carried out on every kernel after all else, in this order: they change the machine."""
