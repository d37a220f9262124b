"""The column back end: a syntax tree as a function from a batch of packets to a mask.

Strategy: the folded tree is turned once into closures, each of which takes a batch and gives a
column; running it costs one call a node and numpy's loops, no look at single rows. Comparisons of
one field with several numbers become one look-up.

Invariants:

- a value is a column or a Python number, with a mask of the rows where it is there (None: all);
- a narrow column is uint16 or uint32 when read and uint32 when calculated with, a wide one uint64,
  so that numpy wraps where the kernel's filter machine does;
- any batch gives a mask of its length, and nothing in it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.filters import names, tree
from vsockdump.filters.fold import CALCULATE, RELATE, fold
from vsockdump.filters.tree import Node, Number, Value
from vsockdump.frames import Bools, Ints, gather
from vsockdump.packets import Layer, PacketBatch
from vsockdump.tracking.columns import TrackedBatch

Column = NDArray[Any] | int
Present = Bools | None
Condition = Callable[["Rows"], Bools]
Operand = Callable[["Rows"], tuple[Column, Present]]

_FEW: Final = 16
"""Up to so many numbers, as many comparisons of a contiguous column beat a look-up."""
_TABLE: Final = 1 << 16
"""Numbers no further apart than this are looked up in a table, others by bisection."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """One batch being filtered, and what has been found out about all of its rows."""

    batch: PacketBatch
    tracked: TrackedBatch | None
    mon: Present
    virtio: Present
    frame_bytes: Ints | None = None

    def available(self) -> Ints:
        """Bytes from the start of the vsockmon header to the frame's end; 0 if there is none."""
        if self.frame_bytes is None:
            batch = self.batch
            here = batch.frames.offset + batch.frames.caplen - batch.start
            if batch.stop_rows.size:
                # Only a frame whose link layer leads nowhere has bytes that are not vsockmon's.
                here[batch.stop_rows[batch.stops["layer"] == Layer.LINK]] = 0
            self.frame_bytes = here
        return self.frame_bytes

    def tracking(self) -> TrackedBatch:
        """The tracker's columns; whoever runs a filter that needs them has seen to it."""
        assert self.tracked is not None
        return self.tracked


def plan(node: Node) -> Callable[[PacketBatch, TrackedBatch | None], Bools]:
    """The mask of a filter, as a function of a batch and its tracking."""
    condition = _condition(fold(node))

    def mask(batch: PacketBatch, tracked: TrackedBatch | None) -> Bools:
        rows = Rows(
            batch=batch,
            tracked=tracked,
            mon=None if batch.has_mon.all() else batch.has_mon,
            virtio=None if batch.has_virtio.all() else batch.has_virtio,
        )
        return condition(rows)

    return mask


# --- conditions: each returns a mask of its own, which the caller may write to


def _condition(node: Node) -> Condition:
    match node:
        case tree.And():
            return _and([_condition(term) for term in node.terms])
        case tree.Or():
            return _or(node.terms)
        case tree.Not():
            inner = _condition(node.term)
            return lambda rows: np.logical_not(inner(rows))
        case tree.Compare():
            return _compare(node)
        case tree.InState():
            return _in_state(node)
        case tree.Stalled():
            return lambda rows: np.array(rows.tracking().stalled)
        case tree.Finding():
            return lambda rows: np.array(rows.tracking().finding(node.code))


def _and(terms: Sequence[Condition]) -> Condition:
    def mask(rows: Rows) -> Bools:
        if not terms:
            return np.ones(len(rows.batch), np.bool_)
        kept = terms[0](rows)
        for term in terms[1:]:
            if not kept.any():
                break
            kept &= term(rows)
        return kept

    return mask


def _or(terms: Sequence[Node]) -> Condition:
    """A disjunction, in which the numbers one value is compared with are looked up together."""
    numbers: dict[Value, list[int]] = {}
    conditions: list[Condition] = []
    for term in terms:
        if (
            isinstance(term, tree.Compare)
            and term.relation == "=="
            and isinstance(term.right, Number)
        ):
            numbers.setdefault(term.left, []).append(term.right.value)
        else:
            conditions.append(_condition(term))
    conditions[:0] = [_one_of(value, members) for value, members in numbers.items()]

    def mask(rows: Rows) -> Bools:
        if not conditions:
            return np.zeros(len(rows.batch), np.bool_)
        kept = conditions[0](rows)
        for condition in conditions[1:]:
            kept |= condition(rows)
        return kept

    return mask


def _one_of(value: Value, members: list[int]) -> Condition:
    operand = _operand(value)
    # np.unique would load numpy.ma, which takes as long as all else here.
    ordered = np.array(sorted(set(members)), np.uint64)

    def mask(rows: Rows) -> Bools:
        column, present = operand(rows)
        assert not isinstance(column, int)
        wanted = ordered[ordered <= np.iinfo(column.dtype).max].astype(column.dtype)
        return _where(_found(column, wanted), present)

    return mask


def _found(column: NDArray[Any], wanted: NDArray[Any]) -> Bools:
    """Where the column is one of ``wanted``: ascending, of the column's dtype, at least one."""
    if wanted.size == 1:
        return np.asarray(column == wanted[0])
    if not wanted.size:
        return np.zeros(column.size, np.bool_)
    column = np.ascontiguousarray(column)
    span = int(wanted[-1] - wanted[0])
    if wanted.size <= _FEW:
        kept = column == wanted[0]
        for number in wanted[1:]:
            kept |= column == number
        return np.asarray(kept)
    if span < min(_TABLE, np.iinfo(column.dtype).max):
        table = np.zeros(span + 2, np.bool_)
        table[(wanted - wanted[0]).astype(np.int64)] = True
        # What lies below the first wraps around to far above the last.
        return np.asarray(table[np.minimum(column - wanted[0], column.dtype.type(span + 1))])
    place = np.searchsorted(wanted, column)
    place[place == wanted.size] = 0
    return np.asarray(wanted[place] == column)


def _compare(node: tree.Compare) -> Condition:
    left, right = _operand(node.left), _operand(node.right)
    relate = RELATE[node.relation]

    def mask(rows: Rows) -> Bools:
        one, one_there = left(rows)
        other, other_there = right(rows)
        kept: Bools = relate(one, other)
        return _where(_where(kept, one_there), other_there)

    return mask


def _in_state(node: tree.InState) -> Condition:
    code = names.STATES[node.state]
    return lambda rows: np.asarray(rows.tracking().state == code)


def _where(kept: Bools, present: Present) -> Bools:
    if present is not None:
        kept &= present
    return kept


def _both(one: Present, other: Present) -> Present:
    if one is None or other is None:
        return other if one is None else one
    return one & other


# --- values


def _operand(value: Value) -> Operand:
    match value:
        case Number():
            number = value.value
            return lambda rows: (number, None)
        case tree.Header():
            return _header(value.name)
        case tree.Caplen():
            return lambda rows: (rows.batch.frames.caplen.astype(np.uint64), None)
        case tree.Raw():
            return _raw(value)
        case tree.Tracked():
            return _tracked(value)
        case tree.Binary():
            return _binary(value)


def _header(name: str) -> Operand:
    if name in wire.MON_FIELDS:
        return lambda rows: (rows.batch.headers[name], rows.mon)
    return lambda rows: (rows.batch.headers[name], rows.virtio)


def _tracked(value: tree.Tracked) -> Operand:
    def column(rows: Rows) -> tuple[Column, Present]:
        numbers, known = rows.tracking().number(value.name)
        return numbers.astype(np.uint64), known

    return column


def _raw(value: tree.Raw) -> Operand:
    offset = _operand(value.offset)
    dtype = np.dtype(f"<u{value.size}")
    of_payload = value.base == "payload"

    def column(rows: Rows) -> tuple[Column, Present]:
        at, at_there = offset(rows)
        wanted = np.int64(at) if isinstance(at, int) else at.astype(np.int64)
        batch = rows.batch
        start, size = (
            (batch.payload, batch.captured) if of_payload else (batch.start, rows.available())
        )
        there = wanted + value.size <= size
        if at_there is not None:
            there &= at_there
        if there.all():
            return gather(batch.frames.buf, start + wanted, dtype), None
        return gather(batch.frames.buf, np.where(there, start + wanted, 0), dtype), there

    return column


def _binary(value: tree.Binary) -> Operand:
    left, right = _operand(value.left), _operand(value.right)
    calculate = CALCULATE[value.operator]
    dtype: Any = np.uint64 if tree.is_wide(value) else np.uint32
    bits = tree.WIDE_BITS if tree.is_wide(value) else tree.NARROW_BITS
    divides = value.operator in "/%"
    shifts = value.operator in ("<<", ">>")

    def column(rows: Rows) -> tuple[Column, Present]:
        one, one_there = left(rows)
        other, other_there = right(rows)
        one = dtype(one) if isinstance(one, int) else one.astype(dtype)
        other = dtype(other) if isinstance(other, int) else other.astype(dtype)
        there = _both(one_there, other_there)
        if other.ndim and (divides or shifts):
            sound = other != 0 if divides else other < bits
            other = np.where(sound, other, dtype(1))
            there = _both(there, sound)
        return calculate(one, other), there

    return column
