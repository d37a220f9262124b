"""Put payload right that a kernel's tap has garbled.

From 6.7 until mended (see kernels.py) a packet that the kernel split for small receive buffers is
tapped with the whole buffer, from its start, for every piece. Piece k's bytes are therefore found
behind those of the pieces before it. Only pieces have more payload than they carry, so such
packets are few, and are walked one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np

from vsockdump.frames import Ints
from vsockdump.kernels import TAP_BUGS, parse
from vsockdump.tracking.assign import Rows

REPAIRABLE: Final = "repeated-start"
MOST_OPEN: Final = 4096
"""Split packets followed at a time."""


class Repairer:
    """Moves the payload of pieces to where their own bytes are, in the batch itself."""

    def __init__(self) -> None:
        self._bug = next(bug for bug in TAP_BUGS if bug.name == REPAIRABLE)
        self._open: OrderedDict[tuple[int, bool], tuple[int, int]] = OrderedDict()
        """Direction to the split buffer's length and how much of it has passed."""

    def feed(self, rows: Rows) -> Ints:
        """Repair what can be repaired; the sorted rows that were."""
        batch = rows.batch
        pieces = np.flatnonzero(batch.excess[rows.row] > 0)
        repaired = []
        for at in pieces.tolist():
            row = int(rows.row[at])
            interface = batch.frames.interfaces[int(batch.frames.interface[row])]
            release = parse(interface.kernel)
            if release is None or self._bug.affects(release) is False:
                continue
            length = int(rows.length[at])
            whole = length + int(batch.excess[row])
            key = (int(rows.slot[at]), bool(rows.server[at]))
            size, passed = self._open.pop(key, (whole, 0))
            if size != whole or passed + length > whole:
                passed = 0
            if passed:
                batch.payload[row] += passed
                repaired.append(at)
            if passed + length < whole:
                self._open[key] = (whole, passed + length)
                if len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)
        return np.array(repaired, np.int64)
