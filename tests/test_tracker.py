"""The vectorised tracker says of every packet and connection what the plain oracle says.

Traffic is drawn (strategies.py) or read from the bundled captures; it comes in any batches.
VSOCKDUMP_EXAMPLES sets how many examples Hypothesis draws for each test.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import strategies
import vsockdump.captures as captures
from hypothesis import given, settings
from oracle import DEFAULT_STALL_THRESHOLD_NS, Figures, Oracle, Packet, endpoints, quantile
from oracle import Connection as PlainConnection
from oracle import Direction as PlainDirection
from scenes import captured
from strategies import Traffic

from vsockdump.packets import PacketBatch
from vsockdump.tracking.columns import COLUMNS, NULL, TrackedBatch
from vsockdump.tracking.report import DIRECTIONS, FASTEST, Connection
from vsockdump.tracking.states import State
from vsockdump.tracking.table import KeyTable
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import MON_FIELDS, VIRTIO_FIELDS, Type

EXAMPLES = int(os.environ.get("VSOCKDUMP_EXAMPLES", "40"))
many = settings(max_examples=EXAMPLES, deadline=None)
BUCKET = 0.04
"""How far the median and p99 of drain latency may lie from the exact ones."""


# Both sides as plain values, so that one comparison does.

PACKET_FIELDS = tuple(name for name in Packet.__slots__ if name in MON_FIELDS + VIRTIO_FIELDS)
SHARED = ("conn", "client", "server", "opened", "estimated", "state", "start_ns", "end_ns") + (
    "connect_ns",
    "limited_ns",
    "in_flight_ns",
    "idle_ns",
)
SHARED_BY_DIRECTION = ("packets", "bytes", "min_window", "min_effective_window") + (
    "max_in_flight",
    "stalled_ns",
    "unread_bytes",
    "outstanding",
)
INEXACT = ("drain_median_ns", "drain_p99_ns")


def packets_of(batch: PacketBatch) -> Iterator[Packet]:
    """A batch as the oracle wants its packets."""
    for packet in batch:
        fields = {name: getattr(packet, name) or 0 for name in PACKET_FIELDS}
        yield Packet(
            number=packet.number,
            time_ns=packet.time_ns,
            interface=int(batch.frames.interface[packet.row]),
            decoded=bool(batch.has_virtio[packet.row]),
            **fields,
        )


def observed_figures(tracked: TrackedBatch) -> list[Figures]:
    """The tracker's columns as the oracle says the same."""
    names = ("tx_cnt", "in_flight", "window", "effective_window", "outstanding")
    columns = {name: getattr(tracked, name).tolist() for name in names}
    return [
        Figures(
            conn=conn or None,
            stalled=stalled,
            state=None if state == NULL else State(state).label,
            **{name: None if (x := columns[name][row]) == NULL else x for name in names},
        )
        for row, (conn, stalled, state) in enumerate(
            zip(
                tracked.conn.tolist(), tracked.stalled.tolist(), tracked.state.tolist(), strict=True
            )
        )
    ]


def expected_connection(connection: PlainConnection) -> dict[str, Any]:
    account: dict[str, Any] = {name: getattr(connection, name) for name in SHARED}
    account["type"] = Type(connection.type).name
    for side in DIRECTIONS:
        way: PlainDirection = getattr(connection, side)
        figures: dict[str, Any] = {name: getattr(way, name) for name in SHARED_BY_DIRECTION}
        figures["stalls"] = len(way.stalls)
        figures["drains"] = len(way.drains)
        for name, share in (("min", 0.0), ("median", 0.5), ("p99", 0.99), ("max", 1.0)):
            figures[f"drain_{name}_ns"] = quantile(way.drains, share)
        figures["messages"] = len(way.messages)
        figures["message_bytes"] = sum(way.messages)
        figures["message_min"] = min(way.messages, default=None)
        figures["message_max"] = max(way.messages, default=None)
        life = connection.end_ns - connection.start_ns
        rate = min(way.bytes * 10**9 // max(life, 1), int(FASTEST))
        figures["bytes_per_second"] = rate if life > 0 else None
        account[side] = figures
    return account


def assert_equal_connections(expected: PlainConnection, observed: Connection) -> None:
    plain, fast = expected_connection(expected), asdict(observed)
    for side in DIRECTIONS:
        for name in INEXACT:
            exact, near = plain[side].pop(name), fast[side].pop(name)
            assert (exact is None) == (near is None)
            assert exact is None or abs(exact - near) <= BUCKET * exact, (side, name, exact, near)
        exact, near = (x[side].pop("bytes_per_second") for x in (plain, fast))
        assert (exact is None) == (near is None)
        # The tracker divides floats.
        assert exact is None or near == pytest.approx(exact, rel=1e-9, abs=1)
    assert fast == plain


def track(
    batches: Iterable[PacketBatch],
    *,
    end_ns: int | None = None,
    stall_threshold_ns: int = DEFAULT_STALL_THRESHOLD_NS,
) -> tuple[Oracle, Tracker]:
    """Track the batches both ways and assert that nothing differs."""
    oracle = Oracle(stall_threshold_ns=stall_threshold_ns)
    tracker = Tracker(stall_threshold_ns=stall_threshold_ns)
    bare = Tracker(report=False, findings=False)
    for batch in batches:
        # The oracle first: a source may reuse its buffer, and a tracker might keep a view of it.
        packets = list(packets_of(batch))
        expected = [oracle.feed(packet) for packet in packets]
        tracked = tracker.feed(batch)
        for packet, said, figures in zip(packets, observed_figures(tracked), expected, strict=True):
            assert said == figures, f"after {packet}"
        assert_ways_tell_directions_apart(tracked, packets)
        # Without a report everything but outstanding packets is the same.
        columns = bare.feed(batch)
        for name in COLUMNS:
            if name not in ("outstanding", "found"):
                assert np.array_equal(getattr(columns, name), getattr(tracked, name)), name
    oracle.finish(end_ns)
    tracker.finish(end_ns)
    for plain, fast in zip(oracle.connections, tracker.connections(), strict=True):
        assert_equal_connections(plain, fast)
    told = sorted((asdict(stall) for stall in tracker.stalls()), key=stall_order)
    assert told == sorted((asdict(stall) for stall in oracle.stalls), key=stall_order)
    return oracle, tracker


def stall_order(stall: dict[str, int]) -> tuple[int, int]:
    return stall["number"], stall["sender"]


def assert_ways_tell_directions_apart(tracked: TrackedBatch, packets: list[Packet]) -> None:
    ways, conns = tracked.way.tolist(), tracked.conn.tolist()
    assert all(way >= 0 for way in ways)
    senders = [endpoints(p)[0] if conn else None for p, conn in zip(packets, conns, strict=True)]
    pairs = set(zip(ways, zip(conns, senders, strict=True), strict=True))
    assert len(pairs) == len({way for way, _ in pairs}) == len({who for _, who in pairs})


def track_traffic(traffic: Traffic) -> tuple[Oracle, Tracker]:
    return track(
        traffic.batches(), end_ns=traffic.end_ns, stall_threshold_ns=traffic.stall_threshold_ns
    )


@given(strategies.nonsense() | strategies.hostile())
@many
def test_frames_of_traffic_decode_to_what_was_drawn(traffic: Traffic) -> None:
    decoded = [packet for batch in traffic.batches() for packet in packets_of(batch)]
    assert [p for p in decoded if p.decoded] == [p for p in traffic.packets if p.decoded]
    assert [p.number for p in decoded] == [p.number for p in traffic.packets]


@given(strategies.honest())
@many
def test_agrees_on_honest_traffic(traffic: Traffic) -> None:
    track_traffic(traffic)


@given(strategies.imperfect())
@many
def test_agrees_on_imperfect_captures(traffic: Traffic) -> None:
    track_traffic(traffic)


@given(strategies.hostile())
@many
def test_agrees_on_hostile_traffic(traffic: Traffic) -> None:
    track_traffic(traffic)


@given(strategies.nonsense())
@many
def test_agrees_on_nonsense(traffic: Traffic) -> None:
    track_traffic(traffic)


@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("seed", range(max(1, EXAMPLES // 40)))
def test_agrees_on_long_traffic(seed: int, wild: bool) -> None:
    oracle, _ = track_traffic(strategies.seeded(seed, 5000, wild=wild))
    # Otherwise nothing is shown.
    assert len(oracle.connections) > 100
    assert len(oracle.stalls) > 100


@pytest.mark.parametrize("name", captures.names())
def test_agrees_on_every_bundled_capture(name: str) -> None:
    track(captured(name))


def test_agrees_where_all_keys_share_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyTable, "_hash", lambda _, keys: np.full(len(keys), 1, np.uint64))
    track(captured("many-connections-6.12.pcapng"))


MOST_SINGLY = 150
"""Packets fed one at a time: enough to cut every kind of conversation everywhere."""


@pytest.mark.parametrize("name", captures.names())
def test_a_packet_at_a_time_gives_the_same(name: str) -> None:
    track(
        batch.take(slice(row, row + 1))
        for batch in captured(name)
        for row in range(min(len(batch), MOST_SINGLY))
    )
