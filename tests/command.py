"""The command as a user runs it: in a process of its own, from the sources under test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vsockdump import captures
from vsockdump.cli import main

VSOCKDUMP = [sys.executable, "-m", "vsockdump"]
ENVIRONMENT = {"TZ": "UTC", "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
SECONDS = 60
"""Patience with a command on a machine that is busy."""
ECHO = str(captures.path("echo-6.12.pcapng"))


@dataclass(frozen=True)
class Ran:
    """What became of a command."""

    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.out.decode().splitlines()


def environment() -> dict[str, str]:
    """Ours, with what output depends on set."""
    return os.environ | ENVIRONMENT


def run(*arguments: str | Path, stdin: bytes = b"", **more: Any) -> Ran:
    """Run vsockdump to its end; nothing it says may be a traceback."""
    done = subprocess.run(
        [*VSOCKDUMP, *map(str, arguments)],
        input=stdin,
        stdout=more.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=SECONDS,
        check=False,
        **more,
    )
    err = done.stderr.decode()
    assert "Traceback" not in err, err
    return Ran(done.returncode, done.stdout or b"", err)


def call(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, str]:
    """Run vsockdump in this process: status, output, complaints."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capfdbinary.readouterr()
    assert b"Traceback" not in err
    status = ended.value.code
    assert isinstance(status, int)
    return status, out, err.decode()


def start(*arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start vsockdump with pipes all round."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | streams
    return subprocess.Popen([*VSOCKDUMP, *map(str, arguments)], env=environment(), **pipes)
