"""Keys to slots: a hash table whose every operation takes a whole batch.

Strategy: open addressing in numpy arrays. All rows probe at once; those that met a stranger step
on and probe again, so a batch costs a few passes, whatever its size. New keys are inserted in
bulk. Keys are compared whole: two that share a hash are still two. The hash is keyed with a random
number, so that a guest cannot choose ports that collide.
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
"""Places kept for each key."""


class KeyTable:
    """Maps keys to slots. ``home`` of a key is its place in the table, stable until a rebuild."""

    def __init__(self) -> None:
        self._seed = np.uint64(int.from_bytes(os.urandom(8)))
        self._used = 0
        self._slots = np.full(1024, EMPTY, np.int64)
        self._hashes = np.zeros(1024, np.uint64)
        self._keys = np.zeros((1024, KEY_WORDS), np.uint64)

    def _hash(self, keys: Keys) -> NDArray[np.uint64]:
        mixed = np.full(len(keys), self._seed)
        for word in range(KEY_WORDS):
            mixed ^= keys[:, word]
            mixed *= _ODD
            mixed ^= mixed >> _SHIFT
        return mixed | np.uint64(1)

    def find(self, keys: Keys) -> tuple[Ints, NDArray[np.uint64]]:
        """The home of each key, EMPTY where it is not in the table; and the keys' hashes."""
        hashes = self._hash(keys)
        homes = self._probe(keys, hashes)
        homes[self._slots[homes] == EMPTY] = EMPTY
        return homes, hashes

    def _probe(self, keys: Keys, hashes: NDArray[np.uint64]) -> Ints:
        """Where each key is, or the empty place where it would be."""
        mask = np.int64(self._slots.size - 1)
        homes = (hashes & np.uint64(mask)).astype(np.int64)
        # An empty place has hash 0, which no key has: nearly all rows are settled by this line.
        rows = np.flatnonzero(self._hashes[homes] != hashes)
        while True:
            while rows.size:
                rows = rows[self._slots[homes[rows]] != EMPTY]
                homes[rows] = homes[rows] + 1 & mask
                rows = rows[self._hashes[homes[rows]] != hashes[rows]]
            # Empty places have no key to compare; most often every key is there.
            known = np.flatnonzero(self._slots[homes] != EMPTY)
            # As values without an inside, which numpy copies several times faster.
            there = self._keys.view(_KEY)[:, 0].take(homes[known]).view(np.uint64)
            here = keys if known.size == len(keys) else keys[known]
            other = there.reshape(here.shape) != here
            if not other.any():
                return homes
            # A stranger with the same hash: such rows step on.
            rows = known[other.any(axis=1)]
            homes[rows] = homes[rows] + 1 & mask
            rows = rows[self._hashes[homes[rows]] != hashes[rows]]

    def insert(self, keys: Keys, hashes: NDArray[np.uint64], slots: Ints) -> Ints:
        """Add keys that are distinct and not in the table; returns their homes."""
        assert not self.crowded(len(keys)), "grow() first: homes change with it"
        homes = np.zeros(len(keys), np.int64)
        rows = np.arange(len(keys))
        while rows.size:
            homes[rows] = self._probe(keys[rows], hashes[rows])
            # Where several want one empty place the last writer has it, the others probe again.
            self._slots[homes[rows]] = slots[rows]
            won = self._slots[homes[rows]] == slots[rows]
            settled = rows[won]
            self._hashes[homes[settled]] = hashes[settled]
            self._keys[homes[settled]] = keys[settled]
            rows = rows[~won]
        self._used += len(keys)
        return homes

    def slots(self, homes: Ints) -> Ints:
        """The slots that live at these homes."""
        return self._slots[homes]

    def assign(self, homes: Ints, slots: Ints) -> None:
        """Give the keys at these homes other slots."""
        self._slots[homes] = slots

    def rebuild(self, keep: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Keep the keys whose slot has ``keep`` (by slot) set: their slots and new homes."""
        taken = np.flatnonzero(self._slots != EMPTY)
        taken = taken[keep[self._slots[taken]]]
        return self._refill(taken, self._slots.size)

    def _refill(self, taken: Ints, size: int) -> tuple[Ints, Ints]:
        keys, hashes, slots = self._keys[taken], self._hashes[taken], self._slots[taken]
        self._slots = np.full(size, EMPTY, np.int64)
        self._hashes = np.zeros(size, np.uint64)
        self._keys = np.zeros((size, KEY_WORDS), np.uint64)
        self._used = 0
        return slots, self.insert(keys, hashes, slots)

    def crowded(self, more: int) -> bool:
        """Whether ``more`` keys would fill the table too far for short probes."""
        return _SPARSE * (self._used + more) > self._slots.size

    def grow(self, more: int) -> tuple[Ints, Ints]:
        """Make room for ``more`` keys: the slots of all keys and their new homes."""
        size = self._slots.size
        while _SPARSE * (self._used + more) > size:
            size *= 2
        return self._refill(np.flatnonzero(self._slots != EMPTY), size)
