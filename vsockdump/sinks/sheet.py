"""Render many lines at once: a sheet of byte columns, one row a line.

Strategy: a column is an array of short byte strings padded with NUL, or one string for all rows.
The sheet lays columns side by side and deletes the NULs in one pass, which is several times
cheaper than formatting line by line. Numbers are written three digits at a time from a table.

Invariant: NUL never stands in a column for anything but "nothing here": what is printed is text,
and text from outside is escaped before it comes here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints

Column = NDArray[Any] | bytes
"""One byte string a row, shape (n,), or one for all of them.

The array is of bytes type, or of uint32: four characters each, as they lie in memory. numpy looks
up, blanks and copies those several times faster.
"""

_GROUP: Final = 1000


def _lanes(texts: list[bytes]) -> NDArray[np.uint32]:
    return np.array(texts, "S4").view(np.uint32)


_PLAIN: Final = [b"%d" % value for value in range(_GROUP)]
_PADDED: Final = [b"%03d" % value for value in range(_GROUP)]
_LOW: Final = _lanes(_PLAIN + _PADDED)
"""The last three digits: as they are, or padded when digits stand before them."""
_HIGH: Final = _lanes([b"", *_PLAIN[1:], *_PADDED])
"""The same for digits further up, where 0 is nothing."""
_FIXED: Final = _lanes(_PADDED)


def number(values: NDArray[Any]) -> list[Column]:
    """Columns that spell non-negative integers (up to 64 bits) in decimal."""
    if not values.size:
        return []
    most = int(values.max())
    if most == int(values.min()):
        return [b"%d" % most]
    groups: list[Column] = []
    table = _LOW
    # 32-bit division is three times as fast as 64-bit, and nearly all numbers are small.
    rest: NDArray[Any] = values.astype(np.uint32 if most < 1 << 32 else np.uint64)
    while True:
        if most < _GROUP:
            groups.append(table.take(rest))
            return groups[::-1]
        above = rest // _GROUP
        below = rest - above * _GROUP
        below += (above > 0) * below.dtype.type(_GROUP)
        groups.append(table.take(below))
        rest, most, table = above, most // _GROUP, _HIGH


def fixed(values: NDArray[Any], groups: int) -> list[Column]:
    """Columns that spell non-negative integers with exactly ``3 * groups`` digits."""
    columns: list[Column] = []
    rest: NDArray[Any] = values.astype(np.uint32 if groups <= 3 else np.uint64)
    for _ in range(groups - 1):
        above = rest // _GROUP
        columns.append(_FIXED.take(rest - above * _GROUP))
        rest = above
    columns.append(_FIXED.take(rest))
    return columns[::-1]


def choose(table: list[bytes], index: NDArray[Any]) -> Column:
    """One of a few strings a row."""
    column: Column = np.array(table)[index]
    return column


def only(rows: Bools, columns: list[Column]) -> list[Column]:
    """The columns where ``rows`` is set, nothing elsewhere."""
    if rows.all():
        return columns
    if not rows.any():
        return []
    blanked: list[Column] = []
    for column in columns:
        if isinstance(column, bytes):
            blanked.append(np.array([b"", column])[rows.view(np.uint8)])
        elif column.dtype == np.uint32:
            blanked.append(column * rows)
        else:
            blanked.append(np.where(rows, column, b""))
    return blanked


def unique(values: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """The distinct values of a column that hardly changes, and for every row which of them."""
    if values.size and values[0] == values[-1] and (values == values[0]).all():
        return values[:1], np.zeros(values.size, np.int64)
    found, which = np.unique(values, return_inverse=True)
    return found, which.astype(np.int64)


def distinct(*keys: NDArray[Any]) -> tuple[Ints, Ints]:
    """Rows that show each distinct combination of keys once, and for every row which of them.

    Shapes (k,) and (n,): ``keys[0][first][which]`` is ``keys[0]`` again.
    """
    mixed = np.zeros(keys[0].size, np.uint64)
    for key in keys:
        mixed = (mixed ^ key.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    _, first, which = np.unique(mixed, return_index=True, return_inverse=True)
    if all(np.array_equal(key[first][which], key) for key in keys):
        return first.astype(np.int64), which.astype(np.int64)
    # Two combinations met in one hash: every row then stands for itself.
    rows = np.arange(keys[0].size)
    return rows, rows


def small_distinct(keys: Ints) -> tuple[Ints, Ints]:
    """The same of one key that is small and not negative, without sorting."""
    rows = np.arange(keys.size)
    shown = np.empty(int(keys.max()) + 1 if keys.size else 0, np.int64)
    # Of the rows that share a key the last one writes: it shows the key.
    shown[keys] = rows
    shows = shown[keys]
    first = shows == rows
    return np.flatnonzero(first), (np.cumsum(first) - 1)[shows]


@lru_cache(maxsize=64)
def _layout(widths: tuple[int, ...]) -> np.dtype[Any]:
    """A record of fields of these widths in bytes; negative ones are of uint32."""
    sizes = [abs(width) for width in widths]
    ends = np.cumsum(sizes).tolist()
    return np.dtype(
        {
            "names": [str(place) for place in range(len(widths))],
            "formats": ["u4" if width < 0 else f"S{width}" for width in widths],
            "offsets": [end - size for end, size in zip(ends, sizes, strict=True)],
            "itemsize": ends[-1] if ends else 1,
        }
    )


def _width(column: Column) -> int:
    if isinstance(column, bytes):
        return len(column)
    return -4 if column.dtype == np.uint32 else column.dtype.itemsize


def lines(columns: list[Column], count: int) -> bytes:
    """The sheet of ``count`` rows as bytes, row by row; every row's text as its columns say."""
    if not count:
        return b""
    layout = _layout(tuple(_width(column) for column in columns if not _empty(column)))
    # What is the same in all rows is written once and copied with the row.
    model = np.zeros(1, layout)
    varying = []
    for place, column in enumerate(c for c in columns if not _empty(c)):
        if isinstance(column, bytes):
            model[str(place)] = column
        else:
            varying.append((str(place), column))
    sheet = np.full(count, model.view(f"V{layout.itemsize}")[0]).view(layout)
    for name, column in varying:
        sheet[name] = column
    return sheet.tobytes().translate(None, b"\0")


def _empty(column: Column) -> bool:
    return isinstance(column, bytes) and not column


def texts(columns: list[Column], count: int) -> NDArray[np.bytes_]:
    """The sheet of ``count`` rows as one column again: shape (count,), no NUL inside a row."""
    packed = lines([*columns, b"\n"], count)
    return np.array(packed.split(b"\n")[:-1]) if count else np.zeros(0, "S1")
