"""What is imported, and when: a start is nearly all imports.

No clock is looked at. Held are the modules that a command does not load, and that nothing is loaded
once a ring fills or privileges are gone.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from command import ECHO, environment

SECONDS = 60

AT_THE_END = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
"""
HEAVY = frozenset(
    {
        "numpy",
        "numpy.ma",
        "lark",
        "isal",
        "zstandard",
        "secrets",
        "pyroute2",
        "scapy",
        "dpkt",
        "pyshark",
        "subprocess",
        "importlib.metadata",
        "vsockdump.filters",
        "vsockdump.filters.lower",
        "vsockdump.tracking.tracker",
        "vsockdump.tracking.detect",
        "vsockdump.sources.live",
        "vsockdump.sinks.savefile",
        "vsockdump.sinks.jsonlines",
        "vsockdump.sinks.text",
    }
)
"""Modules that take long, or take others along that do."""
READING = frozenset({"numpy", "vsockdump.tracking.tracker"})
PRINTING = READING | {"vsockdump.sinks.text"}
FILTERING = PRINTING | {"lark", "vsockdump.filters"}


def ran(code: str, *arguments: str) -> str:
    """What Python says on standard error about running this."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        env=environment(),
        timeout=SECONDS,
        check=False,
    )
    said = done.stderr.decode()
    assert "Traceback" not in said, said
    return said


def loaded(code: str, *arguments: str) -> frozenset[str]:
    """All modules that are loaded when this code has run."""
    return frozenset(ran(AT_THE_END + code, *arguments).splitlines()[-1].split())


@cache
def unavoidable() -> frozenset[str]:
    """What the libraries load that nothing goes without, in the versions at hand."""
    return loaded("import click, numpy") - {"numpy"} | loaded("import click, lark") - {"lark"}


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("--version", frozenset()),
        ("--help", frozenset()),
        *((f"{name} --help", frozenset()) for name in ("conns", "credit", "check", "device")),
        ("-r FILE", PRINTING),
        ("-vvvXXenn# -r FILE", PRINTING),
        ("--count -r FILE", {"numpy"}),
        ("--json -r FILE", READING | {"vsockdump.sinks.jsonlines"}),
        ("-r FILE port 1024 or cid in {2, 3}", FILTERING),
        ("-r FILE stalled or finding refused", FILTERING | {"vsockdump.tracking.detect"}),
        ("conns --json FILE", READING),
        ("check FILE", READING | {"vsockdump.tracking.detect"}),
        ("conns FILE", READING),
        ("credit FILE", READING),
    ],
)
def test_a_command_loads_what_it_needs(line: str, allowed: frozenset[str]) -> None:
    words = [ECHO if word == "FILE" else word for word in line.split()]
    modules = loaded("from vsockdump.cli import main; main(sys.argv[1:])", *words)
    assert modules & HEAVY - unavoidable() == allowed - unavoidable()


def test_every_heavy_module_exists() -> None:
    """A name that is wrong would hold nothing."""
    code = "import sys; from importlib.util import find_spec; print([*map(find_spec, sys.argv[1:])]"
    assert "None" not in ran(code + ", file=sys.stderr)", *sorted(HEAVY))


LATE = """
import sys
from vsockdump import privileges
from vsockdump.cli import main
from vsockdump.sources import live, savefile

modules = set()
def drop(user):
    modules.update(sys.modules)

class Capture(savefile.Savefile):
    def __init__(self, names, **more):
        modules.update(sys.modules)
        super().__init__(sys.argv[1])

privileges.drop, live.LiveCapture = drop, Capture
try:
    main(sys.argv[2:])
except SystemExit as ended:
    # Reading and tracking what is rarer than this capture ask for it.
    import numpy
    numpy.unique(numpy.zeros(1))
    print(ended.code, bool(modules), *set(sys.modules) - modules, file=sys.stderr)
"""
"""Prints the status and what was loaded after a capture began, or privileges were dropped."""


@pytest.mark.parametrize("source", ["-Z nobody -r FILE", "-i vsockmon0"])
@pytest.mark.parametrize(
    "line",
    [
        "-vvvXXenn#",
        "--color=always -tttt",
        "--json",
        "-v finding refused or stalled or port 1024",
        "-w OUT/a.pcapng.gz --print",
        "-w OUT/a.pcap.zst --format pcap",
        "-w OUT/%s.pcapng -G 1 -C 1k",
    ],
)
def test_nothing_is_loaded_late(source: str, line: str, tmp_path: Path) -> None:
    words = f"{source} {line}".replace("FILE", ECHO).replace("OUT", str(tmp_path)).split()
    said = ran(LATE, ECHO, *words)
    assert said.splitlines()[-1].split() == ["0", "True"]
