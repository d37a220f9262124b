"""Capturing tools run inside the VM: tcpdump as a judge, vsockdump as the one judged.

Both are started as a user would, waited for until they say that they listen, and ended with a
signal; both write to memory and say on their last lines how many packets they saw and lost.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from . import guard
from .agent import DEVICE, Context

START_SECONDS = 60
TCPDUMP_SETTLE = 1.3
"""tcpdump's ring hands a block over after a second at the latest, and an interrupt does not
wait for it."""

_COUNTS = re.compile(r"^(\d+) packets? (captured|received by filter|dropped by kernel)", re.M)


def counts(text: str) -> dict[str, int]:
    """The figures of a tool's closing lines: captured, received by filter, dropped by kernel."""
    return {name: int(number) for number, name in _COUNTS.findall(text)}


class Tool:
    """A capturing process: started on entry, ended by `signal` on exit.

    `settle` is how long to wait before that, so that nothing is left in the tool's ring.
    """

    def __init__(
        self,
        context: Context,
        words: Sequence[str],
        name: str,
        *,
        settle: float = 0.0,
        end: signal.Signals = signal.SIGINT,
        environment: dict[str, str] | None = None,
    ) -> None:
        guard.require_test_vm()
        self.words = list(words)
        self.context = context
        self.settle = settle
        self.end = end
        self.environment = environment
        self.said = context.work / f"{name}.err"
        self.out = context.work / f"{name}.out"
        self.name = name
        self.process: subprocess.Popen[bytes]

    def text(self) -> str:
        """What the tool said on its standard error so far."""
        return self.said.read_text(encoding="utf-8", errors="replace")

    def shown(self, file: str) -> str:
        """The command as a user would type it, writing to `file`."""
        words = [file if word.endswith(f"/{file}") else Path(word).name for word in self.words]
        return " ".join(words)

    def start(self) -> Tool:
        """Start the tool and wait until it listens."""
        with self.said.open("wb") as said, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                env=self.environment,
            )
        until = time.monotonic() + START_SECONDS
        while "listening on" not in self.text():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at once: {self.text()}")
            if time.monotonic() > until:
                self.process.kill()
                raise TimeoutError(f"{self.name} does not listen: {self.text()}")
            time.sleep(0.02)
        return self

    def stop(self) -> int:
        """End the tool and return its status."""
        time.sleep(self.settle)
        if self.process.poll() is None:
            self.process.send_signal(self.end)
        try:
            status = self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self.context.keep(self.said.name, self.out.name)
        return status

    def __enter__(self) -> Tool:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.process.kill()
            self.process.wait()
            return
        status = self.stop()
        if status != 0:
            raise RuntimeError(f"{self.name} ended with status {status}: {self.text()}")


def tcpdump_words(file: Path, *, snaplen: int = 0, device: str = DEVICE) -> list[str]:
    """The command line of a tcpdump that writes nanoseconds to `file`; snaplen 0 is everything."""
    words = ["tcpdump", "-i", device, "--time-stamp-precision=nano", "-B", "32768", "-Z", "root"]
    return [*words, *(["-s", str(snaplen)] if snaplen else []), "-w", str(file)]


def tcpdump(context: Context, file: str = "tcpdump.pcap", *, snaplen: int = 0) -> Tool:
    """A tcpdump beside us, writing to `file` in the work folder."""
    words = tcpdump_words(context.work / file, snaplen=snaplen)
    return Tool(context, words, "tcpdump", settle=TCPDUMP_SETTLE)
