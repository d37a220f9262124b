"""Names of numbers as bytes, for columns of text; and the escaping of text from outside."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface, Ints
from vsockdump.packets import PacketBatch
from vsockdump.sinks.sheet import (
    Column,
    choose,
    distinct,
    number,
    only,
    small_distinct,
    texts,
    unique,
)

LONGEST_NAME: Final = 64


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


def enum_names(
    kind: type[IntEnum], values: NDArray[Any], *, quote: bytes = b"", after: bytes = b""
) -> list[Column]:
    """Each value by its name in ``kind``, the rest as numbers; ``after`` follows either.

    Names alone stand in ``quote``.
    """
    size = max(kind) + 1
    table = [b""] * (size + 1)
    for member in kind:
        table[member] = quote + member.name.encode() + quote + after
    unnamed = [value for value in range(size) if not table[value]]
    index = np.minimum(values, size).astype(np.intp)
    columns = [choose(table, index)]
    odd = index == size
    for value in unnamed:
        odd = odd | (index == value)
    if odd.any():
        columns += only(odd, [*number(values), after])
    return columns


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


def flag_texts(batch: PacketBatch, joiner: str, before: str, after: str) -> tuple[Any, list[bytes]]:
    """The flags of each packet by name: for every row an index into a list of few texts.

    Text 0 is empty: no flags. Others stand between ``before`` and ``after``.
    """
    headers = batch.headers
    table, index = [b""], np.zeros(len(batch), np.intp)
    rows = np.flatnonzero(headers["flags"])
    if rows.size:
        keys = [headers[name][rows] for name in ("op", "type", "flags")]
        first, which = distinct(*keys)
        for op, type_, flags in zip(*(key[first].tolist() for key in keys), strict=True):
            names = joiner.join(wire.flag_names(op, type_, flags))
            table.append(f"{before}{names}{after}".encode())
        index[rows] = which + 1
    return index, table


class PairTexts:
    """``src.port > dst.port: `` of packets, spelled once for each direction of a connection.

    Remembers what was spelled for a ``way`` (TrackedBatch), and looks whether the addresses are
    still those: ways are used again, and loopback packets of one may name different CIDs.
    """

    def __init__(self, *, numeric: bool) -> None:
        self._numeric = numeric
        self._known = np.zeros((0, 3), np.uint64)
        self._told = np.zeros(0, np.bool_)
        self._spelled = np.zeros(0, "S1")

    def column(self, batch: PacketBatch, way: Ints | None) -> Column:
        """The text of every row; ``way`` None: connections are not known."""
        headers = batch.headers
        keys = np.empty((len(batch), 3), np.uint64)
        keys[:, 0], keys[:, 1] = headers["src_cid"], headers["dst_cid"]
        keys[:, 2] = headers["src_port"].astype(np.uint64) << np.uint64(32) | headers["dst_port"]
        if way is not None:
            self._grow(int(way.max()) + 1 if way.size else 0)
            rows = self._unknown(keys, way)
            if rows.size:
                shown, _ = small_distinct(way[rows])
                self._tell(keys[rows[shown]], way[rows[shown]])
                rows = self._unknown(keys, way)
            if not rows.size:
                return self._spelled[way]
        first, which = distinct(*keys.T)
        return self._spell(keys[first])[which]

    def _unknown(self, keys: NDArray[np.uint64], way: Ints) -> Ints:
        """The rows whose addresses are not those that were spelled for their way."""
        other = self._known[way] != keys
        told = self._told[way]
        if told.all() and not other.any():
            return np.zeros(0, np.int64)
        return np.flatnonzero(~told | other.any(axis=1))

    def _grow(self, size: int) -> None:
        more = size - self._told.size
        if more > 0:
            more = max(more, self._told.size)
            self._known = np.concatenate([self._known, np.zeros((more, 3), np.uint64)])
            self._told = np.concatenate([self._told, np.zeros(more, np.bool_)])
            self._spelled = np.concatenate([self._spelled, np.zeros(more, self._spelled.dtype)])

    def _tell(self, keys: NDArray[np.uint64], way: Ints) -> None:
        spelled = self._spell(keys)
        if spelled.dtype.itemsize > self._spelled.dtype.itemsize:
            self._spelled = self._spelled.astype(spelled.dtype)
        self._known[way], self._told[way], self._spelled[way] = keys, True, spelled

    def _spell(self, keys: NDArray[np.uint64]) -> NDArray[np.bytes_]:
        ports = np.uint64(0xFFFF_FFFF)
        return texts(
            [
                *cid_names(keys[:, 0], numeric=self._numeric),
                b".",
                *number(keys[:, 2] >> np.uint64(32)),
                b" > ",
                *cid_names(keys[:, 1], numeric=self._numeric),
                b".",
                *number(keys[:, 2] & ports),
                b": ",
            ],
            len(keys),
        )
