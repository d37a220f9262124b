"""The oracle says what docs/credit-model.md says of stalls, times and messages."""

from __future__ import annotations

import pytest
from oracle import quantile
from oracle_scenes import Scene, fill
from scenes import BOTH, BUFFER, MS

from vsockdump.wire import Op, RwFlag, ShutdownFlag, Type

# Stalls.


def test_a_stall_recovers_with_the_packet_that_raises_the_window() -> None:
    scene = Scene()
    fill(scene)
    number, start_ns = scene.count, scene.now_ns
    assert scene.say(Op.CREDIT_REQUEST).stalled
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=1, after=200 * MS)
    assert not scene.say(Op.CREDIT_UPDATE).stalled
    (connection,) = scene.finish(10**9)
    (stall,) = scene.oracle.stalls
    assert (stall.conn, stall.sender) == (1, 0)
    assert (stall.number, stall.start_ns, stall.end_number) == (number, start_ns, number + 2)
    assert (stall.duration_ns, stall.recovered) == (201 * MS, True)
    way = connection.client_to_server
    assert (way.stalls, way.stalled_ns) == ([stall], 201 * MS)
    assert connection.server_to_client.stalls == []


@pytest.mark.parametrize(
    ("answer", "flags"), [(False, ShutdownFlag.SEND), (True, ShutdownFlag.RCV), (False, BOTH)]
)
def test_a_stall_ends_when_its_direction_is_shut(answer: bool, flags: int) -> None:
    scene = Scene()
    fill(scene)
    scene.say(Op.SHUTDOWN, answer=answer, flags=flags, after=150 * MS)
    scene.finish(10**9)
    (stall,) = scene.oracle.stalls
    assert (stall.duration_ns, stall.recovered) == (150 * MS, False)


@pytest.mark.parametrize(
    ("answer", "flags"), [(False, ShutdownFlag.RCV), (True, ShutdownFlag.SEND)]
)
def test_shutting_the_other_direction_ends_no_stall(answer: bool, flags: int) -> None:
    scene = Scene()
    fill(scene)
    scene.say(Op.SHUTDOWN, answer=answer, flags=flags)
    assert scene.say(Op.CREDIT_REQUEST).stalled


def test_a_shutdown_that_raises_the_window_too_recovers() -> None:
    scene = Scene()
    fill(scene)
    scene.say(Op.SHUTDOWN, answer=True, flags=BOTH, fwd=5, after=150 * MS)
    scene.finish()
    assert [stall.recovered for stall in scene.oracle.stalls] == [True]


def test_an_rst_ends_a_stall() -> None:
    scene = Scene()
    fill(scene)
    assert not scene.say(Op.RST, fwd=5, after=150 * MS).stalled
    assert not scene.say(Op.RW, len=1).stalled
    (connection,) = scene.finish(10**9)
    assert [(s.duration_ns, s.recovered) for s in connection.stalls] == [(150 * MS, False)]


def test_the_end_of_the_capture_ends_a_stall() -> None:
    scene = Scene()
    fill(scene)
    (connection,) = scene.finish(10**9)
    (stall,) = connection.stalls
    assert (stall.duration_ns, stall.recovered, stall.end_number) == (10**9, False, None)
    assert connection.limited_ns == 10**9


def test_the_capture_ends_with_its_newest_packet_unless_told_otherwise() -> None:
    scene = Scene()
    fill(scene)
    scene.say(Op.RW, type=Type.DGRAM, after=300 * MS)
    scene.say(Op.RW, type=Type.DGRAM, after=-100 * MS)
    (connection,) = scene.oracle.finish()
    assert [s.duration_ns for s in connection.stalls] == [300 * MS]


@pytest.mark.parametrize("short", [0, 1])
def test_a_stall_counts_from_the_threshold_on(short: int) -> None:
    threshold_ns = 5 * MS
    scene = Scene(stall_threshold_ns=threshold_ns)
    fill(scene)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER, after=threshold_ns - short)
    (connection,) = scene.finish()
    assert len(connection.stalls) == 1 - short
    assert connection.client_to_server.stalled_ns == (0 if short else threshold_ns)
    assert connection.limited_ns == threshold_ns - short


def test_both_directions_stall_for_themselves() -> None:
    scene = Scene(stall_threshold_ns=0)
    fill(scene)
    assert scene.say(Op.RW, answer=True, len=BUFFER).stalled
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER)
    (connection,) = scene.finish(MS)
    assert [s.sender for s in connection.stalls] == [0, 1]
    assert [s.recovered for s in connection.stalls] == [True, False]
    assert connection.limited_ns == 3 * MS


def test_a_side_without_any_buffer_is_stalled_from_the_start() -> None:
    scene = Scene()
    scene.say(Op.REQUEST, buf=0)
    assert scene.say(Op.RESPONSE, answer=True, buf=9).stalled


# Time and latency.


def test_time_is_limited_else_in_flight_else_idle() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=BUFFER - 1, after=3)
    scene.say(Op.RW, len=1, after=5)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=1, after=7)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER, after=11)
    scene.say(Op.CREDIT_UPDATE, after=13)
    (connection,) = scene.finish(17)
    # Idle: from REQUEST to RESPONSE, to the first data, from the last reading on.
    assert connection.idle_ns == MS + 3 + 13 + 17
    assert connection.in_flight_ns == 5 + 11
    assert connection.limited_ns == 7


def test_a_clock_set_back_makes_no_negative_time() -> None:
    scene = Scene(stall_threshold_ns=0)
    scene.say(Op.REQUEST)
    scene.say(Op.RESPONSE, answer=True, after=-MS)
    scene.say(Op.RW, len=BUFFER)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER, after=-5 * MS)
    (connection,) = scene.finish()
    assert connection.connect_ns == 0
    assert connection.client_to_server.drains == [0]
    assert [s.duration_ns for s in connection.stalls] == [0]
    assert (connection.limited_ns, connection.in_flight_ns, connection.idle_ns) == (0, 0, MS)
    assert connection.end_ns < connection.start_ns


def test_connect_latency_is_that_of_the_first_response() -> None:
    scene = Scene()
    scene.say(Op.REQUEST)
    scene.say(Op.RW, len=1, after=5)
    scene.say(Op.RESPONSE, answer=True, after=7)
    scene.say(Op.RESPONSE, answer=True, after=9)
    assert scene.finish()[0].connect_ns == 12


def test_drain_latency_is_from_a_packet_to_the_fwd_cnt_that_covers_it() -> None:
    scene = Scene()
    scene.open()
    for length in (10, 20, 30):
        scene.say(Op.RW, len=length, after=1000)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=29, after=1)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=5, after=1)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=31, after=1)
    scene.say(Op.RST, answer=True, fwd=60, after=1)
    assert scene.finish()[0].client_to_server.drains == [2001, 1003]


def test_a_quantile_is_the_nearest_rank() -> None:
    assert quantile([], 0.5) is None
    assert quantile([7], 0.99) == 7
    assert [quantile([4, 1, 3, 2], share) for share in (0, 0.5, 0.51, 0.99, 1)] == [1, 2, 3, 4, 4]
    assert quantile(list(range(1, 101)), 0.99) == 99


# Messages.


def test_a_message_is_what_stands_up_to_its_eom() -> None:
    scene = Scene()
    scene.type = Type.SEQPACKET
    scene.open()
    for length, flags in [(10, 0), (5, RwFlag.EOM), (0, RwFlag.EOM), (7, RwFlag.EOM | RwFlag.EOR)]:
        scene.say(Op.RW, len=length, flags=flags, type=Type.SEQPACKET)
    scene.say(Op.RW, len=9, flags=RwFlag.EOR, type=Type.SEQPACKET)
    scene.say(Op.RW, len=3, flags=RwFlag.EOM, type=Type.SEQPACKET, answer=True)
    scene.say(Op.CREDIT_UPDATE, flags=RwFlag.EOM, type=Type.SEQPACKET)
    (connection,) = scene.finish()
    assert connection.client_to_server.messages == [15, 0, 7]
    assert connection.server_to_client.messages == [3]


def test_a_stream_has_no_messages() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=10, flags=RwFlag.EOM)
    assert scene.finish()[0].client_to_server.messages == []
