"""The life of a connection as one literal table; docs/credit-model.md shows the same table.

The tracker does not step through it packet by packet: because shut directions only add up and the
first RST ends everything, the state after a packet follows from four facts (``state_of``). A test
walks the table and holds both together.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools


class State(IntEnum):
    """Where a connection is in its life."""

    CONNECTING = 0
    ESTABLISHED = 1
    HALF_CLOSED = 2
    CLOSING = 3
    REFUSED = 4
    CLOSED = 5
    RESET = 6
    STRAY = 7

    @property
    def label(self) -> str:
        """The state's name as users read and type it, e.g. ``half-closed``."""
        return self.name.lower().replace("_", "-")


class Event(IntEnum):
    """What a packet means to a connection's life."""

    RESPONSE = 0
    SHUT_ONE = 1
    """A SHUTDOWN after which one direction is shut."""
    SHUT_BOTH = 2
    """A SHUTDOWN after which both are."""
    RST = 3
    OTHER = 4


TABLE: Final = {
    State.CONNECTING: {
        Event.RESPONSE: State.ESTABLISHED,
        Event.SHUT_ONE: State.HALF_CLOSED,
        Event.SHUT_BOTH: State.CLOSING,
        Event.RST: State.REFUSED,
        Event.OTHER: State.ESTABLISHED,
    },
    State.ESTABLISHED: {
        Event.SHUT_ONE: State.HALF_CLOSED,
        Event.SHUT_BOTH: State.CLOSING,
        Event.RST: State.RESET,
    },
    State.HALF_CLOSED: {Event.SHUT_BOTH: State.CLOSING, Event.RST: State.CLOSED},
    State.CLOSING: {Event.RST: State.CLOSED},
    State.REFUSED: {},
    State.CLOSED: {},
    State.RESET: {},
    State.STRAY: {},
}
"""State and event to the next state; an event that is not there changes nothing."""

ENDED: Final = frozenset({State.REFUSED, State.CLOSED, State.RESET})
OVER: Final = np.isin(np.arange(max(State) + 1), [*ENDED, State.STRAY])
"""Whether a connection in each state, the index, has ended (a stray one never began)."""
BOTH_SHUT: Final = 3
"""Bit 0: client to server is shut; bit 1: server to client."""

_OPEN: Final = np.array(
    [State.CONNECTING, State.ESTABLISHED, *[State.HALF_CLOSED] * 4, State.CLOSING, State.CLOSING],
    np.uint8,
)
_OVER: Final = np.array([State.REFUSED, State.RESET, *[State.CLOSED] * 6], np.uint8)


def state_of(shut: NDArray[Any], spoken: Bools, reset: Bools) -> NDArray[np.uint8]:
    """The state after a packet, a column at a time; shapes (n,).

    ``shut`` uint8 has the bits of the directions that are shut, ``spoken`` tells whether any
    packet but the REQUEST and this one's RST was there, ``reset`` whether this packet is an RST.
    """
    index = shut.astype(np.intp) * 2 + spoken
    return np.where(reset, _OVER[index], _OPEN[index])
