"""Render many lines at once: a sheet of columns, one row a line.

Strategy: a column is what each row says in items of a fixed width, and how many bytes of an item
count (Cells); or one string for all rows. Rows are laid out column by column from the left: a whole
item is copied to where its row has come to, the row moves on by the bytes that count, and the next
column covers what the item had beyond them. So nothing is padded that would have to be taken out
again, and a column costs about the same however wide it is. Columns of one size for all rows go to
fixed places, together with the next one that varies. At last the rows are copied one behind the
other in the same way. This is done for a bounded number of rows at a time, to stay in the cache.

Numbers are written four digits at a time from a table.

Invariant: an item is never wider than the sum of all items of a row has room for, so what lies
beyond its size never reaches the next row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """A column: row r says the first ``size[r]`` bytes of ``text[r]``, whatever lies behind them.

    ``text`` has any type, shape (n,), or (1,) for all rows. ``size`` is int64 of shape (n,), or
    one integer for all rows; an item of ``text`` has no fewer bytes.
    """

    text: NDArray[Any]
    size: Ints | int

    def take(self, rows: Ints) -> Cells:
        """The column of these rows."""
        size = self.size if isinstance(self.size, int) else self.size.take(rows)
        return Cells(text=self.text.take(rows), size=size)

    def settled(self) -> Cells:
        """The same, with one size for all rows if they have the same: that is laid out faster."""
        if isinstance(self.size, int) or not self.size.size:
            return self
        least, most = int(self.size.min()), int(self.size.max())
        return Cells(text=self.text, size=most) if least == most else self


Column = Cells | bytes
"""What each row says, or what all say."""

_ROWS: Final = 2048
"""Rows laid out at a time: enough that calls cost little, few enough to stay in the cache."""
_GROUP: Final = 10_000
_DIGITS: Final = 8
"""Digits in one item of a number: two groups."""
_EIGHT: Final = 10**_DIGITS


def _groups() -> NDArray[Any]:
    """Each number below _GROUP as its four digits; the first one is the lowest byte."""
    digits = np.empty((10, 10, 10, 10, 4), np.uint8)
    for place in range(4):
        # Along its own axis each digit counts.
        digits[..., place] = np.arange(ord("0"), ord("9") + 1).reshape([-1] + [1] * (3 - place))
    four: NDArray[Any] = digits.view("<u4").ravel()
    return four


_FOUR: Final = _groups()


def number(values: NDArray[Any]) -> list[Column]:
    """Columns that spell non-negative integers (up to 64 bits) in decimal."""
    if not values.size:
        return []
    values = np.ascontiguousarray(values)
    least, most = int(values.min()), int(values.max())
    if least == most:
        return [b"%d" % most]
    # 32-bit division is three times as fast as 64-bit, and nearly all numbers are small.
    values = values.astype(np.uint32 if most < 1 << 32 else np.uint64)
    shortest, longest = len(str(least)), len(str(most))
    if shortest == longest:
        return _digits(values, longest, longest)
    size = np.full(values.size, shortest, np.int8)
    for digits in range(shortest, longest):
        size += (values >= 10**digits).view(np.int8)
    return _digits(values, size, longest)


def fixed(values: NDArray[Any], digits: int) -> list[Column]:
    """Columns that spell non-negative integers with exactly so many digits."""
    return _digits(values.astype(np.uint32 if digits <= 9 else np.uint64), digits, digits)


def _digits(values: NDArray[Any], size: NDArray[np.int8] | int, longest: int) -> list[Column]:
    """The last ``size`` digits of each value, at most ``longest``; no value has more than that."""
    columns: list[Column] = []
    rest = values
    for place in range(0, longest, _DIGITS):
        most = min(longest - place, _DIGITS)
        here = size - place
        if isinstance(here, int):
            here = most
        elif longest > _DIGITS:
            here = here.clip(0, _DIGITS)
        part = rest
        if longest - place > _DIGITS:
            # Dividing and multiplying is several times as fast as a remainder.
            rest = part // _EIGHT
            part = part - rest * _EIGHT
        if most <= _DIGITS // 2:
            columns.append(_cut(_FOUR.take(part), _DIGITS // 2, here))
        else:
            columns.append(_cut(_eight(part), _DIGITS, here))
    return columns[::-1]


def _eight(values: NDArray[Any]) -> NDArray[Any]:
    """Values below 10**8 as their eight digits; the first one is the lowest byte."""
    low = values.astype(np.uint32)
    above = low // _GROUP
    text = np.empty(low.size, "<u8")
    halves = text.view("<u4")
    halves[::2] = _FOUR.take(above)
    above *= np.uint32(_GROUP)
    low -= above
    halves[1::2] = _FOUR.take(low)
    return text


def _cut(text: NDArray[Any], width: int, size: NDArray[np.int8] | int) -> Cells:
    """The last ``size`` digits of ``width`` in each item."""
    if isinstance(size, int):
        if size < width:
            text = (text >> text.dtype.type(8 * (width - size))).astype(text.dtype, copy=False)
        return Cells(text=text, size=size)
    missing = (np.int8(width) - size).astype(text.dtype)
    missing <<= text.dtype.type(3)
    return Cells(text=(text >> missing).astype(text.dtype, copy=False), size=size.astype(np.int64))


class Table:
    """A few strings, to take one of them for every row."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = tuple(texts)
        widest = max(map(len, self._texts))
        # Items of these widths are copied several times faster than others.
        width = next((fast for fast in (4, 8, 16, 32) if fast >= widest), widest)
        self._items = np.array(self._texts, f"S{width}")
        self._sizes = np.array([len(text) for text in self._texts])
        self._size = widest if (self._sizes == widest).all() else None

    def take(self, index: NDArray[Any]) -> Column:
        """The strings at ``index``, shape (n,); n is not 0."""
        least, most = int(index.min()), int(index.max())
        if least == most:
            return self._texts[least]
        size = self._sizes.take(index) if self._size is None else self._size
        return Cells(text=self._items.take(index), size=size)


def choose(table: Sequence[bytes], index: NDArray[Any]) -> Column:
    """One of a few strings a row."""
    return Table(table).take(index) if index.size else b""


def only(rows: Bools, columns: Sequence[Column]) -> list[Column]:
    """The columns where ``rows`` is set, nothing elsewhere."""
    if rows.all():
        return list(columns)
    if not rows.any():
        return []
    shown = rows.astype(np.int64)
    joined = [_joined(piece, rows.size) for piece in _pieces(columns)]
    return [Cells(text=cells.text, size=cells.size * shown) for cells in joined]


def unique(values: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """The distinct values of a column that hardly changes, and for every row which of them."""
    steps = np.flatnonzero(values[1:] != values[:-1]) + 1
    if not steps.size:
        return values[:1], np.zeros(values.size, np.int64)
    found, which = np.unique(values[np.append(0, steps)], return_inverse=True)
    lengths = np.diff(steps, prepend=0, append=values.size)
    return found, which.astype(np.int64).repeat(lengths)


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


def _pieces(columns: Sequence[Column]) -> list[list[Cells]]:
    """The columns that say anything, cut behind each one whose size varies."""
    pieces: list[list[Cells]] = [[]]
    for column in columns:
        if isinstance(column, bytes):
            if column:
                pieces[-1].append(Cells(text=np.array([column]), size=len(column)))
            continue
        pieces[-1].append(column)
        if not isinstance(column.size, int):
            pieces.append([])
    return pieces if pieces[-1] else pieces[:-1]


def _width(piece: Sequence[Cells]) -> int:
    return sum(cells.text.dtype.itemsize for cells in piece)


@lru_cache(maxsize=512)
def _item(width: int) -> np.dtype[Any]:
    """Bytes of any kind, copied as they are."""
    return np.dtype(f"V{width}")


class _Writer:
    """Lays a piece out in rows that are ``stride`` bytes apart, some rows at a time."""

    def __init__(self, piece: Sequence[Cells], rows: Any, stride: int, count: int) -> None:
        self._varying = []
        at = covered = 0
        for cells in piece:
            text = cells.text
            places = np.ndarray((count,), text.dtype, rows, at, (stride,))
            if text.size == 1 and covered <= at:
                # Nothing is ever written over it.
                places[:] = text
            else:
                self._varying.append((places, text))
                covered = max(covered, at + text.dtype.itemsize)
            at += cells.size if isinstance(cells.size, int) else 0
        self._fixed = at
        last = piece[-1].size
        self._size = None if isinstance(last, int) else last

    def write(self, here: slice) -> Ints | int:
        """Lay out these rows of all, from the first on; where each ends."""
        for places, text in self._varying:
            part = text[here] if text.size > 1 else text
            places[: here.stop - here.start] = part
        return self._fixed if self._size is None else self._size[here] + self._fixed


class _Scatter:
    """Lays a piece out behind what stands in each row."""

    def __init__(self, piece: Sequence[Cells], rows: NDArray[Any], count: int) -> None:
        self._joined = np.empty(count, _item(_width(piece)))
        self._writer = _Writer(piece, self._joined, self._joined.itemsize, count)
        room = rows.nbytes - self._joined.itemsize + 1
        self._places = np.ndarray((room,), self._joined.dtype, rows, 0, (1,))

    def write(self, here: slice, at: Ints) -> Ints | int:
        """Lay out these rows of all, each where ``at`` says; what each is long."""
        size = self._writer.write(here)
        self._places[at] = self._joined[: at.size]
        return size


def _joined(piece: Sequence[Cells], count: int) -> Cells:
    """A piece as one column."""
    if len(piece) == 1:
        return piece[0]
    width = _width(piece)
    text = np.empty(count, _item(width))
    size = _Writer(piece, text, width, count).write(slice(0, count))
    return Cells(text=text, size=size)


def _lay(columns: Sequence[Column], count: int, most: int) -> Iterator[tuple[NDArray[Any], Ints]]:
    """Rows from the first to the last, at most so many at a time, and their sizes.

    An item holds one row, left-justified. It is valid until the next is asked for.
    """
    pieces = _pieces(columns)
    if not pieces or not count:
        return
    width = sum(map(_width, pieces))
    most = min(count, most)
    rows = np.empty(most, _item(width))
    head = _Writer(pieces[0], rows, width, most)
    others = [_Scatter(piece, rows, most) for piece in pieces[1:]]
    starts = np.arange(0, most * width, width)
    for first in range(0, count, most):
        here = slice(first, min(first + most, count))
        start = starts[: here.stop - here.start]
        at = start + head.write(here)
        for piece in others:
            at += piece.write(here, at)
        at -= start
        yield rows[: start.size], at


def lines(columns: Sequence[Column], count: int) -> bytes:
    """The sheet of ``count`` rows as bytes, row by row; every row's text as its columns say."""
    parts = []
    for rows, size in _lay(columns, count, _ROWS):
        ends = size.cumsum()
        # Each row is copied as wide as the widest is, the next one covers what is too much.
        item = _item(max(int(size.max()), 1))
        packed = np.empty(int(ends[-1]) + item.itemsize, np.uint8)
        places = np.ndarray((packed.size - item.itemsize + 1,), item, packed, 0, (1,))
        places[ends - size] = np.ndarray(rows.shape, item, rows, 0, rows.strides)
        parts.append(packed[: ends[-1]].data)
    return b"".join(parts)


def texts(columns: Sequence[Column], count: int) -> Cells:
    """The sheet of ``count`` rows as one column again."""
    for rows, size in _lay(columns, count, count):
        return Cells(text=rows, size=size)
    return Cells(text=np.zeros(1, "S1"), size=0)
