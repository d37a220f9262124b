"""Arithmetic on sorted rows that fall into runs, one run a connection.

Invariant: ``begins`` (r,) are the first rows of the runs, ascending from 0; ``run`` (n,) is the
run of every row. Nothing here loops over rows or runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints

_DIGIT_BITS: Final = 16


def argsort(values: Ints) -> Ints:
    """A stable order of integers that are not negative, best of small ones.

    numpy sorts 16-bit keys by radix, several times faster than longer ones: a pass of that for
    each 16 bits that the largest value has.
    """
    if not values.size:
        return np.zeros(0, np.int64)
    order = np.argsort(values.astype(np.uint16), kind="stable")
    for shift in range(_DIGIT_BITS, int(values.max()).bit_length(), _DIGIT_BITS):
        digit = (values >> shift).astype(np.uint16)[order]
        order = order[np.argsort(digit, kind="stable")]
    return order


def places(ascending: Ints, values: Ints) -> Ints:
    """As np.searchsorted, twice as fast where ``values`` too ascend, but for a few times.

    A stable sort finds what ascends already and merges it.
    """
    order = np.argsort(np.concatenate([values, ascending]), kind="stable")
    merged = np.flatnonzero(order < values.size)
    found = np.empty(values.size, np.int64)
    found[order.take(merged)] = merged - np.arange(values.size)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Rows in runs: see the module's invariant."""

    begins: Ints
    run: Ints
    first: Ints
    """The first row of every row's run, shape (n,)."""
    lasts: Ints
    """The last row of every run, shape (r,)."""

    @classmethod
    def of(cls, starts: Bools) -> Runs:
        """Runs that begin where ``starts`` is set; it is set at row 0."""
        begins = np.flatnonzero(starts)
        run = np.cumsum(starts, dtype=np.int64)
        run -= 1
        lasts = np.append(begins[1:], run.size)
        lasts -= 1
        return cls(begins=begins, run=run, first=begins.take(run), lasts=lasts)

    def __len__(self) -> int:
        return self.begins.size

    def cumsum(self, values: NDArray[Any]) -> Ints:
        """Running sums within each run, the row's own value included."""
        total = np.cumsum(values)
        before = total[self.begins] - values[self.begins]
        running: Ints = total - before[self.run]
        return running

    def latest(self, mask: Bools) -> Ints:
        """For every row the last row of its run up to it where ``mask`` is set; -1 if none."""
        rows = np.maximum.accumulate(np.where(mask, np.arange(mask.size), -1))
        return np.where(rows >= self.first, rows, -1)

    def any(self, mask: Bools) -> Bools:
        """Whether ``mask`` is set anywhere in each run, shape (r,)."""
        found = np.zeros(len(self), np.bool_)
        found[self.run[mask]] = True
        return found

    def since(self, mask: Bools) -> Bools:
        """The rows at or behind the first one of their run where ``mask`` is set."""
        rows = np.flatnonzero(mask)
        run = self.run[rows]
        fresh = np.ones(rows.size, np.bool_)
        fresh[1:] = run[1:] != run[:-1]
        step = np.zeros(mask.size + 1, np.int8)
        step[rows[fresh]] += 1
        step[self.lasts[run[fresh]] + 1] -= 1
        return np.cumsum(step[:-1], dtype=np.int8).view(np.bool_)

    def earliest(self, mask: Bools) -> Ints:
        """For every run its first row where ``mask`` is set; -1 if none. Shape (r,)."""
        rows = np.flatnonzero(mask)
        place = np.searchsorted(rows, self.begins)
        found = np.append(rows, mask.size)[place]
        return np.where(found <= self.lasts, found, -1)

    def before(self, values: NDArray[Any], carried: NDArray[Any]) -> NDArray[Any]:
        """Every row's predecessor's value; at a run's first row its ``carried`` one, shape (r,)."""
        shifted = np.empty_like(values)
        shifted[1:] = values[:-1]
        shifted[self.begins] = carried
        return shifted

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of each run, shape (r,)."""
        return np.add.reduceat(values, self.begins)

    def smallest(self, values: NDArray[Any]) -> NDArray[Any]:
        """The minimum of each run, shape (r,)."""
        return np.minimum.reduceat(values, self.begins)

    def largest(self, values: NDArray[Any]) -> NDArray[Any]:
        """The maximum of each run, shape (r,)."""
        return np.maximum.reduceat(values, self.begins)
