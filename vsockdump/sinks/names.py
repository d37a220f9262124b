"""Names of numbers as bytes, for columns of text; and the escaping of text from outside."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface
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


def pair_texts(batch: PacketBatch, way: NDArray[Any] | None, *, numeric: bool) -> Column:
    """``src.port > dst.port: `` of every row, each distinct pair spelled once.

    ``way`` (small integers) tells directions of connections apart, which saves looking for pairs.
    """
    headers = batch.headers
    keys = [headers[name] for name in ("src_cid", "dst_cid", "src_port", "dst_port")]
    first, which = distinct(*keys) if way is None else small_distinct(way)
    if way is not None and not all(np.array_equal(key[first][which], key) for key in keys):
        first, which = distinct(*keys)
    src_cid, dst_cid, src_port, dst_port = (key[first] for key in keys)
    spelled = texts(
        [
            *cid_names(src_cid, numeric=numeric),
            b".",
            *number(src_port),
            b" > ",
            *cid_names(dst_cid, numeric=numeric),
            b".",
            *number(dst_port),
            b": ",
        ],
        first.size,
    )
    return spelled[which]
