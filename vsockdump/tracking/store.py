"""What is remembered of connections between batches: one record a connection, two a direction pair.

Strategy: numpy columns that grow by doubling; a slot is an index into them. A column is made when
it is first looked at, so that figures nobody keeps cost nothing. Slots of connections that left
are used again. The store holds at most ``limit`` connections after every batch: ended ones leave
first, oldest end first, then those idle longest.

Direction 0 is client to server, 1 is server to client. A side record belongs to a sender: what it
sent, what it last advertised, and the account of the direction it sends in.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.cache import AddressCache
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.states import OVER
from vsockdump.tracking.table import EMPTY, Keys, KeyTable

NO_BASE: Final = int(np.iinfo(np.int64).min)
"""The base of a direction whose byte count is not anchored yet; a base may be below 0."""
NO_TIME: Final = int(np.iinfo(np.int64).min)
"""A moment that has not come; a hostile capture may be from before the epoch."""

CONNECTION: Final = {
    "number": ("i8", 0),
    "client_cid": ("u8", 0),
    "server_cid": ("u8", 0),
    "client_port": ("u4", 0),
    "server_port": ("u4", 0),
    "type": ("u1", 0),
    "client_low": ("?", 0),
    "interface": ("i8", 0),
    "opened": ("?", 0),
    "estimated": ("?", 0),
    "spoken": ("?", 0),
    "state": ("u1", 0),
    "shut": ("u1", 0),
    "flow": ("u1", 0),
    "first_number": ("i8", 0),
    "last_number": ("i8", 0),
    "start_ns": ("i8", 0),
    "last_ns": ("i8", 0),
    "until_ns": ("i8", NO_TIME),
    "connect_ns": ("i8", NULL),
    "owed": ("i8", EMPTY),
    "key": ("i8", EMPTY),
    "flows_ns": ("3i8", 0),
}
"""Columns of a connection with their types and what they begin with.

``client_low``: the client is the key's lower endpoint; ``spoken``: somebody said more than the
REQUEST; ``last_number`` (to a batch) and ``last_ns``: its last packet, or the RST that ended it;
``until_ns``: when a REQUEST succeeded it; ``owed``: slot of the previous generation that an RST is
still due to; ``key``: its key's number in the table, EMPTY unless it is the latest generation of
that; ``flow``: a Flow; ``flows_ns``: the time spent in each Flow.
"""

SIDE: Final = {
    "packets": ("i8", 0),
    "bytes": ("i8", 0),
    "sent": ("i8", 0),
    "base": ("i8", NO_BASE),
    "buf_alloc": ("i8", NULL),
    "fwd_cnt": ("i8", 0),
    "estimated": ("?", 0),
    "in_flight": ("i8", NULL),
    "min_window": ("i8", NULL),
    "min_effective": ("i8", NULL),
    "max_in_flight": ("i8", NULL),
    "stalls": ("i8", 0),
    "stalled_ns": ("i8", 0),
    "stall_ns": ("i8", 0),
    "stall_number": ("i8", NULL),
    "stall_told": ("i8", NULL),
    "messages": ("i8", 0),
    "message_begin": ("i8", 0),
    "message_bytes": ("i8", 0),
    "message_min": ("i8", NULL),
    "message_max": ("i8", NULL),
    "drain_min": ("i8", int(np.iinfo(np.int64).max)),
    "drain_max": ("i8", NULL),
    "drains": ("i8", 0),
    "drain_median": ("i8", NULL),
    "drain_p99": ("i8", NULL),
    "asked": ("i8", NULL),
    "asked_ns": ("i8", 0),
    "heard": ("?", 0),
    "heard_fwd": ("i8", 0),
    "heard_buf": ("i8", 0),
    "told": ("u8", 0),
}
"""Columns of a sender: what it sent and advertised, and the account of the direction it sends in.

``stall_number``: the packet since which it is stalled, NULL if it is not, at ``stall_ns``
(``stall_told``: that one was told of while it lasted); ``asked``: the packet that asked for credit
at ``asked_ns`` and was not answered; ``heard*``: the sender's latest advertisement as the
detector saw it; ``told``: bits of the findings already made of this direction.
"""

_PAIR: Final = np.dtype("V16")
_FIRST_SIZE: Final = 1024
HEADROOM: Final = 16
"""One part in so many is emptied beyond a limit: a flood then comes to it now and then only."""


class Columns(dict[str, NDArray[Any]]):
    """Columns by name, each of shape (s, ...); one nobody has looked at yet does not exist."""

    def __init__(self, layout: dict[str, tuple[str, int]], shape: tuple[int, ...]) -> None:
        super().__init__()
        self._layout = layout
        self._shape = shape

    def __missing__(self, name: str) -> NDArray[Any]:
        form, begin = self._layout[name]
        # Memory that is zero anyway is not touched before it is used.
        column = np.full(self._shape, begin, form) if begin else np.zeros(self._shape, form)
        self[name] = column
        return column

    def double(self) -> None:
        """Make room for as many slots again, blank."""
        size = self._shape[0]
        self._shape = (2 * size, *self._shape[1:])
        for name, column in self.items():
            grown = np.empty((2 * size, *column.shape[1:]), column.dtype)
            grown[:size], grown[size:] = column, self._layout[name][1]
            self[name] = grown

    def peek(self, name: str, place: Ints | tuple[Ints, int]) -> NDArray[Any]:
        """The values at ``place`` of a column that is not made for that."""
        if name in self:
            return self[name][place]
        form, begin = self._layout[name]
        if isinstance(place, tuple):
            return np.full(place[0].size, begin, form)
        return np.full((place.size, *self._shape[1:]), begin, form)

    def blank(self, slots: Ints) -> None:
        """Give these slots the values that a connection begins with."""
        for name, column in self.items():
            column[slots] = self._layout[name][1]


class Store:
    """The connections: columns ``conn`` of shape (s,), and ``side`` of shape (s, 2)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = 0
        """Connections that were given up to keep the limit."""
        self.strays = False
        """Whether any connection ever began with an RST."""
        self.table = KeyTable()
        self.cache = AddressCache()
        self.conn = Columns(CONNECTION, (_FIRST_SIZE,))
        self.side = Columns(SIDE, (_FIRST_SIZE, 2))
        self._live = np.zeros(_FIRST_SIZE, np.bool_)
        self._free = np.arange(_FIRST_SIZE)

    def __len__(self) -> int:
        return self.size - self._free.size

    @property
    def size(self) -> int:
        """How many slots there are, in use or not."""
        return self._live.size

    def slots(self) -> Ints:
        """The slots in use, in order of connection number."""
        used = np.flatnonzero(self._live)
        return used[np.argsort(self.conn["number"][used], kind="stable")]

    def pairs(self, name: str, slots: Ints) -> Ints:
        """Both sides' values in an int64 column, shape (k, 2); fetched at once."""
        found = self.side[name].view(_PAIR)[:, 0].take(slots)
        pairs: Ints = found.view(np.int64).reshape(slots.size, 2)
        return pairs

    def put_pairs(self, name: str, slots: Ints, client: Ints, server: Ints) -> None:
        """Set both sides' values in an int64 column."""
        pairs = np.stack([client, server], axis=1)
        self.side[name].view(_PAIR)[slots, 0] = pairs.view(_PAIR)[:, 0]

    def take(self, count: int) -> Ints:
        """``count`` fresh slots, blank."""
        while self._free.size < count:
            size = self._live.size
            self.conn.double()
            self.side.double()
            self._live = np.concatenate([self._live, np.zeros(size, np.bool_)])
            self._free = np.concatenate([self._free, np.arange(size, 2 * size)])
        slots, self._free = self._free[:count], self._free[count:]
        self._live[slots] = True
        return slots

    def insert(self, keys: Keys, hashes: NDArray[np.uint64], slots: Ints) -> Ints:
        """Enter distinct new keys into the table; returns their numbers."""
        numbers = self.conn["key"][slots] = self.table.insert(keys, hashes, slots)
        return numbers

    def evict(self) -> Ints:
        """Keep the limit: the slots that were given up, which may be taken again."""
        if len(self) <= self.limit:
            return np.zeros(0, np.int64)
        used = np.flatnonzero(self._live)
        spare = used.size - (self.limit - self.limit // HEADROOM)
        ended = self.over(used)
        order = np.lexsort((self.conn["number"][used], self.conn["last_number"][used], ~ended))
        gone = used[order[:spare]]
        self.left += gone.size
        self.conn.blank(gone)
        self.side.blank(gone)
        self._live[gone] = False
        self._free = np.concatenate([self._free, gone])
        if "owed" in self.conn:
            owed = self.conn["owed"]
            owed[used[(owed[used] != EMPTY) & ~self._live[owed[used]]]] = EMPTY
        kept, numbers = self.table.rebuild(self._live)
        self.conn["key"][kept] = numbers
        self.cache.clear()
        return gone

    def over(self, slots: Ints) -> Bools:
        """Which connections have ended (a stray one never began)."""
        over: Bools = OVER[self.conn["state"][slots]]
        return over
