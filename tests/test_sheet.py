"""Sheets of columns say what Python's own formatting says, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsockdump.sinks import sheet
from vsockdump.sinks.sheet import Cells, Column

EDGES = [10**n + d for n in range(20) for d in (-1, 0, 1)] + [2**n - 1 for n in (16, 32, 63, 64)]
naturals = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1) | st.integers(0, 2000)
small = st.integers(0, 2)
cells = st.binary(max_size=4).map(lambda cell: cell.translate(None, b"\0\n"))


def column(texts: list[bytes], beyond: bytes = b"\xff") -> Cells:
    """A column that says these texts, and has something beyond each of them."""
    width = max(map(len, texts), default=0) + len(beyond)
    items = [(text + beyond * width)[:width] for text in texts]
    sizes = np.array(list(map(len, texts)), np.int64)
    return Cells(text=np.array(items, f"V{max(width, 1)}"), size=sizes)


def told(column: Cells, count: int) -> list[bytes]:
    """What each row of a column says."""
    sizes = [column.size] * count if isinstance(column.size, int) else column.size.tolist()
    return [item.tobytes()[:size] for item, size in zip(column.text, sizes, strict=True)]


def array(values: list[int], dtype: Any = np.uint64) -> NDArray[Any]:
    return np.array(values, dtype)


def rows(columns: list[Column], count: int) -> list[bytes]:
    """What each row says."""
    return sheet.lines([*columns, b"\n"], count).split(b"\n")[:-1]


@given(st.lists(naturals), st.sampled_from([np.uint64, np.int64, np.uint32, np.uint16]))
def test_numbers_are_decimal(values: list[int], dtype: Any) -> None:
    values = [value for value in values if value <= np.iinfo(dtype).max]
    spelled = rows(sheet.number(array(values, dtype)), len(values))
    assert spelled == [b"%d" % value for value in values]


@given(st.lists(naturals), st.integers(1, 20))
def test_fixed_numbers_have_all_their_digits(values: list[int], digits: int) -> None:
    values = [value % 10**digits for value in values]
    spelled = rows(sheet.fixed(array(values), digits), len(values))
    assert spelled == [b"%0*d" % (digits, value) for value in values]


@given(st.lists(st.tuples(st.booleans(), cells, cells)), cells)
def test_only_blanks_the_other_rows(
    drawn: list[tuple[bool, bytes, bytes]], constant: bytes
) -> None:
    shown = np.array([row[0] for row in drawn], np.bool_)
    columns = [constant, column([row[1] for row in drawn]), column([row[2] for row in drawn])]
    spelled = rows(sheet.only(shown, [*columns, constant]), len(drawn))
    assert spelled == [
        constant + first + second + constant if show else b"" for show, first, second in drawn
    ]


@given(st.lists(st.integers(0, 3)), st.lists(cells, min_size=4, max_size=4))
def test_choose_takes_one_of_the_table(index: list[int], table: list[bytes]) -> None:
    chosen = sheet.choose(table, np.array(index, np.int64))
    assert rows([chosen], len(index)) == [table[place] for place in index]


@given(st.lists(cells, min_size=1), st.data())
def test_rows_of_a_column_can_be_taken(texts: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1))
    for whole in (column(texts), column(texts).settled()):
        taken = whole.take(np.array(index))
        assert told(taken, len(index)) == [texts[place] for place in index]
        assert isinstance(whole.settled().size, int) == (len(set(map(len, texts))) == 1)


@given(st.lists(st.tuples(small, small, naturals)))
def test_distinct_finds_each_combination_once(drawn: list[tuple[int, int, int]]) -> None:
    keys = [array([row[place] for row in drawn]) for place in range(3)]
    first, which = sheet.distinct(*keys)
    assert all(np.array_equal(key[first][which], key) for key in keys)
    assert len(first) == len(set(drawn))


def test_distinct_survives_two_combinations_with_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    real = np.unique
    monkeypatch.setattr(np, "unique", lambda mixed, **more: real(np.zeros_like(mixed), **more))
    keys = [array([1, 1, 2, 1]), array([1, 1, 1, 2])]
    first, which = sheet.distinct(*keys)
    assert all(np.array_equal(key[first][which], key) for key in keys)


@given(st.lists(naturals) | st.tuples(naturals, st.integers(1, 9)).map(lambda x: [x[0]] * x[1]))
def test_unique_gives_back_the_column(values: list[int]) -> None:
    found, which = sheet.unique(array(values))
    assert np.array_equal(found[which], array(values))
    assert found.tolist() == sorted(set(values))


@st.composite
def sheets(draw: st.DrawFn) -> tuple[list[Column], int, list[bytes]]:
    """Columns (some the same for all rows), how many rows, and what each row says."""
    count = draw(st.integers(0, 6))
    texts = [b""] * count
    columns: list[Column] = []
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            constant = draw(cells)
            columns.append(constant)
            texts = [text + constant for text in texts]
        else:
            varying = draw(st.lists(cells, min_size=count, max_size=count))
            spelled = column(varying, draw(st.sampled_from([b"", b"\xff", b"\xff" * 9])))
            columns.append(spelled.settled() if draw(st.booleans()) else spelled)
            texts = [text + cell for text, cell in zip(texts, varying, strict=True)]
    return columns, count, texts


@given(sheets())
def test_lines_lay_columns_side_by_side(drawn: tuple[list[Column], int, list[bytes]]) -> None:
    columns, count, texts = drawn
    assert sheet.lines([*columns, b"\n"], count) == b"".join(text + b"\n" for text in texts)


@given(sheets(), st.integers(1, 3))
def test_lines_are_the_same_however_many_rows_are_laid_out_at_a_time(
    drawn: tuple[list[Column], int, list[bytes]], most: int
) -> None:
    columns, count, texts = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sheet, "_ROWS", most)
        assert sheet.lines([*columns, b"\n"], count) == b"".join(text + b"\n" for text in texts)


@given(sheets())
def test_texts_are_a_column_again(drawn: tuple[list[Column], int, list[bytes]]) -> None:
    columns, count, texts = drawn
    again = sheet.texts(columns, count)
    assert rows([again], count) == texts


def test_a_sheet_of_nothing_is_empty() -> None:
    assert sheet.lines([], 3) == b""
    assert sheet.lines([b"", b""], 3) == b""
    assert sheet.number(array([])) == []
    assert sheet.only(np.zeros(0, np.bool_), [b"a"]) == [b"a"]
