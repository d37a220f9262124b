"""Batches of raw frames keep all they were given, whatever rows are taken and wherever they go."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from savefile_cases import Row, captures, laid_out
from savefile_reading import rows_of as plainly

from vsockdump.frames import SLACK, FrameBatch, Interface, Section, gather


class Whole(NamedTuple):
    """A row of a batch as plain values."""

    number: int
    row: Row


def rows_of(batch: FrameBatch) -> list[Whole]:
    assert len(batch) == batch.offset.size
    for name in ("offset", "caplen", "origlen", "time_ns", "interface", "number"):
        column = getattr(batch, name)
        assert (column.shape, column.dtype) == ((len(batch),), np.int64), name
    ends = batch.offset + batch.caplen
    assert not len(batch) or int(ends.max()) <= batch.buf.size - SLACK
    assert set(batch.options) <= set(range(len(batch)))
    return [Whole(*each) for each in zip(batch.number.tolist(), plainly(batch), strict=True)]


@st.composite
def batches(draw: st.DrawFn) -> tuple[FrameBatch, list[Whole]]:
    known, drawn = draw(captures())
    rows = [row for _, some in drawn for row in some]
    first = draw(st.integers(1, 2**40))
    whole = [Whole(first + place, row) for place, row in enumerate(rows)]
    return laid_out(rows, known, number=first), whole


@given(batches(), st.data())
def test_rows_taken_are_those_asked_for(
    made: tuple[FrameBatch, list[Whole]], data: st.DataObject
) -> None:
    batch, rows = made
    assert rows_of(batch) == rows
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    assert rows_of(batch.take(np.array(mask, bool))) == [
        row for row, kept in zip(rows, mask, strict=True) if kept
    ]
    part = data.draw(st.slices(len(rows)))
    assert rows_of(batch.take(part)) == rows[part]
    # Any order, the same row more than once, and counted from the end.
    some = st.lists(st.integers(-len(rows), len(rows) - 1), max_size=9) if rows else st.just([])
    indices = data.draw(some)
    taken = batch.take(np.array(indices, np.int64))
    assert rows_of(taken) == [rows[index] for index in indices]
    assert taken.buf is batch.buf


@given(batches())
def test_a_copy_outlives_the_buffer(made: tuple[FrameBatch, list[Whole]]) -> None:
    batch, rows = made
    buf = batch.buf.copy()
    source = FrameBatch(
        buf=buf,
        offset=batch.offset,
        caplen=batch.caplen,
        origlen=batch.origlen,
        time_ns=batch.time_ns,
        interface=batch.interface,
        number=batch.number,
        interfaces=batch.interfaces,
        options=batch.options,
    )
    copy = source.copy()
    buf[:] = 0
    for name in ("offset", "caplen", "origlen", "time_ns", "interface", "number"):
        getattr(source, name)[:] = 0
    assert rows_of(copy) == rows
    assert copy.buf.size == sum(len(whole.row.data) for whole in rows) + SLACK
    assert list(copy.interfaces) == list(batch.interfaces)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_a_batch_of_bytes_defaults_to_what_is_there(frames: list[bytes]) -> None:
    batch = FrameBatch.of(frames, first_number=7)
    assert rows_of(batch) == [
        Whole(7 + place, Row(data, len(data), 0, 0)) for place, data in enumerate(frames)
    ]
    assert list(batch.interfaces) == [Interface()]


def test_a_batch_of_bytes_takes_every_column() -> None:
    two = [Interface(name="a"), Interface(name="b")]
    batch = FrameBatch.of(
        [b"x", b"yy"], time_ns=[5, 6], origlen=[9, 8], interface=[1, 0], interfaces=two
    )
    assert [whole.row for whole in rows_of(batch)] == [Row(b"x", 9, 5, 1), Row(b"yy", 8, 6, 0)]


def test_an_interface_names_the_kernel_its_section_knows() -> None:
    section = Section(os="Linux 6.1.0")
    assert Interface(section=section).kernel == section.os
    assert Interface(section=section, os="Linux 6.12.117").kernel == "Linux 6.12.117"
    assert Interface().kernel == ""


def test_values_cannot_be_changed() -> None:
    batch = FrameBatch.of([b"x"])
    with pytest.raises(FrozenInstanceError):
        batch.buf = np.zeros(0, np.uint8)  # type: ignore[misc]


dtypes = st.sampled_from([np.dtype("u1"), np.dtype("<u2"), np.dtype(">u4"), np.dtype("<u4,>u2,u1")])


@given(st.binary(max_size=64), dtypes, st.data())
def test_records_are_gathered_at_any_offset(
    data: bytes, dtype: np.dtype[Any], draw: st.DataObject
) -> None:
    buf = np.frombuffer(data, np.uint8)
    room = buf.size - dtype.itemsize
    places = draw.draw(st.lists(st.integers(0, max(room, 0)), max_size=8))
    records = gather(buf, np.array(places, np.int64), dtype)
    assert (records.shape, records.dtype) == ((len(places),), dtype)
    expected = [data[place : place + dtype.itemsize] if room >= 0 else b"" for place in places]
    assert records.tobytes() == b"".join(each.ljust(dtype.itemsize, b"\0") for each in expected)
