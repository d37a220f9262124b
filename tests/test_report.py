from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from scenes import BUFFER, CLIENT, MS, SERVER, Script
from strategies import Traffic

from vsockdump.tracking.columns import NULL
from vsockdump.tracking.report import DIRECTIONS, FASTEST, Connection
from vsockdump.tracking.states import State
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import Op, RwFlag, Type


def followed(traffic: Traffic) -> Tracker:
    tracker = Tracker(stall_threshold_ns=traffic.stall_threshold_ns)
    for batch in traffic.batches():
        tracker.feed(batch)
    tracker.finish(traffic.end_ns)
    return tracker


def plain(connection: Connection) -> dict[str, Any]:
    """An object as the columns say the same."""
    row = asdict(connection)
    for who in ("client", "server"):
        row[f"{who}_cid"], row[f"{who}_port"] = row.pop(who)
    for direction in DIRECTIONS:
        figures = row.pop(direction)
        row.update({f"{direction}_{name}": value for name, value in figures.items()})
    row["type"] = Type[row["type"]]
    row["state"] = next(state for state in State if state.label == row["state"])
    return {name: NULL if value is None else value for name, value in row.items()}


@given(strategies.hostile() | strategies.nonsense())
@settings(deadline=None, max_examples=30)
def test_columns_records_and_objects_say_the_same(traffic: Traffic) -> None:
    tracker = followed(traffic)
    columns, records = tracker.columns(), tracker.record_array()
    objects = tracker.connections()
    assert records.dtype.names == tuple(columns)
    assert len(objects) == len(records)
    for row, connection in enumerate(objects):
        expected = plain(connection)
        assert expected.keys() == columns.keys()
        assert {name: column[row] for name, column in columns.items()} == expected
        assert dict(zip(columns, records[row].item(), strict=True)) == expected


def two_connections() -> Tracker:
    script = Script(type=Type.SEQPACKET)
    script.open()
    script.add(Op.RW, len=300, flags=RwFlag.EOM)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=300)
    script.add(Op.RST, ends=(CLIENT._replace(port=7), SERVER))
    return script.track(rest=10**9)


def test_numpy_takes_the_records() -> None:
    records = two_connections().record_array()
    assert records["conn"].tolist() == [1, 2]
    busiest = records[np.argmax(records["client_to_server_bytes"])]
    assert busiest["client_to_server_bytes"] == 300
    assert records["connect_ns"].tolist() == [MS, NULL]
    assert records[records["state"] == State.STRAY]["conn"].tolist() == [2]


def test_nothing_followed_gives_empty_columns_of_the_same_names() -> None:
    nothing, some = Tracker(), two_connections()
    nothing.finish()
    assert nothing.connections() == []
    assert nothing.columns().keys() == some.columns().keys()
    assert nothing.record_array().dtype == some.record_array().dtype
    assert nothing.record_array().shape == (0,)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_take_the_columns(library: str) -> None:
    frames = importlib.import_module(library)
    columns = two_connections().columns()
    frame = frames.DataFrame(columns)
    assert frame.shape == (2, len(columns))
    assert list(frame.columns) == list(columns)
    for name, column in columns.items():
        assert np.array_equal(frame[name].to_numpy(), column)


def test_the_rate_is_that_of_the_connection_s_life() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=500, after=MS)
    script.add(Op.RW, answer=True, len=100, after=2 * MS)
    (connection,) = script.track(rest=10**9).connections()
    life = connection.end_ns - connection.start_ns
    assert life == 4 * MS
    assert connection.client_to_server.bytes_per_second == 500 * 10**9 // life
    assert connection.server_to_client.bytes_per_second == 100 * 10**9 // life


def test_no_time_gives_no_rate_and_hardly_any_a_rate_that_an_integer_holds() -> None:
    script = Script()
    script.add(Op.RW, len=BUFFER)
    assert script.track().connections()[0].client_to_server.bytes_per_second is None
    for _ in range(10):
        script.add(Op.RW, len=2**32 - 1, after=0)
    script.add(Op.RW, after=1)
    assert script.track().connections()[0].client_to_server.bytes_per_second == FASTEST


def test_asking_changes_nothing() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=BUFFER)
    tracker = script.track(rest=10**9)
    first = tracker.connections()
    assert tracker.connections() == first
    assert tracker.stalls() == tracker.stalls() != []


def test_figures_can_be_asked_for_while_the_capture_goes_on() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=BUFFER)
    tracker = script.track(finish=False)
    (sofar,) = tracker.connections()
    assert (sofar.client_to_server.unread_bytes, sofar.limited_ns) == (BUFFER, 0)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER, after=5 * MS)
    tracker.feed(script.batches(singly=True)[-1])
    (later,) = tracker.connections()
    assert (later.client_to_server.unread_bytes, later.limited_ns) == (0, 5 * MS)
