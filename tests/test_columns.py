from __future__ import annotations

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from scenes import BUFFER, CLIENT, SERVER, Script
from strategies import Traffic

from vsockdump.packets import PacketBatch
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import COLUMNS, NULL, TrackedBatch
from vsockdump.tracking.credit import Account
from vsockdump.tracking.findings import CODES
from vsockdump.tracking.states import State
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import Op, Type

FIGURES = ("tx_cnt", "in_flight", "window", "effective_window", "outstanding")


def scene() -> tuple[Script, TrackedBatch]:
    """Two connections and a packet of none, with a finding on the last packet."""
    script = Script()
    script.open()
    script.add(Op.RW, ends=(CLIENT._replace(port=7), SERVER), len=1)
    script.add(Op.RW, type=Type.DGRAM)
    script.add(Op.RW, len=BUFFER)
    script.add(Op.RW, len=1)
    return script, Tracker().feed(script.batch())


def test_figures_come_with_where_they_are_known() -> None:
    _, tracked = scene()
    for name in FIGURES:
        column, known = tracked.number(name)
        assert column is tracked.column(name)
        assert known.tolist() == (column != NULL).tolist()
    numbers, known = tracked.number("conn")
    assert numbers.tolist() == [1, 1, 2, 0, 1, 1]
    assert known.tolist() == [True, True, True, False, True, True]


def test_states_come_as_codes_with_names() -> None:
    _, tracked = scene()
    codes, known = tracked.states()
    assert known.tolist() == [True, True, True, False, True, True]
    names = [tracked.state_names[code] for code in codes[known].tolist()]
    assert names == ["connecting"] + ["established"] * 4
    assert len(tracked.state_names) == len(State)


def test_findings_are_told_by_code_and_all_together() -> None:
    _, tracked = scene()
    assert set(tracked.finding_codes) == set(CODES)
    assert np.flatnonzero(tracked.finding("mid-stream")).tolist() == [2]
    assert np.flatnonzero(tracked.finding("beyond-window")).tolist() == [5]
    assert not tracked.finding("stall").any()
    assert np.flatnonzero(tracked.finding("")).tolist() == [2, 5]
    with pytest.raises(KeyError):
        tracked.finding("no-such-code")


@pytest.mark.parametrize(
    "rows", [slice(1, 4), np.array([5, 0]), np.array([True, False] * 3), slice(0, 0)]
)
def test_rows_are_taken_from_every_column(rows: slice | np.ndarray) -> None:  # type: ignore[type-arg]
    _, tracked = scene()
    part = tracked.take(rows)
    for name in COLUMNS:
        assert np.array_equal(part.column(name), tracked.column(name)[rows]), name
    again = part.take(slice(None)).take(slice(None))
    assert again.conn.tolist() == tracked.conn[rows].tolist()


def test_every_column_has_a_value_for_every_packet_also_where_none_is_followed() -> None:
    script = Script(type=Type.DGRAM)
    for _ in range(3):
        script.add(Op.RW)
    nothing = Tracker().feed(script.batch())
    _, something = scene()
    for name in COLUMNS:
        assert nothing.column(name).shape == (3,)
        assert nothing.column(name).dtype == something.column(name).dtype, name
    assert not nothing.conn.any()
    assert not nothing.finding("").any()


@given(strategies.hostile())
@settings(max_examples=20, deadline=None)
def test_columns_say_the_same_however_late_they_are_looked_at(traffic: Traffic) -> None:
    early, late = Tracker(max_connections=2), Tracker(max_connections=2)
    kept, looked = [], []
    for batch in traffic.batches():
        kept.append(late.feed(batch))
        tracked = early.feed(batch)
        looked.append([tracked.column(name).copy() for name in COLUMNS])
    for tracked, columns in zip(kept, looked, strict=True):
        for name, column in zip(COLUMNS, columns, strict=True):
            assert np.array_equal(tracked.column(name), column), name


def test_a_watcher_is_shown_both_directions_of_every_batch() -> None:
    script, tracked = scene()
    seen: list[tuple[PacketBatch, list[int], list[int]]] = []

    def watch(rows: Rows, accounts: tuple[Account, Account], numbers: np.ndarray) -> None:  # type: ignore[type-arg]
        sent = np.where(rows.server, accounts[1].tx_cnt, accounts[0].tx_cnt)
        seen.append((rows.batch, numbers.tolist(), sent[np.argsort(rows.row)].tolist()))

    tracker = Tracker(watch=watch)
    batch = script.batch()
    tracker.feed(batch)
    ((shown, numbers, sent),) = seen
    assert shown is batch
    assert sorted(numbers) == [1, 2]
    assert sent == tracked.tx_cnt[tracked.conn > 0].tolist()
