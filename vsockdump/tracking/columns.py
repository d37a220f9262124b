"""What the tracker adds to a batch: columns beside the packets' own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.findings import BITS, CODES
from vsockdump.tracking.states import State

NULL: Final = -1
"""A figure nobody can know (yet); every figure that is known is 0 or more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrackedBatch:
    """Columns of shape (n,), of the sender's direction after the packet.

    ``conn`` int64 numbers connections from 1 in order of first packet, 0 for packets that belong
    to none. ``slot`` int64 is a small index that is the same for packets of one connection and
    different for others within this batch (never negative; equal for all without one). ``tx_cnt``
    (bytes the sender has sent on this connection, the packet included, not wrapped),
    ``in_flight``, ``window``, ``effective_window`` and ``outstanding`` (packets) are int64, NULL
    where not known. ``stalled``: the sender's effective window is 0 while it may still send.
    ``state`` int64 is the connection's State after the packet, NULL without one; ``found`` uint64
    has a bit of ``findings.BITS`` for each finding that the packet shows.
    """

    conn: Ints
    slot: Ints
    tx_cnt: Ints
    in_flight: Ints
    window: Ints
    effective_window: Ints
    outstanding: Ints
    stalled: Bools
    state: Ints
    found: NDArray[np.uint64]

    @property
    def state_names(self) -> Sequence[str]:
        """The name of each code in ``state``, as users type it."""
        return [state.label for state in State]

    @property
    def finding_codes(self) -> Collection[str]:
        """Every code that a finding can have."""
        return CODES.keys()

    def number(self, name: str) -> tuple[Ints, Bools]:
        """A column of figures, and where it is known; ``conn`` is known where it is not 0."""
        column: Ints = getattr(self, name)
        return column, column != (0 if name == "conn" else NULL)

    def states(self) -> tuple[Ints, Bools]:
        """The state column, and where it is known."""
        return self.state, self.state != NULL

    def finding(self, code: str) -> Bools:
        """Where the packet shows a finding of this code; any finding if ``code`` is empty."""
        wanted = BITS[code] if code else sum(BITS.values())
        shows: Bools = self.found & np.uint64(wanted) != 0
        return shows

    def take(self, rows: Ints | Bools | slice) -> TrackedBatch:
        """The columns of ``rows`` (a mask, indices or a slice)."""
        return TrackedBatch(
            **{field.name: getattr(self, field.name)[rows] for field in fields(self)}
        )
