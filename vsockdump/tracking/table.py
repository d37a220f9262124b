"""Keys to slots: a hash table whose every operation takes a whole batch.

Strategy: keys are numbered as they come, and what is known of them lies side by side in that
order; open addressing in numpy arrays finds a key's number. All rows probe at once; those that met
a stranger step on and probe again, so a batch costs a few passes, whatever its size. When the
table grows, places change and numbers do not. Keys are compared whole: two that share a hash are
still two. The hash is keyed with a random number, so that a guest cannot choose ports that
collide.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Ints

Keys = NDArray[np.uint64]
"""Connections' keys, shape (n, KEY_WORDS): the CIDs of both endpoints, their ports, the type."""
KEY_WORDS: Final = 4

_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(32)
EMPTY: Final = -1
_KEY: Final = np.dtype(f"V{8 * KEY_WORDS}")
_SPARSE: Final = 3
"""Places kept, at least, for each key."""
_FIRST_PLACES: Final = 1024
_FIRST_KEYS: Final = 256


class KeyTable:
    """Maps keys to slots. A key keeps its number until a rebuild."""

    def __init__(self) -> None:
        self._seed = np.uint64(int.from_bytes(os.urandom(8)))
        self._used = 0
        """How many keys there are."""
        self._keys = np.zeros((_FIRST_KEYS, KEY_WORDS), np.uint64)
        self._slots = np.zeros(_FIRST_KEYS, np.int64)
        self._empty(_FIRST_PLACES)

    def _empty(self, places: int) -> None:
        self._numbers = np.full(places, EMPTY, np.int64)
        self._hashes = np.zeros(places, np.uint64)

    def _hash(self, keys: Keys) -> NDArray[np.uint64]:
        mixed = np.full(len(keys), self._seed)
        for word in range(KEY_WORDS):
            mixed ^= keys[:, word]
            mixed *= _ODD
            mixed ^= mixed >> _SHIFT
        return mixed | np.uint64(1)

    def _first_places(self, hashes: NDArray[np.uint64]) -> Ints:
        return (hashes & np.uint64(self._numbers.size - 1)).view(np.int64)

    def find(self, keys: Keys) -> tuple[Ints, NDArray[np.uint64]]:
        """The number of each key, EMPTY where it is not in the table; and the keys' hashes."""
        hashes = self._hash(keys)
        mask = np.int64(self._numbers.size - 1)
        places = self._first_places(hashes)
        # An empty place has hash 0, which no key has: nearly all rows are settled by this line.
        rows = np.flatnonzero(self._hashes.take(places) != hashes)
        while True:
            while rows.size:
                rows = rows[self._numbers[places[rows]] != EMPTY]
                places[rows] = places[rows] + 1 & mask
                rows = rows[self._hashes[places[rows]] != hashes[rows]]
            numbers = self._numbers.take(places)
            # Empty places have no key to compare; most often every key is there.
            known = np.flatnonzero(numbers != EMPTY)
            # As values without an inside, which numpy copies several times faster.
            there = self._keys.view(_KEY)[:, 0].take(numbers[known]).view(np.uint64)
            here = keys if known.size == len(keys) else keys[known]
            other = there.reshape(here.shape) != here
            if not other.any():
                return numbers, hashes
            # A stranger with the same hash: such rows step on.
            rows = known[other.any(axis=1)]
            places[rows] = places[rows] + 1 & mask
            rows = rows[self._hashes[places[rows]] != hashes[rows]]

    def insert(self, keys: Keys, hashes: NDArray[np.uint64], slots: Ints) -> Ints:
        """Add keys that are distinct and not in the table; returns their numbers."""
        first, self._used = self._used, self._used + len(keys)
        if self._used > self._slots.size:
            size = max(2 * self._slots.size, self._used)
            grown = np.zeros((size, KEY_WORDS), np.uint64)
            grown[:first] = self._keys[:first]
            self._keys = grown
            self._slots = np.concatenate([self._slots[:first], np.zeros(size - first, np.int64)])
        self._keys[first : self._used], self._slots[first : self._used] = keys, slots
        numbers = np.arange(first, self._used)
        if _SPARSE * self._used > self._numbers.size:
            places = self._numbers.size
            while _SPARSE * self._used > places:
                places *= 2
            self._empty(places)
            self._settle(self._hash(self._keys[: self._used]), np.arange(self._used))
        else:
            self._settle(hashes, numbers)
        return numbers

    def _settle(self, hashes: NDArray[np.uint64], numbers: Ints) -> None:
        """Give places to keys that have none."""
        mask = np.int64(self._numbers.size - 1)
        places = self._first_places(hashes)
        rows = np.arange(numbers.size)
        while rows.size:
            there = places[rows]
            free = self._numbers[there] == EMPTY
            self._numbers[there[free]] = numbers[rows[free]]
            # Where several want one empty place the last writer has it, the others step on.
            won = self._numbers[there] == numbers[rows]
            self._hashes[there[won]] = hashes[rows[won]]
            rows = rows[~won]
            places[rows] = places[rows] + 1 & mask

    def slots(self, numbers: Ints) -> Ints:
        """The slots of these keys."""
        return self._slots.take(numbers)

    def assign(self, numbers: Ints, slots: Ints) -> None:
        """Give these keys other slots."""
        self._slots[numbers] = slots

    def rebuild(self, keep: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Keep the keys whose slot has ``keep`` (by slot) set: their slots and new numbers."""
        kept = np.flatnonzero(keep[self._slots[: self._used]])
        keys, slots = self._keys[kept], self._slots[kept]
        self._used = 0
        self._empty(self._numbers.size)
        return slots, self.insert(keys, self._hash(keys), slots)
