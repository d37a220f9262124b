"""The bundled captures are what captures/README.md says of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import vsockdump.captures as captures

README = Path(captures.__file__).with_name("README.md")
ROW = re.compile(
    r"\| `(?P<file>[\w.-]+)` \| (?P<kernel>\S+) \| `(?P<command>[^`]+)` \| (?P<packets>\d+) "
    r"\| (?P<shows>[^|]+) \| `(?P<sha256>[0-9a-f]{64})` \|"
)
ROWS = [m.groupdict() for m in ROW.finditer(README.read_text(encoding="utf-8"))]


def test_every_line_of_the_table_was_understood() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(ROWS) == sum(line.startswith("| `") for line in lines) > 0


def test_the_table_has_each_capture_once() -> None:
    assert sorted(row["file"] for row in ROWS) == captures.names()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_a_capture_is_the_one_described(row: dict[str, str]) -> None:
    content = captures.path(row["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    series = row["file"].rpartition("-")[2].rpartition(".")[0]
    assert row["kernel"].startswith(f"{series}.")
    assert row["file"] in row["command"] or "capture." in row["command"]


def test_asking_for_an_unknown_capture_names_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=captures.names()[0]):
        captures.path("../pyproject.toml")
