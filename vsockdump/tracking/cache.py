"""A cache in front of the key table: the addresses of a packet as they are, to what they mean.

Strategy: nearly every packet's addresses were seen before in just this order, or the other way
round, so that neither has the key to be made nor its endpoints to be put in order. An address has
three places, chosen by a hash that is keyed with random numbers: the first that is free, else the
last, from which it drives out whoever has it. Entries are compared whole, and hold no more than
the table says: forgetting all of them costs time, never rightness.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import Bools, Ints
from vsockdump.tracking.table import EMPTY

_WORDS: Final = 3
"""An address is three words of a header record: both CIDs, both ports."""
_TYPE: Final = np.int64(0xFFFF)
_LOW: Final = np.int64(0x10000)
_KEY_SHIFT: Final = np.int64(17)
"""An entry is its type, whether its sender is the lower one, and above these bits the key."""
_FIRST_SIZE: Final = 1 << 14
_LARGEST: Final = 1 << 19
_SPARSE: Final = 4
"""How many times as large as what it holds the cache is."""
_PLACES: Final = 3
"""Where an address may be."""
_PORT_BITS: Final = np.uint64(32)
_NOTHING: Final = np.uint64(np.iinfo(np.uint64).max)
"""EMPTY in all its bits."""
_ENTRY: Final = np.dtype("V32")


class AddressCache:
    """Maps addresses and type of packets to numbers in the key table, and who is the lower one."""

    def __init__(self) -> None:
        self._factors = [np.uint64(int.from_bytes(os.urandom(8)) | 1) for _ in range(_WORDS)]
        self._resize(_FIRST_SIZE)

    def _resize(self, size: int) -> None:
        self._stored = 0
        bits = size.bit_length() - 1
        self._shifts = [np.uint64(64 - which * bits) for which in range(1, _PLACES + 1)]
        self._mask = np.uint64(size - 1)
        # Whoever matches an empty entry is told EMPTY, which is right.
        self._entries = np.full((size, _WORDS + 1), _NOTHING)

    def clear(self) -> None:
        """Forget everything: the keys have other numbers now."""
        self._resize(len(self._entries))

    def _mix(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A hash of each address, whose upper bits say where it may be; ``words`` (_WORDS, n)."""
        mixed: NDArray[np.uint64] = words[0] * self._factors[0]
        for place in range(1, _WORDS):
            mixed += words[place] * self._factors[place]
        return mixed

    def _places(self, mixed: NDArray[np.uint64], which: int) -> Ints:
        places = mixed >> self._shifts[which]
        if which:
            places &= self._mask
        return places.view(np.int64)

    def _opaque(self) -> NDArray[np.void]:
        """The entries as values without an inside, which numpy copies several times faster."""
        return self._entries.view(_ENTRY)[:, 0]

    def _look(self, words: NDArray[np.uint64], types: Ints, places: Ints) -> tuple[Ints, Ints]:
        """What is said at these places, and the rows that it is not said of: ``words`` (_WORDS, n)
        are others'."""
        there = self._opaque().take(places)
        entries = there.view(np.uint64).reshape(places.size, _WORDS + 1)
        said = entries[:, _WORDS].view(np.int64).copy()
        right = said & _TYPE == types
        for place in range(_WORDS):
            right &= entries[:, place] == words[place]
        return said, np.flatnonzero(~right)

    def find(self, headers: NDArray[Any]) -> Ints:
        """An entry for each header record, EMPTY where there is none; see ``key`` and ``low``."""
        # Side by side, for they are looked at again and again.
        words = _words(headers).T.copy()
        types = headers["type"].astype(np.int64)
        mixed = self._mix(words)
        found, others = self._look(words, types, self._places(mixed, 0))
        found[others] = EMPTY
        for which in range(1, _PLACES if self._stored else 1):
            if not others.size:
                break
            places = self._places(mixed[others], which)
            said, wrong = self._look(words[:, others], types[others], places)
            said[wrong] = EMPTY
            found[others] = said
            others = others[wrong]
        return found

    def store(self, headers: NDArray[Any], keys: Ints, low: Bools) -> Ints:
        """Enter what the table said of these headers, and of answers to them; their entries."""
        values = keys << _KEY_SHIFT | low * _LOW | headers["type"].astype(np.int64)
        # Of a key's packets one is enough.
        rows = np.arange(values.size)
        shown = np.empty(int(keys.max()) + 1, np.int64)
        shown[keys] = rows
        rows = np.flatnonzero(shown[keys] == rows)
        self._reserve(2 * rows.size)
        entries = np.empty((2, rows.size, _WORDS + 1), np.uint64)
        there, back = entries
        there[:, :_WORDS], there[:, _WORDS] = _words(headers)[rows], values[rows]
        back[:, 0], back[:, 1] = there[:, 1], there[:, 0]
        back[:, 2] = there[:, 2] << _PORT_BITS | there[:, 2] >> _PORT_BITS
        back[:, _WORDS] = values[rows] ^ _LOW
        self._put(entries.reshape(2 * rows.size, _WORDS + 1))
        return values

    def _put(self, entries: NDArray[np.uint64]) -> None:
        mixed = self._mix(entries.T)
        for which in range(_PLACES):
            place = self._places(mixed, which)
            free = self._entries[place, _WORDS] == _NOTHING
            mine = np.flatnonzero(free) if which < _PLACES - 1 else np.arange(len(entries))
            self._opaque()[place[mine]] = entries[mine].view(_ENTRY)[:, 0]
            self._stored += int(free.sum())
            lost = np.flatnonzero(self._entries[place, _WORDS] != entries[:, _WORDS])
            if not lost.size:
                return
            entries, mixed = entries[lost], mixed[lost]

    def _reserve(self, more: int) -> None:
        """Move to a larger cache when this one would be crowded."""
        size, needed = len(self._entries), _SPARSE * (self._stored + more)
        if needed > size < _LARGEST:
            while needed > size < _LARGEST:
                size *= 2
            known = self._entries[self._entries[:, _WORDS] != _NOTHING]
            self._resize(size)
            self._put(known)


def key(entries: Ints) -> Ints:
    """The number in the key table of each entry."""
    return entries >> _KEY_SHIFT


def low(entries: Ints) -> Bools:
    """Whether each entry's sender is its key's lower endpoint."""
    lower: Bools = entries & _LOW != 0
    return lower


def _words(headers: NDArray[Any]) -> NDArray[np.uint64]:
    """The address words of header records, shape (n, 3), without copying."""
    size = wire.HEADERS.itemsize // 8
    return headers.view(np.uint64).reshape(len(headers), size)[:, :_WORDS]
