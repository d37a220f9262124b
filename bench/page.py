"""The page that tells what was measured: its parts, each written by the command that measured it.

A part stands between two comments that name it, ``<!-- NAME: begin -->`` and
``<!-- NAME: end -->``; writing one leaves every other byte of the page as it was.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vsockdump import __version__

_TIMEOUT_S: Final = 60
PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"


def write_part(name: str, text: str, page: Path = PAGE) -> None:
    """Put ``text`` between the markers of part ``name``; ValueError unless they stand there."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    whole = page.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
        raise ValueError(f"{page} needs one {begin} and after it one {end}")
    head, tail = whole.split(begin)[0], whole.split(end)[1]
    page.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def measured_with(command: str, tools: Mapping[str, Sequence[str]]) -> str:
    """The sentence about machine and versions; ``tools`` as for `versions`."""
    return (
        f"Measured with `{command}` on {machine()}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, "
        + "; ".join([f"vsockdump {__version__}", *versions(tools)])
        + "."
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def versions(tools: Mapping[str, Sequence[str]]) -> list[str]:
    """The first line that each tool says of its version."""
    lines = []
    for name, command in tools.items():
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        text = (done.stdout + done.stderr).strip().splitlines()
        text = [line for line in text if "root" not in line]
        lines.append(f"{name}: {text[0] if text else 'unknown'}")
    return lines


def machine() -> str:
    """The processor and how many of it there are."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores of {model}"
