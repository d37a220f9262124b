"""What the tracker adds to a batch: columns beside the packets' own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.findings import BITS, CODES
from vsockdump.tracking.states import State

NULL: Final = -1
"""A figure nobody can know (yet); every figure that is known is 0 or more."""


_C = TypeVar("_C")
Made = NDArray[Any] | Callable[[], NDArray[Any]]
"""A column, or what makes it."""


class _Column(Generic[_C]):
    """A column that is made when it is first looked at."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: TrackedBatch, owner: type) -> _C:
        return cast(_C, instance.column(self._name))


class TrackedBatch:
    """Columns of shape (n,), of the sender's direction after the packet; made when looked at.

    ``conn`` int64 numbers connections from 1 in order of first packet, 0 for packets that belong
    to none. ``way`` int64 is a small number, not negative, that is the same for packets of one
    direction of one connection and different for others within this batch; equal for all without
    a connection. ``tx_cnt`` (bytes the sender has sent on this connection, the packet included,
    not wrapped), ``in_flight``, ``window``, ``effective_window`` and ``outstanding`` (packets) are
    int64, NULL where not known. ``stalled``: the sender's effective window is 0 while it may still
    send. ``state`` int64 is the connection's State after the packet, NULL without one; ``found``
    uint64 has a bit of ``findings.BITS`` for each finding that the packet shows.
    """

    conn = _Column[Ints]()
    way = _Column[Ints]()
    tx_cnt = _Column[Ints]()
    in_flight = _Column[Ints]()
    window = _Column[Ints]()
    effective_window = _Column[Ints]()
    outstanding = _Column[Ints]()
    stalled = _Column[Bools]()
    state = _Column[Ints]()
    found = _Column[NDArray[np.uint64]]()

    def __init__(self, **columns: Made) -> None:
        """Every column by its name, or what makes it."""
        self._columns: dict[str, Made] = columns

    def column(self, name: str) -> NDArray[Any]:
        """A column by its name."""
        column = self._columns[name]
        if callable(column):
            column = self._columns[name] = column()
        return column

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
        column = self.column(name)
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
        return TrackedBatch(**{name: partial(self._part, name, rows) for name in self._columns})

    def _part(self, name: str, rows: Ints | Bools | slice) -> NDArray[Any]:
        return self.column(name)[rows]


COLUMNS: Final = tuple(
    name for name, found in vars(TrackedBatch).items() if isinstance(found, _Column)
)
"""The names of all columns."""
