"""tshark, capinfos and tcpdump, asked what they make of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SMALL_TALK = ('Running as user "root"', "reading from file ")
"""How lines on standard error start that are no complaints."""


def judge(name: str) -> str:
    """The path of a judge; without it the test is skipped, or fails where judges are a must."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def ask(name: str, *arguments: str | Path) -> str:
    """What a judge prints; a complaint of any kind fails the test."""
    command = [judge(name), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    complaints = [line for line in ran.stderr.splitlines() if not line.startswith(SMALL_TALK)]
    assert (ran.returncode, complaints) == (0, []), (command, ran.stderr)
    return ran.stdout
