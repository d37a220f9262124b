"""Tables and figures as people read them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vsockdump.cli.tables import duration, size, table

CELLS = st.text("abc 0", max_size=12)


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n))),
    st.integers(0, 5),
)
def test_columns_stand_below_each_other(rows: list[list[str]], left: int) -> None:
    header = [f"h{place}" for place in range(len(rows[0]) if rows else 1)]
    lines = table(header, rows, left=left)
    every = [header, *rows]
    assert len(lines) == len(every)
    at = 0
    for place in range(len(header)):
        width = max(len(row[place]) for row in every)
        for row, line in zip(every, lines, strict=True):
            gap = " " * (width - len(row[place]))
            shown = row[place] + gap if 1 <= place <= left else gap + row[place]
            assert line[at : at + width] == shown
            assert place == 0 or line[at - 2 : at] == "  "
        at += width + 2
    assert {len(line) for line in lines} == {at - 2}


@given(st.integers(0, 1 << 63))
def test_a_size_is_read_back_nearly(count: int) -> None:
    value, unit = size(count).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(value) * factor - count) <= 0.05 * factor + count / 100
    assert unit != "B" or int(value) == count


@given(st.integers(0, 1 << 63))
def test_a_duration_is_read_back_nearly(ns: int) -> None:
    value, unit = duration(ns).split()
    factor = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit]
    assert abs(float(value) * factor - ns) <= ns / 100


def test_what_is_not_known_is_a_dash() -> None:
    assert size(None) == duration(None) == "-"
