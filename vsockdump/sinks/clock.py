"""Spell times, a column at a time, in tcpdump's five ways and in RFC 3339."""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

import numpy as np

from vsockdump.frames import Ints
from vsockdump.sinks.sheet import Column, choose, fixed, number

SECOND: Final = 10**9
_QUARTER: Final = 900
"""Seconds in which no zone changes its offset half way."""


class Stamp(IntEnum):
    """How a line shows its packet's time: the number of ``t`` in tcpdump's options."""

    TIME = 0
    NONE = 1
    EPOCH = 2
    DELTA = 3
    DATE = 4
    SINCE_FIRST = 5


def _unique(values: Ints) -> tuple[Ints, Ints]:
    """The distinct values of a column that hardly changes, and for every row which of them."""
    if values.size and values[0] == values[-1] and (values == values[0]).all():
        return values[:1], np.zeros(values.size, np.int64)
    found, which = np.unique(values, return_inverse=True)
    return found, which


def _local(seconds: Ints) -> Ints:
    """Epoch seconds moved by the local zone's offset at that time."""
    quarters, which = _unique(seconds // _QUARTER)
    offsets = [time.localtime(quarter * _QUARTER).tm_gmtoff for quarter in quarters.tolist()]
    return seconds + np.array(offsets, np.int64)[which]


def _calendar(seconds: Ints, form: str) -> Column:
    """``form`` of strftime for every row (UTC), spelled once for each distinct second."""
    found, which = _unique(seconds)
    return choose(
        [time.strftime(form, time.gmtime(value)).encode() for value in found.tolist()], which
    )


def _fraction(ns: Ints, digits: int) -> list[Column]:
    return fixed(ns if digits == 9 else ns // 1000, digits // 3)


class Clock:
    """Spells the times of one run; remembers the first and the last packet's."""

    def __init__(self, stamp: Stamp) -> None:
        self._stamp = stamp
        self._first: int | None = None
        self._last: int | None = None

    def columns(self, time_ns: Ints, digits: int) -> list[Column]:
        """Columns of each row's time and a space; ``digits`` (6 or 9) of the second's fraction."""
        if self._stamp is Stamp.NONE or not time_ns.size:
            return []
        if self._stamp in (Stamp.DELTA, Stamp.SINCE_FIRST):
            return self._relative(time_ns, digits)
        seconds = time_ns // SECOND
        fraction = _fraction(time_ns - seconds * SECOND, digits)
        if self._stamp is Stamp.EPOCH:
            found, which = _unique(seconds)
            return [choose([b"%d." % value for value in found.tolist()], which), *fraction, b" "]
        form = "%H:%M:%S." if self._stamp is Stamp.TIME else "%Y-%m-%d %H:%M:%S."
        return [_calendar(_local(seconds), form), *fraction, b" "]

    def _relative(self, time_ns: Ints, digits: int) -> list[Column]:
        first = int(time_ns[0]) if self._first is None else self._first
        before = first if self._last is None else self._last
        self._first, self._last = first, int(time_ns[-1])
        if self._stamp is Stamp.DELTA:
            delta = time_ns - np.concatenate([[before], time_ns[:-1]])
        else:
            delta = time_ns - first
        sign = choose([b" ", b"-"], (delta < 0).astype(np.intp))
        seconds, ns = np.divmod(np.abs(delta), SECOND)
        found, which = _unique(seconds)
        table = [
            b"%02d:%02d:%02d." % (value // 3600, value // 60 % 60, value % 60)
            for value in found.tolist()
        ]
        return [sign, choose(table, which), *_fraction(ns, digits), b" "]


def rfc3339(time_ns: Ints) -> list[Column]:
    """Columns that spell each time in UTC, e.g. ``2026-05-28T20:26:40.000001234Z``."""
    seconds = time_ns // SECOND
    return [
        _calendar(seconds, "%Y-%m-%dT%H:%M:%S."),
        *_fraction(time_ns - seconds * SECOND, 9),
        b"Z",
    ]


def integers(values: Ints) -> list[Column]:
    """Columns that spell integers of either sign in decimal."""
    if not values.size or int(values.min()) >= 0:
        return number(values)
    sign = choose([b"", b"-"], (values < 0).astype(np.intp))
    # The lowest value has no positive twin in 64 bits; unsigned arithmetic gives it one.
    size = np.where(values < 0, 0 - values.view(np.uint64), values.view(np.uint64))
    return [sign, *number(size)]
