"""What the tests of live results share: kept captures read back, and commands asked about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from command import run as vsockdump

from vsockdump.cli.complaining import STATUS
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.savefile import Savefile

from . import vm


def batches(path: Path) -> Iterator[PacketBatch]:
    """A capture's packets, decoded."""
    with closing(Savefile(str(path))) as savefile:
        for frames in savefile.batches():
            yield decode(frames)


def told(*words: str | Path) -> list[dict[str, Any]]:
    """The JSON objects that a command prints; it ended well, and complained of nothing."""
    ran = vsockdump(*words)
    assert ran.err == ""
    assert ran.status == 0 or (words[0] == "check" and ran.status in STATUS.values())
    return [json.loads(line) for line in ran.lines]


def whole(folder: Path) -> Path:
    """The capture of a scenario that lost nothing: ours if it did not, else tcpdump's beside it."""
    tools = vm.read_json(folder / "tools.json")
    for tool, file in (("vsockdump", "vsockdump.pcapng"), ("tcpdump", "tcpdump.pcap")):
        if tools[tool]["counts"]["dropped by kernel"] == 0:
            return folder / file
    raise AssertionError(f"both captures of {folder.name} lost packets: {tools}")
