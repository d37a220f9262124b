from __future__ import annotations

import itertools

import numpy as np
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from oracle import Endpoint
from scenes import CLIENT, SERVER, Script

from vsockdump import wire
from vsockdump.frames import SLACK, FrameBatch, Interface
from vsockdump.packets import decode
from vsockdump.tracking import pending
from vsockdump.tracking.pending import bucket, middle
from vsockdump.tracking.report import Direction
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import Op

WITHIN = 0.04
"""What the model promises of quantiles."""
LARGEST = 2**62
MOST = 2**32 - 1

latencies = st.integers(0, 100) | st.integers(0, LARGEST) | st.integers(0, 61).map((1).__lshift__)


@given(st.lists(latencies, min_size=1))
def test_the_middle_of_a_bucket_is_near_everything_in_it(some: list[int]) -> None:
    exact = np.array(some, np.int64)
    buckets = bucket(exact)
    assert (np.abs(middle(buckets) - exact) <= WITHIN * exact).all()
    assert (buckets >= 0).all()


@given(latencies, latencies)
def test_buckets_are_in_the_order_of_their_latencies(one: int, other: int) -> None:
    low, high = sorted((one, other))
    first, second = bucket(np.array([low, high])).tolist()
    assert first <= second


@pytest.mark.parametrize("exponent", range(4, 62))
def test_there_are_sixteen_buckets_to_a_doubling(exponent: int) -> None:
    begin = 1 << exponent
    edges = begin + np.arange(17) * (begin >> 4)
    buckets = bucket(edges)
    assert np.diff(buckets).tolist() == [1] * 16
    assert bucket(edges[1:] - 1).tolist() == buckets[:-1].tolist()


def drained(per_connection: list[list[int]], *, cuts: int = 1) -> list[Direction]:
    """Connections whose packets wait for as long as asked, several at a time."""
    script = Script()
    sent = [0] * len(per_connection)
    ends = [(Endpoint(CLIENT.cid, port), SERVER) for port in range(1, len(sent) + 1)]
    for pair in ends:
        script.add(Op.REQUEST, ends=pair)
        script.add(Op.RESPONSE, ends=pair, answer=True)
    for conn, waits in enumerate(per_connection):
        for wait in waits:
            sent[conn] += 10
            script.add(Op.RW, ends=ends[conn], len=10)
            script.add(Op.CREDIT_UPDATE, ends=ends[conn], answer=True, fwd=sent[conn], after=wait)
    tracker = Tracker()
    whole = script.batch()
    edges = np.linspace(0, len(whole), cuts + 1).astype(int).tolist()
    for begin, end in itertools.pairwise(edges):
        tracker.feed(whole.take(slice(begin, end)))
    return [connection.client_to_server for connection in tracker.connections()]


waits = st.lists(st.integers(0, 10**6) | st.integers(0, 10**12), max_size=30)


@given(st.lists(waits, min_size=1, max_size=4), st.integers(1, 5))
def test_quantiles_are_those_of_nearest_rank(per_connection: list[list[int]], cuts: int) -> None:
    told = drained(per_connection, cuts=cuts)
    for way, some in zip(told, per_connection, strict=True):
        assert way.drains == len(some)
        if not some:
            assert (way.drain_min_ns, way.drain_median_ns) == (None, None)
            assert (way.drain_p99_ns, way.drain_max_ns) == (None, None)
            continue
        assert (way.drain_min_ns, way.drain_max_ns) == (min(some), max(some))
        for share, near in ((0.5, way.drain_median_ns), (0.99, way.drain_p99_ns)):
            exact = int(np.quantile(some, share, method="inverted_cdf"))
            assert near is not None
            assert abs(near - exact) <= WITHIN * exact


def test_every_packet_that_an_advertisement_covers_has_its_own_latency() -> None:
    script = Script()
    script.open()
    for _ in range(3):
        script.add(Op.RW, len=10, after=100)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=20, after=1)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=30, after=7)
    for singly in (False, True):
        way = script.track(singly=singly).connections()[0].client_to_server
        assert (way.drains, way.drain_min_ns, way.drain_max_ns) == (3, 8, 201)
        assert way.outstanding == 0


def test_offsets_far_apart_share_a_batch() -> None:
    script = Script()
    script.open(buf=MOST)
    for count in range(1, 51):
        script.add(Op.RW, len=MOST, buf=MOST)
        script.add(Op.CREDIT_UPDATE, answer=True, fwd=count * MOST % 2**32, buf=MOST)
        # A neighbour whose offsets stay small.
        script.add(Op.RW, ends=(SERVER, CLIENT), len=1)
    tracker = Tracker()
    tracked = tracker.feed(script.batch())
    assert tracked.outstanding[2::3].tolist() == [1] * 50
    assert tracker.connections()[0].client_to_server.drains == 50


def told_of(traffic: strategies.Traffic) -> list[list[int]]:
    """What is outstanding after each packet, and in the end every figure of every connection."""
    tracker = Tracker(findings=False)
    told = [tracker.feed(batch).outstanding.tolist() for batch in traffic.batches()]
    return told + [column.tolist() for column in tracker.columns().values()]


@pytest.mark.parametrize("seed", range(2))
def test_figures_do_not_depend_on_the_size_of_the_pool(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = strategies.seeded(seed, 3000, wild=True)
    expected = told_of(traffic)
    monkeypatch.setattr(pending, "_FIRST_SIZE", 1)
    assert told_of(traffic) == expected


@pytest.mark.parametrize("spacious", [0, 1 << 40])
@pytest.mark.parametrize("narrow", [0, 32])
def test_figures_do_not_depend_on_how_latencies_are_counted(
    spacious: int, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = strategies.seeded(0, 3000, wild=False)
    expected = told_of(traffic)
    monkeypatch.setattr(pending, "_NARROW", narrow)
    monkeypatch.setattr(pending, "_SPACIOUS", spacious)
    monkeypatch.setattr(pending, "_SAMPLES", 20)
    assert told_of(traffic) == expected


def test_a_batch_of_very_many_connections() -> None:
    # Their offsets share one axis of 62 bits.
    count = 140_000
    script = Script()
    script.open()
    script.add(Op.RW, len=5)
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=5)
    headers = strategies.records(script.packets).repeat(count)
    port = np.tile(np.arange(count), script.count)
    for name in ("src_port", "dst_port"):
        headers[name] = np.where(headers[name] == CLIENT.port, port, headers[name])
    tracker = Tracker(max_connections=count, findings=False)
    for rows in np.split(headers, script.count):
        frames = rows.view(np.uint8).reshape(count, -1)[:, : wire.HEADERS_LEN]
        begins = np.arange(count) * wire.HEADERS_LEN
        length = np.full(count, wire.HEADERS_LEN)
        batch = FrameBatch(
            buf=np.append(frames.ravel(), np.zeros(SLACK, np.uint8)),
            offset=begins,
            caplen=length,
            origlen=length + 5,
            time_ns=begins,
            interface=begins * 0,
            number=begins + 1,
            interfaces=(Interface(),),
        )
        tracked = tracker.feed(decode(batch))
        data = rows["op"] == Op.RW
        assert (tracked.outstanding[data] == 1).all()
    columns = tracker.columns()
    assert (columns["client_to_server_drains"] == 1).all()
    assert (columns["client_to_server_outstanding"] == 0).all()
    assert len(columns["conn"]) == count
