"""Runs vsockdump's command lines in forked copies of one process; inside the test VM.

A Python start takes seconds on an emulated processor, and there are dozens of command lines to
try. A fork has everything loaded and is still a process of its own: its user, its standard
streams, the signals it gets and its exit status are real. What only a start from nothing can show
(what is loaded when) is for the captures that are made without this.

Invariant: when a fork is made, this process holds no open file or socket of its own but by number,
so that closing everything in the child takes nothing from an object that lives on there.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from . import guard

SECONDS = 60
NOBODY = 65534
_LATE = ("pyroute2", "lark", "difflib")
"""What vsockdump loads only when a command needs it."""
_OPTIONAL = ("vsockdump.dissectors", "vsockdump.captures", "vsockdump.wireshark")


class Forked:
    """A forked process with the part of subprocess.Popen's face that is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the end; subprocess.TimeoutExpired when it does not come."""
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without regard."""
        self.send_signal(signal.SIGKILL)


@cache
def _loaded_main() -> Any:
    """vsockdump's entry point, with every module of the package loaded."""
    package = import_module("vsockdump")
    for found in pkgutil.walk_packages(package.__path__, "vsockdump."):
        if not found.name.startswith(_OPTIONAL) and not found.name.endswith("__main__"):
            import_module(found.name)
    for name in _LATE:
        import_module(name)
    return import_module("vsockdump.cli").main


def start(words: list[str], out: int, err: int, user: int | None = None) -> Forked:
    """Fork a `vsockdump WORDS` that prints to these file descriptors, as `user` if one is given."""
    guard.require_test_vm()
    main = _loaded_main()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Forked(pid)
    try:
        _be(main, words, out, err, user)
    finally:
        os._exit(70)


def _be(main: Any, words: list[str], out: int, err: int, user: int | None) -> NoReturn:
    """In the fork: be that command until it exits."""
    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 1024)
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        sys.argv = ["vsockdump", *words]
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself does before it exits
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Spawner:
    """Runs command lines that end by themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, user: int | None = None) -> dict[str, Any]:
        """Run `vsockdump WORDS`; its words, status and what it said on both streams.

        What does not end by itself is ended: the status then is that of SIGKILL.
        """
        paths = [self.folder / name for name in ("out", "err")]
        ends = [os.open(x, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for x in paths]
        process = start(list(words), ends[0], ends[1], user)
        for end in ends:
            os.close(end)
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait(SECONDS)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
        return {"words": list(words), "status": status, "out": out, "err": err}
