"""Memory is bounded: what is given up, in what order, and that reports say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from oracle import Endpoint
from scenes import BOTH, BUFFER, MS, SERVER, Script

from vsockdump.tracking import pending
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.states import State
from vsockdump.tracking.store import CONNECTION, HEADROOM, SIDE, Store
from vsockdump.tracking.table import EMPTY, KEY_WORDS
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import FIRST_GUEST_CID, HEADERS_LEN, Op, Type

LIMIT = 64
KEPT = LIMIT - LIMIT // HEADROOM
"""Connections left when the limit was passed."""


def client(port: int) -> tuple[Endpoint, Endpoint]:
    return Endpoint(FIRST_GUEST_CID, port), SERVER


def held(thing: Any, seen: set[int] | None = None) -> int:
    """Bytes of all arrays, and the length of everything else, that is reached from ``thing``."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, Mapping):
        return len(thing) + sum(held(value, seen) for value in thing.values())
    if isinstance(thing, list | tuple | set):
        return len(thing) + sum(held(value, seen) for value in thing)
    if type(thing).__module__.startswith("vsockdump.tracking"):
        slots = [getattr(thing, name) for name in getattr(type(thing), "__slots__", ())]
        return held([slots, getattr(thing, "__dict__", {})], seen)
    return 0


def assert_grew_no_more(sizes: list[int]) -> None:
    half = len(sizes) // 2
    assert max(sizes[half:]) <= max(sizes[:half])


# The store by itself.


def test_slots_are_blank_when_they_are_taken_again() -> None:
    store = Store(0)
    taken = store.take(3)
    for columns, layout in ((store.conn, CONNECTION), (store.side, SIDE)):
        for name in layout:
            columns[name][taken] = 1
    store.conn["owed"][taken] = store.conn["key"][taken] = EMPTY
    assert sorted(store.evict().tolist()) == sorted(taken.tolist())
    assert (len(store), store.left) == (0, 3)
    everything = store.take(store._live.size)
    for columns, layout in ((store.conn, CONNECTION), (store.side, SIDE)):
        for name, (_, begin) in layout.items():
            assert (columns[name][everything] == begin).all(), name


def test_a_column_nobody_uses_is_not_made() -> None:
    store = Store(1 << 20)
    slots = store.take(2 * store.size)
    assert not store.conn
    assert not store.side
    assert (store.side.peek("stall_number", (slots, 1)) == SIDE["stall_number"][1]).all()
    assert store.side.peek("packets", slots).shape == (slots.size, 2)
    assert not store.side
    store.side["stall_number"][slots[-1], 1] = 7
    assert store.side.peek("stall_number", (slots[-2:], 1)).tolist() == [NULL, 7]
    assert store.side.peek("stall_number", slots[-1:]).tolist() == [[NULL, 7]]


def test_a_store_grows_and_keeps_what_it_has() -> None:
    store = Store(1 << 20)
    first = store.take(10)
    store.conn["number"][first] = np.arange(1, 11)
    more = store.take(5 * store._live.size)
    assert not set(first.tolist()) & set(more.tolist())
    store.conn["number"][more] = np.arange(11, 11 + more.size)
    assert store.slots().tolist() == [*first.tolist(), *more.tolist()]
    assert len(store) == first.size + more.size


def test_evicted_keys_are_unknown_and_the_others_stay() -> None:
    store = Store(2)
    keys = np.arange(3 * KEY_WORDS, dtype=np.uint64).reshape(3, KEY_WORDS)
    _, hashes = store.table.find(keys)
    slots = store.take(3)
    store.insert(keys, hashes, slots)
    store.conn["number"][slots] = store.conn["last_number"][slots] = (1, 2, 3)
    assert store.evict().tolist() == [slots[0]]
    numbers, _ = store.table.find(keys)
    assert numbers[0] == EMPTY
    assert store.table.slots(numbers[1:]).tolist() == slots[1:].tolist()
    assert store.conn["key"][slots[1:]].tolist() == numbers[1:].tolist()


# Who leaves.


def test_ended_ones_leave_first_then_those_idle_longest() -> None:
    script = Script()
    ports = range(1, LIMIT + 2)
    for port in ports:
        script.add(Op.REQUEST, ends=client(port))
        script.add(Op.RESPONSE, ends=client(port), answer=True)
    busy, ended = {1, 3}, {50, 20}
    for port in (50, 20):
        script.add(Op.RST, ends=client(port))
    for port in busy:
        script.add(Op.CREDIT_UPDATE, ends=client(port))
    # Each packet in a batch of its own, or the ends would be as old as each other.
    tracker = Tracker(max_connections=LIMIT)
    batches = script.batches(singly=True)
    whole = script.batch()
    tracker.feed(whole.take(slice(0, 2 * LIMIT)))
    for batch in batches[2 * LIMIT + 2 :]:
        tracker.feed(batch)
    assert tracker.left == 0
    for batch in batches[2 * LIMIT : 2 * LIMIT + 2]:
        tracker.feed(batch)
    gone = LIMIT + 1 - KEPT
    idle = [port for port in ports if port not in busy | ended]
    expected = {50, 20, *idle[: gone - len(ended)]}
    assert {c.client[1] for c in tracker.connections()} == set(ports) - expected
    assert tracker.left == gone


def test_of_ended_ones_the_oldest_end_leaves_first() -> None:
    script = Script()
    order = [*range(1, LIMIT + 2)]
    ends = order[5:] + order[:5]
    for port in order:
        script.add(Op.REQUEST, ends=client(port))
    tracker = Tracker(max_connections=LIMIT + 1)
    tracker.feed(script.batch())
    for port in ends:
        script.add(Op.RST, ends=client(port), answer=True)
        # What comes after the end makes nobody younger.
        script.add(Op.RST, ends=client(order[5]))
    script.add(Op.REQUEST, ends=client(1000))
    for batch in script.batches(singly=True)[LIMIT + 1 :]:
        tracker.feed(batch)
    left = tracker.left
    assert left > 1
    assert {c.client[1] for c in tracker.connections()} == {*order, 1000} - {*ends[:left]}


def test_idleness_is_known_without_a_report_too() -> None:
    script = Script()
    for port in range(1, LIMIT + 1):
        script.add(Op.REQUEST, ends=client(port))
    script.add(Op.RESPONSE, ends=client(1), answer=True)
    script.add(Op.REQUEST, ends=client(LIMIT + 1))
    script.add(Op.RW, ends=client(1))
    script.add(Op.RW, ends=client(2))
    tracker = Tracker(max_connections=LIMIT, report=False, findings=False)
    numbers = [int(tracker.feed(batch).conn[0]) for batch in script.batches(singly=True)]
    # The first is remembered; the second left, and what it says now is of a new one.
    assert numbers[-2:] == [1, LIMIT + 2]


def test_a_late_rst_of_one_that_left_is_the_new_one_s() -> None:
    script = Script()
    script.open()
    script.add(Op.SHUTDOWN, flags=BOTH)
    script.add(Op.REQUEST)
    tracker = Tracker(max_connections=1)
    for batch in script.batches():
        tracker.feed(batch)
    assert (tracker.left, len(tracker.connections())) == (1, 1)
    late = Script(after=script)
    late.add(Op.RST, answer=True)
    tracked = tracker.feed(late.batch())
    (connection,) = tracker.connections()
    assert (connection.conn, connection.state) == (2, State.REFUSED.label)
    assert tracked.conn.tolist() == [2]


# Floods.


def flood(count: int, after: Script) -> Script:
    script = Script(after=after)
    for _ in range(count):
        script.add(Op.REQUEST, ends=client(script.first_number + script.count))
    return script


@pytest.mark.parametrize("batch", [1, 7, 3 * LIMIT])
def test_a_flood_of_requests_is_bounded(batch: int) -> None:
    tracker = Tracker(max_connections=LIMIT)
    rounds, sizes = max(6 * LIMIT // batch, 12), []
    script = Script()
    for _ in range(rounds):
        script = flood(batch, script)
        tracker.feed(script.batch())
        assert len(tracker._store) <= LIMIT
        sizes.append(held(tracker))
    assert_grew_no_more(sizes)
    tracker.finish()
    connections = tracker.connections()
    assert tracker.left == rounds * batch - len(connections) > 0
    assert [c.conn for c in connections] == [*range(tracker.left + 1, rounds * batch + 1)]
    (told,) = [f for f in tracker.findings() if f.code == "connections-left"]
    assert told.facts == {"left": tracker.left}


def test_a_flood_of_data_on_ever_new_connections_leaves_nothing_behind() -> None:
    tracker = Tracker(max_connections=LIMIT)
    sizes = []
    script = Script()
    for turn in range(30):
        script = Script(after=script)
        for port in range(turn * LIMIT, (turn + 1) * LIMIT):
            script.add(Op.REQUEST, ends=client(port))
            script.add(Op.RESPONSE, ends=client(port), answer=True)
            script.add(Op.RW, ends=client(port), len=10, after=port % 7)
            script.add(Op.RW, ends=client(port), len=10)
            script.add(Op.CREDIT_UPDATE, ends=client(port), answer=True, fwd=10, after=port % 5)
        tracker.feed(script.batch())
        sizes.append(held(tracker))
    assert_grew_no_more(sizes)
    ways = [connection.client_to_server for connection in tracker.connections()]
    assert 0 < len(ways) <= LIMIT
    assert {(way.outstanding, way.drains) for way in ways} == {(1, 1)}


def test_packets_that_wait_are_bounded_and_the_oldest_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 1000
    monkeypatch.setattr(pending, "MOST_WAITING", most)
    script = Script()
    script.open(buf=2**32 - 1)
    tracker = Tracker()
    tracker.feed(script.batch())
    sent, sizes = 0, []
    for _ in range(20):
        script = Script(after=script)
        for _ in range(most // 4):
            script.add(Op.RW, len=1, buf=2**32 - 1)
        sent += script.count
        waiting = sent - tracker.given_up
        tracked = tracker.feed(script.batch())
        assert tracked.outstanding[-1] == waiting
        assert sent - tracker.given_up <= most
        sizes.append(held(tracker))
    assert tracker.given_up > 0
    assert_grew_no_more(sizes)
    script = Script(after=script)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=sent)
    tracker.feed(script.batch())
    (connection,) = tracker.connections()
    way = connection.client_to_server
    assert way.drains == sent - tracker.given_up
    # The youngest were kept: one was sent each millisecond.
    assert (way.drain_min_ns, way.drain_max_ns) == (MS, way.drains * MS)
    tracker.finish()
    (told,) = [f for f in tracker.findings() if f.code == "packets-given-up"]
    assert told.facts == {"packets": tracker.given_up}


def test_latencies_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "_SAMPLES", 100)
    tracker, script = Tracker(), Script()
    script.open()
    tracker.feed(script.batch())
    sizes, count = [], 0
    for _ in range(40):
        script = Script(after=script)
        for _ in range(30):
            count += 1
            script.add(Op.RW, len=1)
            script.add(Op.CREDIT_UPDATE, answer=True, fwd=count)
        tracker.feed(script.batch())
        sizes.append(held(tracker))
    assert_grew_no_more(sizes)
    assert tracker.connections()[0].client_to_server.drains == count


def test_a_batch_of_more_connections_than_are_kept_is_followed_wholly() -> None:
    script = Script(type=Type.SEQPACKET)
    count = 4 * LIMIT
    for port in range(count):
        script.add(Op.REQUEST, ends=client(port))
    for port in range(count):
        script.add(Op.RESPONSE, ends=client(port), answer=True)
    tracker = Tracker(max_connections=LIMIT)
    tracked = tracker.feed(script.batch())
    assert tracked.conn.tolist() == [*range(1, count + 1)] * 2
    assert (tracked.window[count:] == BUFFER).all()
    assert (tracked.window[:count] == NULL).all()
    assert tracker.left == count - KEPT


def test_frames_without_headers_leave_no_trace() -> None:
    tracker = Tracker(findings=False)
    before = held(tracker)
    script = Script()
    for _ in range(100):
        script.add(Op.REQUEST, decoded=False)
    assert {len(frame) for frame in script.frames} == {HEADERS_LEN - 1}
    assert not tracker.feed(script.batch()).conn.any()
    assert held(tracker) == before
