"""A filter in the kernel passes exactly what the same filter chooses of a capture without one."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsockdump import filters
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.savefile import Savefile

from . import filtering, vm
from .results import batches, told

EXPRESSIONS = {name: words[-1] for name, words in filtering.FILTERS.items()}
CUT = {name: filtering.SNAPLEN for name, words in filtering.FILTERS.items() if "-s" in words}
MOMENT = ("number", "time", "time_ns")
"""What two sockets may tell differently of a packet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """The scenario's results; ``whole`` is all that passed the device."""

    folder: Path
    whole: list[PacketBatch]
    started_ns: tuple[int, int]
    known_ns: int
    tools: dict[str, Any]

    def passing(self, name: str) -> list[bytes]:
        """The frames that the filter's mask passes, as its capture was to keep them."""
        chosen = filters.compile(EXPRESSIONS[name])
        return [
            batch.frames.frame(row)[: CUT.get(name)]
            for batch in self.whole
            for row in np.flatnonzero(chosen.mask(batch)).tolist()
        ]

    def split(self, name: str, since_ns: int, until_ns: int) -> tuple[int, int]:
        """How many packets between two moments the filter passes and drops."""
        chosen = filters.compile(EXPRESSIONS[name])
        passed = dropped = 0
        for batch in self.whole:
            times = batch.frames.time_ns
            within = (times >= since_ns) & (times < until_ns)
            passes = chosen.mask(batch)
            passed += int((passes & within).sum())
            dropped += int((~passes & within).sum())
        return passed, dropped

    def written(self, name: str) -> list[bytes]:
        """The frames that the kernel passed."""
        path = self.folder / f"{name}.pcapng"
        return [batch.frames.frame(row) for batch in batches(path) for row in range(len(batch))]


@pytest.fixture(scope="session")
def captures(run: vm.Run) -> Captures:
    folder = run.scenario("filters")
    times = vm.read_json(folder / "times.json")
    # A source's batches are gone when the next one is asked for.
    whole = [decode(batch.frames.copy()) for batch in batches(folder / "whole.pcapng")]
    tools = vm.read_json(folder / "tools.json")
    assert tools["whole"]["counts"]["dropped by kernel"] == 0
    return Captures(
        folder=folder,
        whole=whole,
        started_ns=tuple(times["started_ns"]),
        known_ns=times["known_ns"],
        tools=tools,
    )


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_kernel_passes_what_the_mask_passes_and_nothing_from_before(
    captures: Captures, name: str
) -> None:
    written, passing = captures.written(name), captures.passing(name)
    # Whatever came before the filter was in place is not there: the rest is the end of the list.
    assert written == passing[len(passing) - len(written) :]
    known, refused = captures.split(name, captures.known_ns, 1 << 62)
    assert len(written) >= known
    assert refused > 0 or name == "wide"
    assert known > 0 or name == "nothing"


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_counters_count_what_passed_alone(captures: Captures, name: str) -> None:
    written = len(captures.written(name))
    assert captures.tools[name]["counts"] == {
        "captured": written,
        "received by filter": written,
        "dropped by kernel": 0,
    }
    with closing(Savefile(str(captures.folder / f"{name}.pcapng"))) as savefile:
        for _ in savefile.batches():
            pass
        (counted,) = savefile.statistics().values()
        (interface,) = savefile.interfaces
    assert (counted.received, counted.dropped) == (written, 0)
    assert interface.filter == EXPRESSIONS[name]
    assert interface.snaplen == CUT.get(name, 0)


def test_filters_were_put_in_place_in_the_middle_of_traffic(captures: Captures) -> None:
    passed, dropped = zip(
        *(captures.split(name, *captures.started_ns) for name in EXPRESSIONS), strict=True
    )
    # Nothing else could have shown what comes from before a filter.
    assert min(map(sum, zip(passed, dropped, strict=True))) > 0
    assert sum(count > 0 for count in dropped) > len(EXPRESSIONS) // 2


@pytest.mark.parametrize("name", CUT)
def test_the_program_cuts_to_the_snapshot_length(captures: Captures, name: str) -> None:
    sizes = {len(frame) for frame in captures.written(name)}
    assert max(sizes) == CUT[name]
    assert min(sizes) < CUT[name]
    longest = max(int(b.frames.origlen.max()) for b in batches(captures.folder / f"{name}.pcapng"))
    assert longest > CUT[name]


def test_a_display_filter_shows_live_what_it_shows_of_a_file(captures: Captures) -> None:
    def shown(packets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in p.items() if k not in MOMENT} for p in packets]

    lines = (captures.folder / "display.out").read_text(encoding="utf-8").splitlines()
    seen = [json.loads(line) for line in lines]
    whole = captures.folder / "whole.pcapng"
    assert shown(seen) == shown(told("-r", whole, "--json", filtering.DISPLAYED))
    assert {packet["op"] for packet in seen} == {"RST", "SHUTDOWN"}
    assert captures.tools["display"]["counts"]["captured"] == len(seen)
    # The kernel did its part: it passed all of these connections, and more packets than are shown.
    assert captures.tools["display"]["counts"]["received by filter"] > len(seen)
