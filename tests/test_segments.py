from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vsockdump.tracking.segments import Runs, argsort, places

NONE = -1

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9)


@st.composite
def runs_and(draw: st.DrawFn, values: st.SearchStrategy[int]) -> tuple[Runs, list[list[int]]]:
    """Runs, and a value for each of their rows, run by run."""
    parts = [draw(st.lists(values, min_size=n, max_size=n)) for n in draw(lengths)]
    starts = [row == 0 for part in parts for row in range(len(part))]
    return Runs.of(np.array(starts)), parts


def flat(parts: list[list[int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([value for part in parts for value in part], np.int64)


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1) | st.integers(0, 2**63 - 1)))
def test_argsort_is_a_stable_order(values: list[int]) -> None:
    expected = sorted(range(len(values)), key=values.__getitem__)
    assert argsort(np.array(values, np.int64)).tolist() == expected


@given(runs_and(st.integers(-(2**62), 2**62)))
def test_sums_start_anew_in_every_run(case: tuple[Runs, list[list[int]]]) -> None:
    runs, parts = case
    small = [[value // 16 for value in part] for part in parts]
    running = runs.cumsum(flat(small)).tolist()
    assert running == [total for part in small for total in accumulate(part)]
    assert runs.sum(flat(small)).tolist() == [sum(part) for part in small]
    assert runs.smallest(flat(parts)).tolist() == [min(part) for part in parts]
    assert runs.largest(flat(parts)).tolist() == [max(part) for part in parts]


@given(runs_and(st.integers(0, 1)))
def test_marked_rows_are_found_within_their_run(case: tuple[Runs, list[list[int]]]) -> None:
    runs, parts = case
    mask = flat(parts).astype(np.bool_)
    latest, earliest, begin = [], [], 0
    for part in parts:
        last = NONE
        marked = [begin + row for row, value in enumerate(part) if value]
        for row, value in enumerate(part, begin):
            last = row if value else last
            latest.append(last)
        earliest.append(marked[0] if marked else NONE)
        begin += len(part)
    assert runs.latest(mask).tolist() == latest
    assert runs.earliest(mask).tolist() == earliest


@given(st.lists(st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1)), st.data())
def test_places_are_those_that_a_search_finds(some: list[int], data: st.DataObject) -> None:
    near = st.sampled_from(some) if some else st.nothing()
    values = np.array(data.draw(st.lists(near | st.integers(-6, 6))), np.int64)
    ascending = np.sort(np.array(some, np.int64))
    assert places(ascending, values).tolist() == np.searchsorted(ascending, values).tolist()


@given(runs_and(st.integers(0, 1)))
def test_rows_since_a_mark_and_runs_with_one(case: tuple[Runs, list[list[int]]]) -> None:
    runs, parts = case
    mask = flat(parts).astype(np.bool_)
    assert runs.since(mask).tolist() == [any(p[: n + 1]) for p in parts for n in range(len(p))]
    assert runs.any(mask).tolist() == [any(part) for part in parts]


@given(runs_and(st.integers()))
def test_a_row_knows_its_predecessor_and_a_first_row_what_was_carried(
    case: tuple[Runs, list[list[int]]],
) -> None:
    runs, parts = case
    values = np.array([value for part in parts for value in part], object)
    carried = np.arange(len(parts)).astype(object)
    expected = [x for run, part in enumerate(parts) for x in (run, *part[:-1])]
    assert runs.before(values, carried).tolist() == expected


@given(runs_and(st.just(0)))
def test_runs_know_where_they_begin_and_end(case: tuple[Runs, list[list[int]]]) -> None:
    runs, parts = case
    ends = list(accumulate(map(len, parts)))
    assert len(runs) == len(parts)
    assert runs.begins.tolist() == [0, *ends[:-1]]
    assert (runs.lasts + 1).tolist() == ends
    assert runs.run.tolist() == [run for run, part in enumerate(parts) for _ in part]
    assert runs.first.tolist() == runs.begins[runs.run].tolist()
