"""Find records that chain through a buffer without visiting them one by one.

Strategy: whoever knows a format marks candidates, places that look like a record's start, and says
where each one's successor would start. From a known boundary, a run in which every candidate's
successor is the next candidate is proven, exactly: it is the chain a hop from record to record
would walk. A false candidate inside payload only ends a run; the chain goes on where the last
proven record points. Payload full of false candidates (a capture inside a capture) would end a run
at each record, so scans and runs are budgeted, and when the budget is spent the rest is hopped. A
buffer of few records, as a live pipe gives, is hopped over and never scanned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from vsockdump.frames import Ints

RUNS: Final = 32
"""Runs accepted in one scan: each costs about what forty hops cost."""
SCANS: Final = 8
"""Scans of what is left of one buffer: each looks at every byte."""
HOPS: Final = 64
"""Records hopped over before a scan is tried, at first and where a chain ended."""
SPARSE: Final = 2048
"""Mean length in bytes of the records just hopped over from which hopping on is cheaper."""


class Damage(NamedTuple):
    """Where in the buffer a file stops making sense, and why."""

    at: int
    reason: str


Chain = Callable[[int], tuple[Ints, int]]
"""Given where a record starts: offsets of records from there, and where the next one starts."""
Hop = Callable[[int, int | None], tuple[Ints, int, Damage | None]]
"""The same one by one, at most so many of them, and what is wrong where it ended."""


def follow(candidates: Ints, successors: Ints, begin: int) -> tuple[Ints, int]:
    """The records that chain from ``begin``: their offsets, and where the chain goes on.

    ``candidates`` (n,) ascending offsets, ``successors`` (n,) where each one's next record would
    start. The chain ends where no candidate stands, or when RUNS are spent.
    """
    ends = np.flatnonzero(successors[:-1] != candidates[1:])
    pieces = []
    for _ in range(RUNS):
        first = int(np.searchsorted(candidates, begin))
        if first == candidates.size or candidates[first] != begin:
            break
        at = int(np.searchsorted(ends, first))
        last = int(ends[at]) if at < ends.size else candidates.size - 1
        pieces.append(candidates[first : last + 1])
        begin = int(successors[last])
    return (np.concatenate(pieces) if pieces else candidates[:0]), begin


class Walk:
    """Locates the records of one buffer: by chains while that pays, else by hops."""

    def __init__(self, chain: Chain, hop: Hop) -> None:
        self._chain = chain
        self._hop = hop
        self._scans = SCANS

    def run(self, begin: int) -> tuple[Ints, int, Damage | None]:
        """All records that follow on each other from ``begin``, and where they end."""
        found = []
        while True:
            start, most = begin, HOPS if self._scans else None
            offsets, begin, damage = self._hop(begin, most)
            found.append(offsets)
            if damage is not None or most is None or offsets.size < most:
                return np.concatenate(found), begin, damage
            if begin - start < most * SPARSE:
                offsets, begin = self._chain(begin)
                found.append(offsets)
                # A scan that finds no more than hops do is the last one.
                self._scans = self._scans - 1 if offsets.size >= HOPS else 0
