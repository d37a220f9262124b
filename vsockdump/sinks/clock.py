"""Spell times, a column at a time, in tcpdump's five ways and in RFC 3339."""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

import numpy as np

from vsockdump.frames import Bools, Ints
from vsockdump.sinks.sheet import Column, choose, fixed, number, only, unique

SECOND: Final = 10**9
_MINUTE: Final = 60
"""Seconds in which no zone changes its offset half way, since _MINUTES (some change at 00:01)."""
_MINUTES: Final = 94_694_400
"""The year 1973. Before 1972 was over there were zones that changed at any second."""


class Stamp(IntEnum):
    """How a line shows its packet's time: the number of ``t`` in tcpdump's options."""

    TIME = 0
    NONE = 1
    EPOCH = 2
    DELTA = 3
    DATE = 4
    SINCE_FIRST = 5


def _local(seconds: Ints) -> Ints:
    """Epoch seconds moved by the local zone's offset at that time."""
    step = _MINUTE if int(seconds.min()) >= _MINUTES else 1
    steps, which = unique(seconds // step)
    offsets = [time.localtime(value * step).tm_gmtoff for value in steps.tolist()]
    return seconds + np.array(offsets, np.int64)[which]


def _calendar(seconds: Ints, form: str) -> Column:
    """``form`` of strftime for every row (UTC), spelled once for each distinct second."""
    found, which = unique(seconds)
    return choose(
        [time.strftime(form, time.gmtime(value)).encode() for value in found.tolist()], which
    )


def _fraction(ns: Ints, nano: Bools) -> list[Column]:
    """Nanoseconds of a second as nine digits; as six, cut, where ``nano`` is not set."""
    if nano.all():
        return fixed(ns, 9)
    return [*fixed(ns // 1000, 6), *only(nano, fixed(ns % 1000, 3))]


class Clock:
    """Spells the times of one run; remembers the first and the last packet's."""

    def __init__(self, stamp: Stamp) -> None:
        self._stamp = stamp
        self._first: int | None = None
        self._last: int | None = None

    def columns(self, time_ns: Ints, nano: Bools) -> list[Column]:
        """Columns of each row's time and a space; to the nanosecond where ``nano`` is set."""
        if self._stamp is Stamp.NONE or not time_ns.size:
            return []
        if self._stamp in (Stamp.DELTA, Stamp.SINCE_FIRST):
            return self._relative(time_ns, nano)
        seconds = time_ns // SECOND
        fraction = _fraction(time_ns - seconds * SECOND, nano)
        if self._stamp is Stamp.EPOCH:
            found, which = unique(seconds)
            return [choose([b"%d." % value for value in found.tolist()], which), *fraction, b" "]
        form = "%H:%M:%S." if self._stamp is Stamp.TIME else "%Y-%m-%d %H:%M:%S."
        return [_calendar(_local(seconds), form), *fraction, b" "]

    def _relative(self, time_ns: Ints, nano: Bools) -> list[Column]:
        first = int(time_ns[0]) if self._first is None else self._first
        before = first if self._last is None else self._last
        self._first, self._last = first, int(time_ns[-1])
        if self._stamp is Stamp.DELTA:
            since = np.concatenate([[before], time_ns[:-1]])
        else:
            since = np.full(time_ns.size, first)
        earlier = time_ns < since
        sign = choose([b" ", b"-"], earlier.astype(np.intp))
        # Times of a hostile file may lie further apart than a signed difference reaches.
        apart = np.where(earlier, since - time_ns, time_ns - since).view(np.uint64)
        seconds, ns = np.divmod(apart, np.uint64(SECOND))
        found, which = unique(seconds)
        table = [
            b"%02d:%02d:%02d." % (value // 3600, value // 60 % 60, value % 60)
            for value in found.tolist()
        ]
        return [sign, choose(table, which), *_fraction(ns, nano), b" "]


def rfc3339(time_ns: Ints) -> list[Column]:
    """Columns that spell each time in UTC, e.g. ``2026-05-28T20:26:40.000001234Z``."""
    seconds = time_ns // SECOND
    return [
        _calendar(seconds, "%Y-%m-%dT%H:%M:%S."),
        *fixed(time_ns - seconds * SECOND, 9),
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
