"""Names of numbers as bytes, for columns of text; and the escaping of text from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface, Ints
from vsockdump.sinks.sheet import (
    Cells,
    Column,
    Table,
    choose,
    distinct,
    number,
    only,
    small_distinct,
    texts,
    unique,
)

LONGEST_NAME: Final = 64
_REMEMBERED: Final = 256
"""Combinations of numbers whose text is kept. Real traffic shows a dozen, hostile any."""
_TEXT: Final = 32
"""Bytes of the text of a pair in most captures; a multiple of it holds the longest."""
_ADDRESSES: Final = 3
"""Words of 64 bits at the start of a header record: both CIDs, and both ports."""


def escape(text: str) -> str:
    r"""The text with everything that is not printable written as ``\xNN`` or ``\uNNNN``.

    A terminal obeys control bytes, and a guest or a file may carry any: nothing from outside is
    printed without passing here.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def interface_name(interface: Interface) -> str:
    """An interface's name, at most 64 characters of it: a file may claim one of any length."""
    return interface.name[:LONGEST_NAME]


def of_interfaces(frames: FrameBatch, spell: Callable[[Interface], bytes]) -> Column:
    """What ``spell`` says of each row's interface; asked only of those the rows have."""
    if len(frames.interfaces) == 1:
        return spell(frames.interfaces[0])
    found, which = unique(frames.interface)
    return choose([spell(frames.interfaces[place]) for place in found.tolist()], which)


def name_of(kind: type[IntEnum], value: int) -> bytes:
    """A value's name in ``kind``; its number if it has none."""
    name = _names(kind).get(value)
    return b"%d" % value if name is None else name


@lru_cache(maxsize=8)
def _names(kind: type[IntEnum]) -> dict[int, bytes]:
    return {int(member): member.name.encode() for member in kind}


def cid_names(values: NDArray[Any], *, numeric: bool) -> list[Column]:
    """CIDs as text: ``host`` and its like by name unless ``numeric``."""
    if numeric:
        return number(values)
    named = np.zeros(values.size, np.intp)
    table = [b""]
    for cid, name in wire.CID_NAMES.items():
        named[values == cid] = len(table)
        table.append(name.encode())
    return [choose(table, named), *only(named == 0, number(values))]


class Combined:
    """Texts of combinations of small numbers, each spelled when a packet first shows it."""

    def __init__(self, spell: Callable[..., bytes], bits: Sequence[int]) -> None:
        """``spell`` makes the text of one number of each kind; those of a kind may have
        ``bits`` (16 in all) to be remembered. It is asked of any, again where they have more.
        """
        self._spell = spell
        self._bits = bits
        self._place = np.full(1 << sum(bits), -1, np.int16)
        self._known: list[bytes] = []
        self._table = Table([b""])

    def column(self, *keys: NDArray[Any]) -> Column:
        """The text of every row by its number in each of the keys, shape (n,)."""
        if not keys[0].size:
            return b""
        keys = tuple(map(np.ascontiguousarray, keys))
        index = np.zeros(keys[0].size, np.uint16)
        shift = 0
        for key, bits in zip(keys, self._bits, strict=True):
            if int(key.max()) >> bits:
                return self._unknown(keys)
            index |= key.astype(np.uint16) << np.uint16(shift)
            shift += bits
        place = self._place.take(index)
        if int(place.min()) < 0:
            new = np.flatnonzero(place < 0)
            first = new[small_distinct(index[new].astype(np.int64))[0]]
            if len(self._known) + first.size > _REMEMBERED:
                return self._unknown(keys)
            self._place[index[first]] = len(self._known) + np.arange(first.size)
            self._known += self._spelled(keys, first)
            self._table = Table(self._known)
            place = self._place.take(index)
        return self._table.take(place)

    def __len__(self) -> int:
        """Texts that are kept."""
        return len(self._known)

    def _unknown(self, keys: Sequence[NDArray[Any]]) -> Column:
        first, which = distinct(*keys)
        return choose(self._spelled(keys, first), which)

    def _spelled(self, keys: Sequence[NDArray[Any]], rows: Ints) -> list[bytes]:
        return list(map(self._spell, *(key[rows].tolist() for key in keys)))


class PairTexts:
    """What is printed of both ends of a packet, spelled once for each direction of a connection.

    Remembers what was spelled for a ``way`` (TrackedBatch), and looks whether the addresses are
    still those: ways are used again, and loopback packets of one may name different CIDs. All that
    is known of a way is one record, to be fetched from memory at once.
    """

    def __init__(self, spell: Callable[[NDArray[Any]], list[Column]]) -> None:
        """``spell`` makes the columns of header records, ``wire.HEADERS``."""
        self._spell = spell
        self._width = _TEXT
        self._records = np.zeros(0, f"V{_pair(self._width).itemsize}")

    def column(self, headers: NDArray[Any], way: Ints | None) -> Column:
        """The text of every row; ``way`` None: connections are not known."""
        if way is None or not way.size:
            return self._column(headers)
        self._grow(int(way.max()) + 1, self._width)
        addresses = _addresses(headers)
        found = self._records.take(way)
        other = self._other(found, addresses)
        if other.size:
            shown, _ = small_distinct(way[other])
            rows = other[shown]
            self._tell(_take(headers, rows), way[rows])
            again = self._records.take(way[other])
            if self._other(again, addresses[other]).size:
                return self._column(headers)
            if again.dtype == found.dtype:
                found[other] = again
            else:
                found = self._records.take(way)
        records = found.view(_pair(self._width))
        return Cells(text=records["text"], size=records["size"].copy()).settled()

    def _column(self, headers: NDArray[Any]) -> Column:
        first, which = distinct(*_addresses(headers).T)
        return texts(self._spell(_take(headers, first)), first.size).take(which)

    def _other(self, found: NDArray[Any], addresses: NDArray[Any]) -> Ints:
        """The rows for whose addresses nothing is spelled."""
        records = found.view(_pair(self._width))
        same = records["size"] != 0
        for place in range(_ADDRESSES):
            same &= records["addresses"][:, place] == addresses[:, place]
        return np.zeros(0, np.int64) if same.all() else np.flatnonzero(~same)

    def _grow(self, ways: int, width: int) -> None:
        """Room for so many ways, and for texts of that many bytes."""
        old = self._records
        if ways <= old.size and width == self._width:
            return
        ways = max(ways, 2 * old.size) if ways > old.size else old.size
        self._records = np.zeros(ways, f"V{_pair(width).itemsize}")
        if width == self._width:
            self._records[: old.size] = old
        else:
            self._records[: old.size] = _widened(old, self._records.itemsize)
        self._width = width

    def _tell(self, headers: NDArray[Any], way: Ints) -> None:
        """Spell the addresses of these headers, one of each way."""
        spelled = texts(self._spell(headers), way.size)
        longest = int(np.max(spelled.size))
        self._grow(0, max(self._width, -(-longest // _TEXT) * _TEXT))
        words = np.empty((way.size, self._records.itemsize // 8), np.uint64)
        words[:, :_ADDRESSES] = _addresses(headers)
        words[:, _ADDRESSES] = spelled.size
        words.view(np.uint8)[:, -self._width :] = _bytes(_widened(spelled.text, self._width))
        self._records[way] = words.view(self._records.dtype).ravel()


@lru_cache(maxsize=8)
def _pair(width: int) -> np.dtype[Any]:
    """What is known of a way: its addresses and the text, ``size`` bytes; 0: nothing is known."""
    return np.dtype([("addresses", "<u8", _ADDRESSES), ("size", np.int64), ("text", f"V{width}")])


def _addresses(headers: NDArray[Any]) -> NDArray[np.uint64]:
    """Both CIDs and ports of each header record, shape (n, 3)."""
    words = np.ascontiguousarray(headers).view("<u8").reshape(headers.size, headers.itemsize // 8)
    return words[:, :_ADDRESSES]


def _take(headers: NDArray[Any], rows: Ints) -> NDArray[Any]:
    """The header records of these rows; numpy copies items of many fields one by one."""
    whole = np.ascontiguousarray(headers).view(f"V{headers.itemsize}")
    return whole.take(rows).view(headers.dtype)


def _bytes(items: NDArray[Any]) -> NDArray[np.uint8]:
    return items.view(np.uint8).reshape(items.size, items.itemsize)


def _widened(items: NDArray[Any], width: int) -> NDArray[Any]:
    """The items in so many bytes: all of theirs and then NUL, or the first ones."""
    wide = np.zeros(items.size, f"V{width}")
    common = min(width, items.itemsize)
    _bytes(wide)[:, :common] = _bytes(items)[:, :common]
    return wide


def pair_texts(*, numeric: bool) -> PairTexts:
    """``src.port > dst.port: `` of packets."""

    def spell(headers: NDArray[Any]) -> list[Column]:
        return [
            *cid_names(headers["src_cid"], numeric=numeric),
            b".",
            *number(headers["src_port"]),
            b" > ",
            *cid_names(headers["dst_cid"], numeric=numeric),
            b".",
            *number(headers["dst_port"]),
            b": ",
        ]

    return PairTexts(spell)
