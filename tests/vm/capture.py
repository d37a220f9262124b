"""Capturing tools run inside the VM: tcpdump as a judge, vsockdump as the one judged.

Both are started as a user would, waited for until they say that they listen, and ended with a
signal; both write to memory and say on their last lines how many packets they saw and lost.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from . import guard, spawn
from .agent import DEVICE, Context

START_SECONDS = 120
"""Bound on a start: a dozen Pythons starting together on an emulated processor take long."""
TCPDUMP_SETTLE = 1.3
"""tcpdump's ring hands a block over after a second at the latest, and an interrupt does not
wait for it."""
RING_KIB = 32768
"""Ring of a capture that is to lose nothing on a machine as slow as may be."""
SNIFFER_BUFFER = 64 << 20
"""Bytes of the socket buffer of scapy's sniff()."""
VSOCKDUMP = Path(sys.executable).with_name("vsockdump")

_COUNTS = re.compile(r"^(\d+) packets? (captured|received by filter|dropped by kernel)", re.M)


def counts(text: str) -> dict[str, int]:
    """The figures of a tool's closing lines: captured, received by filter, dropped by kernel."""
    return {name: int(number) for number, name in _COUNTS.findall(text)}


def _listens(pid: int) -> bool:
    """Whether a process has a running packet socket, by the kernel's own list of them."""
    lines = Path("/proc/net/packet").read_text(encoding="ascii").splitlines()[1:]
    # Its columns: address, references, type, protocol, device, running, memory, user, inode.
    running = {f"socket:[{words[8]}]" for words in map(str.split, lines) if words[5] == "1"}
    try:
        return any(str(x.readlink()) in running for x in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # it has ended, or closed one of them meanwhile
        return False


class Tool:
    """A capturing process: listening when entered, ended by the signal `end` when left.

    `settle` is how long to wait before that, so that nothing is left in the tool's ring; `out`
    is where its standard output goes (by default a file that is kept, NAME.out; its standard
    error is kept as NAME.err); `user` is whose process it is; a `forked` vsockdump is not started
    from nothing (see spawn.py).
    """

    def __init__(
        self,
        context: Context,
        words: Sequence[str],
        name: str,
        *,
        settle: float = 0.0,
        end: signal.Signals | None = signal.SIGINT,
        out: int | None = None,
        user: int | None = None,
        forked: bool = False,
    ) -> None:
        guard.require_test_vm()
        self.words = list(words)
        self.context = context
        self.name = name
        self.settle = settle
        self.end = end
        self.said = context.results / f"{name}.err"
        self._out = out
        self._user = user
        self.forked = forked
        self.process: subprocess.Popen[bytes] | spawn.Forked

    def text(self) -> str:
        """What the tool said on its standard error so far."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    def shown(self, file: str) -> str:
        """The command as a user would type it, writing to `file`."""
        words = [file if word.endswith(f"/{file}") else Path(word).name for word in self.words]
        return " ".join(words)

    def launch(self) -> None:
        """Start the tool."""
        with (
            self.said.open("wb") as said,
            (self.context.results / f"{self.name}.out").open("wb") as file,
        ):
            out = file.fileno() if self._out is None else self._out
            if self.forked:
                self.process = spawn.start(self.words[1:], out, said.fileno(), self._user)
                return
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )

    def wait_until_listening(self) -> None:
        """Wait until the tool has a packet socket that is bound to a device."""
        until = time.monotonic() + START_SECONDS
        while not _listens(self.process.pid):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at once: {self.text()}")
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"{self.name} does not listen: {self.text()}")
            time.sleep(0.05)

    def stop(self) -> int:
        """End the tool, or wait for its own end; its status."""
        time.sleep(self.settle)
        if self.end is not None and self.process.poll() is None:
            self.process.send_signal(self.end)
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End the tool without regard."""
        self.process.kill()
        self.process.wait(START_SECONDS)

    def story(self) -> dict[str, Any]:
        """What was run and how it ended; for the results."""
        words = [Path(word).name if "/" in word else word for word in self.words]
        return {
            "command": " ".join(words),
            "status": self.process.returncode,
            "counts": counts(self.text()),
        }

    def __enter__(self) -> Tool:
        self.launch()
        self.wait_until_listening()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
            return
        status = self.stop()
        if status != 0:
            raise RuntimeError(f"{self.name} ended with status {status}: {self.text()}")


@contextmanager
def together(tools: Sequence[Tool]) -> Iterator[None]:
    """All of these tools side by side; none is left when the block ends with an error.

    What starts from nothing starts first: it takes longest where others already capture.
    """
    try:
        for forked in (False, True):
            for tool in tools:
                if tool.forked == forked:
                    tool.launch()
            for tool in tools:
                if tool.forked == forked:
                    tool.wait_until_listening()
        yield
    except BaseException:
        for tool in tools:
            if hasattr(tool, "process"):
                tool.kill()
        raise


def tcpdump(
    context: Context, file: str = "tcpdump.pcap", *, snaplen: int = 0, ring_kib: int = RING_KIB
) -> Tool:
    """A tcpdump beside us, writing nanoseconds to `file` in the work folder; snaplen 0: all."""
    words = [
        "tcpdump",
        "-i",
        DEVICE,
        "--time-stamp-precision=nano",
        "-B",
        str(ring_kib),
        "-Z",
        "root",
    ]
    words += ["-s", str(snaplen)] if snaplen else []
    words += ["-w", str(context.work / file)]
    return Tool(context, words, "tcpdump", settle=TCPDUMP_SETTLE)


def vsockdump(context: Context, *words: str, name: str = "vsockdump", **more: Any) -> Tool:
    """Our tool with these options, on the VM's device; forked (spawn.py) unless asked otherwise."""
    more = {"forked": True} | more
    return Tool(context, [str(VSOCKDUMP), "-i", DEVICE, *words], name, **more)


def writing(context: Context, file: str, *words: str, **more: Any) -> Tool:
    """Our tool, writing to `file` in the work folder; it is named after the file."""
    return vsockdump(context, *words, "-w", str(context.work / file), name=Path(file).stem, **more)
