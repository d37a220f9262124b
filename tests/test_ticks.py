"""Every clock of pcapng gives the nanoseconds that plain fractions give."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vsockdump.sources.ticks import Clock

LEAST, MOST = -(2**63), 2**63 - 1

clocks = st.builds(
    Clock,
    binary=st.booleans(),
    exponent=st.integers(0, 127) | st.sampled_from((3, 6, 9, 10, 20, 30, 32, 33, 64)),
    offset=st.sampled_from((0, 0, 1, -1))
    | st.integers(-(10**10), 10**10)
    | st.integers(-(2**63), 2**63 - 1),
)
ticks = st.integers(0, 2**64 - 1) | st.integers(10**18, 2 * 10**18) | st.integers(0, 10**10)


def exactly(clock: Clock, tick: int) -> int:
    second = Fraction(tick, (2 if clock.binary else 10) ** clock.exponent) + clock.offset
    return max(LEAST, min(MOST, floor(second * 10**9)))


@given(clocks, st.lists(ticks, max_size=8))
@example(Clock(exponent=9), [MOST, MOST + 1, 2**64 - 1])
@example(Clock(exponent=6), [MOST // 1000, MOST // 1000 + 1])
@example(Clock(exponent=29), [2**64 - 1])
@example(Clock(binary=True, exponent=40), [-(-5 * 2**40 // 10**9)])
def test_a_clock_is_exact(clock: Clock, some: list[int]) -> None:
    times = clock.times_ns(np.array(some, np.uint64))
    assert times.dtype == np.int64
    assert times.tolist() == [exactly(clock, tick) for tick in some]
    assert times.tolist() == [clock.time_ns(tick) for tick in some]


def test_the_default_counts_microseconds() -> None:
    assert Clock().time_ns(1) == 1000
    assert not Clock().nanoseconds


@pytest.mark.parametrize(
    ("clock", "finer"),
    [
        (Clock(exponent=7), True),
        (Clock(exponent=9), True),
        (Clock(exponent=3), False),
        (Clock(binary=True, exponent=19), False),
        (Clock(binary=True, exponent=20), True),
    ],
)
def test_a_clock_knows_whether_it_is_finer_than_a_microsecond(clock: Clock, finer: bool) -> None:
    assert clock.nanoseconds is finer
