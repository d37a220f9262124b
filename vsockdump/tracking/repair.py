"""Put payload right that a kernel's tap has garbled.

From 6.7 until mended (see kernels.py) a packet that the kernel split for small receive buffers is
tapped with the whole buffer, from its start, for every piece. Piece k's bytes are therefore found
behind those of the pieces before it. Only pieces were longer than what they carry, so such packets
are few, and are walked one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from vsockdump.frames import Bools, Interface, Ints
from vsockdump.kernels import TAP_BUGS, parse
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.store import Store

REPAIRABLE: Final = "repeated-start"
MOST_OPEN: Final = 4096
"""Split packets followed at a time."""


class Repairer:
    """Moves the payload of pieces to where their own bytes are, in the batch itself.

    What the snapshot length cut off stays missing: ``captured`` says how much of a piece is there.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bug = next(bug for bug in TAP_BUGS if bug.name == REPAIRABLE)
        self._affected: Bools = np.zeros(0, np.bool_)
        self._open: OrderedDict[tuple[int, bool, int], tuple[int, int]] = OrderedDict()
        """Connection, sender and interface to the split buffer's length and how much has passed."""

    def feed(self, rows: Rows) -> Ints:
        """Repair what can be repaired; the sorted rows that were."""
        batch, frames = rows.batch, rows.batch.frames
        affected = self._of(frames.interfaces)
        if not affected.any():
            return np.zeros(0, np.int64)
        whole = frames.origlen - (batch.payload - frames.offset)
        pieces = (whole[rows.row] > rows.length) & affected[frames.interface[rows.row]]
        repaired = []
        for at in np.flatnonzero(pieces).tolist():
            row, length = int(rows.row[at]), int(rows.length[at])
            total = int(whole[row])
            conn = int(self._store.conn["number"][rows.slot[at]])
            key = (conn, bool(rows.server[at]), int(frames.interface[row]))
            size, passed = self._open.pop(key, (total, 0))
            if size != total or passed + length > total:
                passed = 0
            if passed:
                # A shorter frame than that has nothing of this piece.
                there = int(batch.captured[row] + batch.excess[row])
                moved = min(passed, there)
                batch.payload[row] += moved
                batch.captured[row] = min(there - moved, length)
                if moved:
                    repaired.append(at)
            if passed + length < total:
                self._open[key] = (total, passed + length)
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)
        return np.array(repaired, np.int64)

    def _of(self, interfaces: Sequence[Interface]) -> Bools:
        """Which interfaces may have the mistake: all whose kernel is not known to be free of it."""
        known = self._affected.size
        if known < len(interfaces):
            releases = [parse(interface.kernel) for interface in interfaces[known:]]
            fresh = [r is not None and self._bug.affects(r) is not False for r in releases]
            self._affected = np.append(self._affected, fresh)
        return self._affected
