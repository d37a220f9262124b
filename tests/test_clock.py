"""Times in every way, zone and century, against Python's own calendar."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_cases import EPOCH_NS, I64, times, zone

from vsockdump.sinks import sheet
from vsockdump.sinks.clock import SECOND, Clock, Stamp, integers, rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BERLIN_POSIX = "CET-1CEST,M3.5.0,M10.5.0/3"
SPRING = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp())
"""When summer time begins in central Europe, and AUTUMN when it ends."""
AUTUMN = int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp())
FIRST_NS = -I64
LAST_NS = I64 - 1


def spelled(stamp: Stamp, ns: list[int], *, nano: bool = True) -> list[str]:
    return by_clock(Clock(stamp), ns, nano=nano)


def by_clock(clock: Clock, ns: list[int], *, nano: bool = True) -> list[str]:
    columns = clock.columns(np.array(ns, np.int64), np.full(len(ns), nano))
    return sheet.lines([*columns, b"\n"], len(ns)).decode().splitlines()


def test_each_way_reads_as_tcpdump_writes_it() -> None:
    ns = [EPOCH_NS + 1_234, EPOCH_NS + 3_723 * SECOND]
    with zone("UTC"):
        assert {stamp: spelled(stamp, ns) for stamp in Stamp} == {
            Stamp.TIME: ["20:26:40.000001234 ", "21:28:43.000000000 "],
            Stamp.NONE: ["", ""],
            Stamp.EPOCH: ["1780000000.000001234 ", "1780003723.000000000 "],
            Stamp.DELTA: [" 00:00:00.000000000 ", " 01:02:02.999998766 "],
            Stamp.DATE: ["2026-05-28 20:26:40.000001234 ", "2026-05-28 21:28:43.000000000 "],
            Stamp.SINCE_FIRST: [" 00:00:00.000000000 ", " 01:02:02.999998766 "],
        }
        assert spelled(Stamp.TIME, [EPOCH_NS + 1_999], nano=False) == ["20:26:40.000001 "]


def test_a_clock_remembers_across_batches() -> None:
    delta, since = Clock(Stamp.DELTA), Clock(Stamp.SINCE_FIRST)
    seconds = [[5, 7], [], [6], [10]]
    batches = [[second * SECOND for second in batch] for batch in seconds]
    shown = [by_clock(delta, batch, nano=False) for batch in batches]
    assert shown == [
        [" 00:00:00.000000 ", " 00:00:02.000000 "],
        [],
        ["-00:00:01.000000 "],
        [" 00:00:04.000000 "],
    ]
    assert by_clock(since, batches[0])[1] == " 00:00:02.000000000 "
    assert by_clock(since, batches[3]) == [" 00:00:05.000000000 "]


def test_times_of_a_hostile_file_may_be_any_far_apart() -> None:
    hours, rest = divmod((LAST_NS - FIRST_NS) // SECOND, 3600)
    apart = f"{hours}:{rest // 60:02}:{rest % 60:02}.709551615 "
    for stamp in (Stamp.DELTA, Stamp.SINCE_FIRST):
        assert spelled(stamp, [FIRST_NS, LAST_NS])[1] == f" {apart}"
        assert spelled(stamp, [LAST_NS, FIRST_NS])[1] == f"-{apart}"


@given(st.lists(times))
def test_rfc3339_is_the_calendar(ns: list[int]) -> None:
    shown = sheet.lines([*rfc3339(np.array(ns, np.int64)), b"\n"], len(ns)).decode().splitlines()
    for text, value in zip(shown, ns, strict=True):
        there = EPOCH + timedelta(seconds=value // SECOND)
        assert text == f"{there:%Y-%m-%dT%H:%M:%S}.{value % SECOND:09}Z"


@given(st.lists(st.integers(-I64, I64 - 1) | st.sampled_from([-1, 0, 1, -I64, I64 - 1])))
def test_integers_are_decimal(values: list[int]) -> None:
    columns = [*integers(np.array(values, np.int64)), b"\n"]
    assert sheet.lines(columns, len(values)).decode().splitlines() == list(map(str, values))


@given(st.lists(times), st.booleans())
def test_epoch_times_are_seconds_and_a_fraction(ns: list[int], nano: bool) -> None:
    digits = 9 if nano else 6
    wanted = [f"{value // SECOND}.{f'{value % SECOND:09}'[:digits]} " for value in ns]
    assert spelled(Stamp.EPOCH, ns, nano=nano) == wanted


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (SPRING - 1, "2026-03-29 01:59:59"),
        (SPRING, "2026-03-29 03:00:00"),
        (AUTUMN - 1, "2026-10-25 02:59:59"),
        (AUTUMN, "2026-10-25 02:00:00"),
    ],
)
def test_summer_time_begins_and_ends(seconds: int, shown: str) -> None:
    around = [seconds - 3600, seconds, seconds + 3600]
    with zone(BERLIN_POSIX):
        text = spelled(Stamp.DATE, [value * SECOND for value in around])
    assert text[1] == f"{shown}.000000000 "


@pytest.mark.parametrize("name", ["UTC", BERLIN_POSIX, "<+0545>-5:45", "<-0330>3:30<-0230>,60,300"])
@settings(max_examples=40)
@given(ns=st.lists(times, max_size=8))
def test_local_time_is_that_of_the_c_library(name: str, ns: list[int]) -> None:
    with zone(name):
        shown = spelled(Stamp.DATE, ns)
        for text, value in zip(shown, ns, strict=True):
            there = time.localtime(value // SECOND)
            date = f"{there.tm_year}-{there.tm_mon:02}-{there.tm_mday:02}"
            clock = f"{there.tm_hour:02}:{there.tm_min:02}:{there.tm_sec:02}"
            assert text == f"{date} {clock}.{value % SECOND:09} "


@pytest.mark.parametrize(
    "name",
    [
        "Europe/Paris",
        "Africa/Monrovia",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/New_York",
    ],
)
@settings(max_examples=60)
@given(seconds=st.lists(st.integers(FIRST_NS // SECOND + 1, LAST_NS // SECOND), min_size=1))
def test_local_time_is_that_of_the_zone_database(name: str, seconds: list[int]) -> None:
    try:
        there = ZoneInfo(name)
    except ZoneInfoNotFoundError:
        pytest.skip("this machine has no zone database")
    with zone(name):
        shown = spelled(Stamp.DATE, [value * SECOND for value in seconds], nano=False)
    for text, value in zip(shown, seconds, strict=True):
        local = (EPOCH + timedelta(seconds=value)).astimezone(there)
        assert text == f"{local:%Y-%m-%d %H:%M:%S}.000000 "


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # Monrovia left an offset of 44 minutes and 30 seconds behind.
        ("Africa/Monrovia", datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC)),
        # Newfoundland put its clocks forward a minute past midnight.
        ("America/St_Johns", datetime(2006, 4, 2, 3, 31, tzinfo=UTC)),
    ],
)
def test_zones_that_changed_at_odd_times_are_right_around_it(name: str, change: datetime) -> None:
    try:
        there = ZoneInfo(name)
    except ZoneInfoNotFoundError:
        pytest.skip("this machine has no zone database")
    around = [change + timedelta(seconds=seconds) for seconds in (-61, -1, 0, 1, 61)]
    assert len({moment.astimezone(there).utcoffset() for moment in around}) == 2
    with zone(name):
        text = spelled(Stamp.TIME, [int(moment.timestamp()) * SECOND for moment in around])
    assert text == [f"{moment.astimezone(there):%H:%M:%S}.000000000 " for moment in around]
