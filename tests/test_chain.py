"""Chains find what hops from record to record find, and cost no more than their budgets say."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockdump.frames import Ints
from vsockdump.sources import chain
from vsockdump.sources.chain import Damage, Walk, follow


class Records:
    """A made-up format: every place holds the length of a record that starts there, 0 for none.

    True records follow on each other; any other place may look like a record as well. A place that
    is ``bad`` is damage. Work is counted.
    """

    def __init__(self, lengths: list[int], bad: int | None = None) -> None:
        self.lengths = np.array(lengths, np.int64)
        self.bad = bad
        self.looked_at = 0
        self.hopped = 0

    def plainly(self, begin: int) -> tuple[list[int], int]:
        found = []
        while self.good(begin):
            found.append(begin)
            begin += int(self.lengths[begin])
        return found, begin

    def good(self, at: int) -> bool:
        return (
            at < self.lengths.size
            and at != self.bad
            and self.lengths[at] > 0
            and at + int(self.lengths[at]) <= self.lengths.size
        )

    def chain(self, begin: int) -> tuple[Ints, int]:
        self.looked_at += self.lengths.size - begin
        places = np.arange(begin, self.lengths.size)
        candidates = np.array([place for place in places if self.good(place)], np.int64)
        return follow(candidates, candidates + self.lengths[candidates], begin)

    def hop(self, begin: int, most: int | None) -> tuple[Ints, int, Damage | None]:
        found: list[int] = []
        while self.good(begin) and len(found) != most:
            found.append(begin)
            begin += int(self.lengths[begin])
        self.hopped += len(found)
        damage = Damage(begin, "bad") if begin == self.bad and len(found) != most else None
        return np.array(found, np.int64), begin, damage

    def run(self, begin: int) -> tuple[list[int], int, Damage | None]:
        offsets, end, damage = Walk(self.chain, self.hop).run(begin)
        assert offsets.dtype == np.int64
        return offsets.tolist(), end, damage


@st.composite
def records(draw: st.DrawFn) -> Records:
    """Lengths mostly of a few sizes, so that false records chain with each other, too."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    lengths = draw(st.lists(st.sampled_from([0, *sizes, *sizes]), max_size=120))
    return Records(lengths, draw(st.none() | st.integers(0, 120)))


budgets = st.integers(1, 5)


@given(records(), st.integers(0, 10), budgets, budgets, st.integers(0, 4), st.integers(0, 5))
def test_all_ways_through_a_buffer_are_the_same(
    made: Records, begin: int, hops: int, runs: int, scans: int, sparse: int
) -> None:
    with patch.multiple(chain, HOPS=hops, RUNS=runs, SCANS=scans, SPARSE=sparse):
        offsets, end, damage = made.run(begin)
    assert (offsets, end) == made.plainly(begin)
    assert damage == (Damage(end, "bad") if end == made.bad else None)
    assert made.looked_at <= scans * made.lengths.size
    assert made.hopped <= len(offsets)


@given(records(), st.integers(0, 10), budgets)
def test_following_proves_what_it_finds(made: Records, begin: int, runs: int) -> None:
    with patch.object(chain, "RUNS", runs):
        offsets, end = made.chain(begin)
    expected, last = made.plainly(begin)
    assert offsets.tolist() == expected[: offsets.size]
    assert end == (expected[offsets.size] if offsets.size < len(expected) else last)


def even(count: int, length: int) -> list[int]:
    return [length, *[0] * (length - 1)] * count


def test_ordinary_records_are_found_in_one_scan() -> None:
    made = Records(even(10 * chain.HOPS, 8))
    offsets, _, _ = made.run(0)
    assert len(offsets) == 10 * chain.HOPS
    assert made.hopped == chain.HOPS
    assert made.looked_at == made.lengths.size - chain.HOPS * 8


def test_few_records_are_not_scanned_for() -> None:
    made = Records(even(chain.HOPS - 1, 8))
    made.run(0)
    assert made.looked_at == 0


def test_long_records_are_not_scanned_for() -> None:
    made = Records(even(3 * chain.HOPS, chain.SPARSE))
    offsets, _, _ = made.run(0)
    assert len(offsets) == made.hopped == 3 * chain.HOPS
    assert made.looked_at == 0


@pytest.mark.parametrize("fakes", [1, 7])
def test_payload_full_of_records_is_scanned_once_and_hopped_through(fakes: int) -> None:
    # Each record's payload holds records that lead astray: none of them leads to the next one.
    record = [16, *[5] * fakes, *[0] * (15 - fakes)]
    made = Records(record * 20 * chain.HOPS)
    offsets, end, damage = made.run(0)
    assert (offsets, end, damage) == (*made.plainly(0), None)
    assert made.looked_at == made.lengths.size - 16 * chain.HOPS
    assert made.hopped == len(offsets) - chain.RUNS


def test_a_record_that_ends_a_chain_now_and_then_is_hopped_over() -> None:
    # So many runs as a scan accepts, each of so many records that it pays.
    pieces = even(2 * chain.HOPS, 8) + [16, *[5] * 7, *[0] * 8]
    made = Records(pieces * chain.RUNS * (chain.SCANS + 2))
    offsets, end, damage = made.run(0)
    assert (offsets, end, damage) == (*made.plainly(0), None)
    assert chain.SCANS // 2 * made.lengths.size < made.looked_at
    assert made.looked_at <= chain.SCANS * made.lengths.size


def test_following_nothing_finds_nothing() -> None:
    none = np.zeros(0, np.int64)
    offsets, end = follow(none, none, 7)
    assert (offsets.size, end) == (0, 7)
