"""Figures as people read them, and tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final

from vsockdump.wire import CID_NAMES

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_GAP: Final = "  "
"""Between two columns."""


def size(count: int | None) -> str:
    """Bytes, e.g. ``256 KiB``; exact below 1 KiB."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value == int(value) or value >= 100 else 1
    return f"{value:.{digits}f} {_UNITS[unit]}"


def duration(ns: int | None) -> str:
    """A time span, e.g. ``1.45 s``, ``213 us``."""
    if ns is None:
        return "-"
    for factor, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if ns >= factor:
            value = ns / factor
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{ns} ns"


def timestamp(time_ns: int) -> str:
    """A time as RFC 3339, in UTC with nanoseconds."""
    import numpy as np

    from vsockdump.sinks.clock import rfc3339
    from vsockdump.sinks.sheet import lines

    return lines(rfc3339(np.array([time_ns])), 1).decode()


def endpoint(end: tuple[int, int]) -> str:
    """``host.1024``: CID by name where it has one, and port."""
    cid, port = end
    return f"{CID_NAMES.get(cid, cid)}.{port}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> list[str]:
    """The header and the rows as lines, as wide as they have to be however narrow a terminal is.

    The first column, a number, and those behind the next ``left`` ones are set to the right.
    """
    columns = []
    for place, column in enumerate(zip(header, *rows, strict=True)):
        set_ = str.ljust if 1 <= place <= left else str.rjust
        columns.append(map(set_, column, repeat(max(map(len, column)))))
    return [_GAP.join(cells) for cells in zip(*columns, strict=True)]
