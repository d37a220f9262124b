"""The oracle says what docs/credit-model.md says, in scenes made by hand."""

from __future__ import annotations

from itertools import product

import pytest
from model_document import TABLE
from oracle import ENDED, WRAP, Connection, Endpoint, Figures
from oracle_scenes import Scene, fill
from scenes import BOTH, BUFFER, CLIENT, MS, SERVER

from vsockdump.wire import CID_HOST, CID_LOCAL, FIRST_GUEST_CID, Op, ShutdownFlag, Type

# The table of states, each cell of it.


WAYS_TO: dict[str, list[list[tuple[Op, bool, int]]]] = {
    # state: ways to come there, each a list of (op, whether the server says it, flags)
    "connecting": [[(Op.REQUEST, False, 0)]],
    "established": [
        [(Op.REQUEST, False, 0), (Op.RESPONSE, True, 0)],
        [(Op.REQUEST, False, 0), (Op.RW, False, 0)],
        [(Op.RW, False, 0)],
    ],
    "half-closed": [
        [(Op.REQUEST, False, 0), (Op.SHUTDOWN, False, ShutdownFlag.SEND)],
        [(Op.RW, False, 0), (Op.SHUTDOWN, True, ShutdownFlag.RCV)],
        [(Op.SHUTDOWN, True, ShutdownFlag.RCV)],
    ],
    "closing": [
        [(Op.REQUEST, False, 0), (Op.SHUTDOWN, True, BOTH)],
        [(Op.SHUTDOWN, False, ShutdownFlag.SEND), (Op.SHUTDOWN, True, ShutdownFlag.SEND)],
        [(Op.SHUTDOWN, False, ShutdownFlag.SEND), (Op.SHUTDOWN, False, ShutdownFlag.RCV)],
    ],
    "refused": [
        [(Op.REQUEST, False, 0), (Op.RST, True, 0)],
        [(Op.REQUEST, False, 0), (Op.RST, False, 0)],
    ],
    "closed": [
        [(Op.REQUEST, False, 0), (Op.SHUTDOWN, True, BOTH), (Op.RST, False, 0)],
        [(Op.SHUTDOWN, False, ShutdownFlag.SEND), (Op.RST, False, 0)],
    ],
    "reset": [[(Op.RW, True, 0), (Op.RST, False, 0)]],
    "stray": [[(Op.RST, False, 0)], [(Op.RST, False, 0), (Op.RST, True, 0)]],
}
EVENTS: list[list[tuple[Op | int, int]]] = [
    # (op, flags) for each column; the client says it, who has said SEND in the ways above
    [(Op.RESPONSE, 0)],
    [(Op.SHUTDOWN, ShutdownFlag.SEND)],
    [(Op.SHUTDOWN, BOTH)],
    [(Op.RST, 0)],
    [
        *((op, 0) for op in (Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.INVALID)),
        (max(Op) + 1, 0),
        (Op.RW, int(BOTH)),
    ],
]


def test_the_document_has_a_row_for_every_state() -> None:
    assert TABLE.keys() == WAYS_TO.keys()
    assert all(len(cells) == len(EVENTS) for cells in TABLE.values())


@pytest.mark.parametrize(("state", "column"), [*product(WAYS_TO, range(len(EVENTS)))])
def test_a_packet_does_what_the_table_says(state: str, column: int) -> None:
    for way, (op, flags) in product(WAYS_TO[state], EVENTS[column]):
        scene = Scene()
        for way_op, from_server, way_flags in way:
            before = scene.say(way_op, answer=from_server, flags=way_flags)
        assert before.state == state
        after = scene.say(op, flags=flags)
        cell = TABLE[state][column]
        if cell == "new generation":
            assert after.conn == 2
            assert after.state == (TABLE["established"][column] or "established")
            assert scene.finish()[1].estimated
        else:
            assert after.conn == before.conn == 1
            assert after.state == (cell or state)
        ended = scene.finish()[-1].ended_ns is not None
        assert ended == (after.state in ENDED)


@pytest.mark.parametrize("state", WAYS_TO)
def test_a_shutdown_without_flags_shuts_nothing(state: str) -> None:
    for way in WAYS_TO[state]:
        scene = Scene()
        for way_op, from_server, way_flags in way:
            scene.say(way_op, answer=from_server, flags=way_flags)
        after = scene.say(Op.SHUTDOWN, flags=1 << 2)
        # In `connecting` it counts as anything else; behind a stray it is the first of a new one.
        expected = {"connecting": TABLE["connecting"][4], "stray": "established"}
        assert after.state == expected.get(state, state)


@pytest.mark.parametrize("state", WAYS_TO)
def test_a_request_always_opens_a_new_generation(state: str) -> None:
    for way in WAYS_TO[state]:
        scene = Scene()
        for way_op, from_server, way_flags in way:
            before = scene.say(way_op, answer=from_server, flags=way_flags)
        after = scene.say(Op.REQUEST, answer=True)
        assert (after.conn, after.state) == (2, "connecting")
        old, new = scene.finish()
        assert old.state == before.state
        assert (new.client, new.server, new.opened, new.estimated) == (SERVER, CLIENT, True, False)


# Which packets are followed, and as what.


@pytest.mark.parametrize(
    "odd", [{"type": Type.DGRAM}, {"type": 0}, {"type": 2**16 - 1}, {"decoded": False}]
)
def test_other_packets_belong_to_no_connection(odd: dict[str, int]) -> None:
    scene = Scene()
    assert scene.say(Op.REQUEST, **odd) == Figures()  # type: ignore[arg-type]
    assert scene.finish() == []


def test_types_do_not_mix() -> None:
    scene = Scene()
    scene.say(Op.REQUEST)
    assert scene.say(Op.RESPONSE, answer=True, type=Type.SEQPACKET).conn == 2
    assert [c.state for c in scene.finish()] == ["connecting", "established"]


def test_ports_stay_with_their_cids() -> None:
    scene = Scene()
    scene.say(Op.REQUEST)
    swapped = Endpoint(CLIENT.cid, SERVER.port), Endpoint(SERVER.cid, CLIENT.port)
    assert scene.say(Op.RW, ends=swapped).conn == 2


def test_loopback_is_told_by_ports() -> None:
    scene = Scene()
    ends = Endpoint(CID_LOCAL, 40_000), Endpoint(CID_LOCAL, 1024)
    scene.say(Op.REQUEST, ends=ends)
    scene.say(Op.RESPONSE, ends=ends, answer=True)
    scene.say(Op.RW, ends=ends, len=10)
    (connection,) = scene.finish()
    assert connection.client_to_server.bytes == 10
    assert connection.server_to_client.packets == 1


def test_loopback_to_the_host_cid_is_one_connection_answered_from_cid_1() -> None:
    scene = Scene()
    asked = Endpoint(CID_LOCAL, 40_000), Endpoint(CID_HOST, 1024)
    answering = Endpoint(CID_LOCAL, 40_000), Endpoint(CID_LOCAL, 1024)
    scene.say(Op.REQUEST, ends=asked)
    scene.say(Op.RESPONSE, ends=answering, answer=True)
    scene.say(Op.RW, ends=asked, len=10)
    after = scene.say(Op.CREDIT_UPDATE, ends=answering, answer=True, fwd=10)
    assert after.conn == 1
    assert scene.say(Op.CREDIT_UPDATE, ends=asked, answer=True, fwd=10).conn == 1
    (connection,) = scene.finish()
    assert (connection.client, connection.server) == asked
    assert connection.client_to_server.in_flight == 0
    assert not connection.estimated


@pytest.mark.parametrize(
    "ends",
    [
        (CLIENT, CLIENT),
        (Endpoint(CID_LOCAL, 5), Endpoint(CID_LOCAL, 5)),
        (Endpoint(CID_LOCAL, 5), Endpoint(CID_HOST, 5)),
        (Endpoint(FIRST_GUEST_CID, 5), Endpoint(CID_LOCAL, 5)),
    ],
)
def test_an_endpoint_that_talks_to_itself_has_no_connection(
    ends: tuple[Endpoint, Endpoint],
) -> None:
    scene = Scene()
    assert scene.say(Op.REQUEST, ends=ends) == Figures()
    assert scene.say(Op.RW, ends=ends, len=10) == Figures()
    assert scene.finish() == []


def test_a_second_interface_shows_packets_that_count_nothing() -> None:
    scene = Scene()
    once = Scene()
    for op, answer, length in [
        (Op.REQUEST, False, 0),
        (Op.RESPONSE, True, 0),
        (Op.RW, False, 700),
        (Op.RW, False, 300),
        (Op.RST, True, 0),
        (Op.RST, True, 0),
    ]:
        expected = once.say(op, answer=answer, len=length)
        for interface in (1, 0):
            figures = scene.say(
                op, answer=answer, len=length, interface=interface, after=interface * MS
            )
            assert figures == expected
    assert [summary(c) for c in scene.finish()] == [summary(c) for c in once.finish()]


def summary(connection: Connection) -> tuple[object, ...]:
    return (
        connection.state,
        connection.start_ns,
        connection.end_ns,
        connection.connect_ns,
        (connection.limited_ns, connection.in_flight_ns, connection.idle_ns),
        [(way.packets, way.bytes, way.min_window, way.sent) for way in connection.directions],
    )


def test_the_interface_is_the_key_s_for_all_generations() -> None:
    scene = Scene()
    scene.say(Op.RST, interface=1)
    assert scene.say(Op.REQUEST, interface=0).state == "stray"
    assert scene.say(Op.REQUEST, interface=1).conn == 2


# Mid-stream: who is who, and what is known.


@pytest.mark.parametrize(
    ("op", "ends", "client"),
    [
        (Op.RESPONSE, (CLIENT, SERVER), SERVER),
        (Op.RESPONSE, (SERVER, CLIENT), CLIENT),
        (Op.RW, (CLIENT, SERVER), CLIENT),
        (Op.RW, (SERVER, CLIENT), CLIENT),
        (Op.RST, (SERVER, CLIENT), CLIENT),
        (Op.RW, (Endpoint(5, 7), Endpoint(4, 7)), Endpoint(5, 7)),
        (Op.RW, (Endpoint(4, 7), Endpoint(5, 7)), Endpoint(4, 7)),
    ],
)
def test_the_client_of_a_connection_begun_before_the_capture_is_guessed(
    op: Op, ends: tuple[Endpoint, Endpoint], client: Endpoint
) -> None:
    scene = Scene()
    scene.say(op, ends=ends)
    (connection,) = scene.finish()
    assert connection.client == client
    assert {connection.client, connection.server} == set(ends)
    assert not connection.opened
    assert connection.estimated == (op != Op.RST)
    assert connection.connect_ns is None


def test_the_first_fwd_cnt_is_the_base_of_a_mid_stream_direction() -> None:
    scene = Scene()
    before = scene.say(Op.RW, len=100, fwd=7000)
    assert before == Figures(conn=1, state="established")
    answer = scene.say(Op.RW, answer=True, len=30, fwd=50_000)
    # The server's direction: the client has said 7000, and 30 were sent since.
    assert (answer.tx_cnt, answer.in_flight, answer.window) == (7030, 30, BUFFER - 30)
    after = scene.say(Op.RW, len=100, fwd=7030)
    assert (after.tx_cnt, after.in_flight) == (50_100, 100)
    # What was sent while the base was unknown has no end offset.
    assert after.outstanding == 1


def test_a_base_can_be_below_zero_and_tx_cnt_cannot() -> None:
    scene = Scene()
    scene.say(Op.RW, len=100)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=40)
    (connection,) = scene.finish()
    assert (connection.client_to_server.base, connection.client_to_server.tx_cnt) == (-60, 40)


def test_a_mid_stream_estimate_is_sharpened_by_what_is_read() -> None:
    scene = Scene()
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=1000)
    scene.say(Op.RW, len=100)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=1400)
    assert scene.say(Op.RW, len=10).tx_cnt == 1410


# Credit.


def test_figures_are_null_until_they_can_be_known() -> None:
    scene = Scene()
    assert scene.say(Op.REQUEST) == Figures(conn=1, tx_cnt=0, state="connecting")
    # Data before the RESPONSE: counted, but nobody has advertised a window for it.
    assert scene.say(Op.RW, len=5) == Figures(conn=1, tx_cnt=5, state="established")
    response = scene.say(Op.RESPONSE, answer=True, buf=400)
    assert (response.window, response.effective_window) == (BUFFER, 400)
    update = scene.say(Op.CREDIT_UPDATE)
    assert (update.in_flight, update.window, update.effective_window) == (5, 395, 395)
    assert update.outstanding == 1


def test_the_effective_window_is_bounded_by_the_sender_s_own_buffer() -> None:
    scene = Scene()
    scene.say(Op.REQUEST, buf=100)
    scene.say(Op.RESPONSE, answer=True, buf=1000)
    full = scene.say(Op.RW, len=100, buf=100)
    assert (full.window, full.effective_window, full.stalled) == (900, 0, True)


def test_a_mid_stream_sender_that_was_not_heard_has_no_effective_window() -> None:
    scene = Scene()
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=10)
    (connection,) = scene.finish()
    way = connection.client_to_server
    assert (way.window, way.effective_window) == (BUFFER, None)
    assert (way.min_window, way.min_effective_window, way.max_in_flight) == (BUFFER, None, 0)
    back = connection.server_to_client
    assert (back.min_window, back.max_in_flight, back.unread_bytes) == (None, None, None)


def test_nothing_is_taken_from_an_rst() -> None:
    scene = Scene()
    scene.open()
    before = scene.say(Op.RW, len=300)
    scene.say(Op.RST, answer=True, buf=0, fwd=0)
    after = scene.say(Op.CREDIT_UPDATE, buf=1, fwd=9)
    assert (after.tx_cnt, after.in_flight, after.window, after.effective_window) == (
        before.tx_cnt,
        before.in_flight,
        before.window,
        before.effective_window,
    )


def test_after_the_end_only_packets_and_bytes_are_counted() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=300)
    scene.say(Op.RST, answer=True)
    ended_ns = scene.now_ns
    after = scene.say(Op.RW, len=50)
    scene.say(Op.RESPONSE, answer=True, buf=9)
    scene.say(Op.SHUTDOWN, answer=True, flags=BOTH)
    assert (after.tx_cnt, after.in_flight, after.state) == (300, 300, "reset")
    (connection,) = scene.finish(10**9)
    way = connection.client_to_server
    assert (way.packets, way.bytes, way.unread_bytes) == (3, 350, 300)
    assert connection.server_to_client.packets == 4
    assert connection.end_ns == ended_ns
    assert connection.limited_ns + connection.in_flight_ns + connection.idle_ns == 3 * MS


def test_only_data_packets_have_bytes() -> None:
    scene = Scene()
    scene.say(Op.REQUEST, len=10)
    scene.say(Op.CREDIT_UPDATE, len=10)
    assert scene.say(Op.RW, len=7).tx_cnt == 7
    assert scene.finish()[0].client_to_server.bytes == 7


def test_counters_pass_4_gib() -> None:
    scene = Scene()
    scene.open()
    step = WRAP // 4 + 1
    for count in range(1, 10):
        sent = scene.say(Op.RW, len=step, buf=WRAP - 1)
        assert (sent.tx_cnt, sent.in_flight) == (count * step, step)
        scene.say(Op.CREDIT_UPDATE, answer=True, fwd=count * step % WRAP, buf=WRAP - 1)
    (connection,) = scene.finish()
    assert connection.client_to_server.bytes == 9 * step > WRAP
    assert connection.client_to_server.outstanding == 0
    assert not connection.estimated


@pytest.mark.parametrize("lost", [1, 350])
def test_bytes_that_the_capture_lost_are_found_by_fwd_cnt(lost: int) -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=100)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=100 + lost)
    after = scene.say(Op.RW, len=10)
    assert (after.tx_cnt, after.in_flight) == (110 + lost, 10)
    (connection,) = scene.finish()
    assert connection.estimated
    assert connection.client_to_server.estimated
    assert not connection.server_to_client.estimated
    assert connection.client_to_server.bytes == 110


def test_a_fwd_cnt_half_the_circle_ahead_is_behind() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=WRAP // 2)
    after = scene.say(Op.CREDIT_UPDATE)
    assert (after.tx_cnt, after.in_flight, after.window) == (0, WRAP // 2, 0)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=WRAP // 2 - 1)
    assert scene.say(Op.CREDIT_UPDATE).tx_cnt == WRAP // 2 - 1


def test_a_buffer_may_shrink_below_what_is_in_flight() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=600)
    scene.say(Op.CREDIT_UPDATE, answer=True, buf=200)
    after = scene.say(Op.CREDIT_UPDATE)
    assert (after.in_flight, after.window, after.effective_window) == (600, 0, 0)
    assert after.stalled
    assert scene.finish()[0].client_to_server.min_window == 0


def test_outstanding_packets_are_those_not_covered() -> None:
    scene = Scene()
    scene.open()
    for length in (10, 0, 20, 30):
        figures = scene.say(Op.RW, len=length)
    assert figures.outstanding == 3
    for fwd, left in ((9, 3), (10, 2), (29, 2), (59, 1), (60, 0)):
        scene.say(Op.CREDIT_UPDATE, answer=True, fwd=fwd)
        assert scene.say(Op.CREDIT_UPDATE).outstanding == left


def test_extremes_are_taken_at_packets_of_either_side() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.RW, len=400)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=0, buf=500)
    scene.say(Op.CREDIT_UPDATE, answer=True, fwd=400)
    (connection,) = scene.finish()
    way = connection.client_to_server
    assert (way.min_window, way.min_effective_window, way.max_in_flight) == (100, 100, 400)


# Late RSTs.


def closing_then_reused(scene: Scene) -> None:
    scene.open()
    scene.say(Op.SHUTDOWN, flags=BOTH)
    scene.say(Op.REQUEST)


def test_a_late_rst_belongs_to_the_old_generation() -> None:
    scene = Scene()
    closing_then_reused(scene)
    late = scene.say(Op.RST, answer=True)
    assert (late.conn, late.state) == (1, "closed")
    late_ns = scene.now_ns
    assert scene.say(Op.RESPONSE, answer=True).state == "established"
    old, new = scene.finish()
    assert (old.end_ns, old.server_to_client.packets) == (late_ns, 2)
    assert (new.state, new.server_to_client.packets) == ("established", 1)


def test_only_one_rst_is_owed() -> None:
    scene = Scene()
    closing_then_reused(scene)
    scene.say(Op.RST, answer=True)
    second = scene.say(Op.RST, answer=True)
    assert (second.conn, second.state) == (2, "refused")


def test_an_rst_behind_another_packet_of_the_new_server_is_not_late() -> None:
    scene = Scene()
    closing_then_reused(scene)
    scene.say(Op.RESPONSE, answer=True)
    rst = scene.say(Op.RST, answer=True)
    assert (rst.conn, rst.state) == (2, "reset")


def test_packets_of_the_new_client_leave_the_debt() -> None:
    scene = Scene()
    closing_then_reused(scene)
    scene.say(Op.RW, len=1)
    assert scene.say(Op.RST, answer=True).conn == 1


def test_an_rst_of_the_new_client_is_not_late() -> None:
    scene = Scene()
    closing_then_reused(scene)
    own = scene.say(Op.RST)
    assert (own.conn, own.state) == (2, "refused")


def test_the_new_server_may_have_been_the_client() -> None:
    scene = Scene()
    scene.open()
    scene.say(Op.SHUTDOWN, answer=True, flags=BOTH)
    scene.say(Op.REQUEST, answer=True)
    late = scene.say(Op.RST)
    assert (late.conn, late.state) == (1, "closed")


@pytest.mark.parametrize("op", [Op.RW, Op.RST])
def test_nothing_is_owed_to_a_generation_that_was_not_closing(op: Op) -> None:
    scene = Scene()
    scene.open()
    scene.say(op)
    scene.say(Op.REQUEST)
    rst = scene.say(Op.RST, answer=True)
    assert (rst.conn, rst.state) == (2, "refused")


# Generations that a REQUEST succeeds.


def test_time_and_stall_end_with_the_request_that_succeeds() -> None:
    scene = Scene()
    fill(scene)
    start_ns = scene.now_ns
    scene.say(Op.REQUEST, after=150 * MS)
    succeeded_ns = scene.now_ns
    scene.say(Op.RESPONSE, answer=True)
    old, _ = scene.finish(10**9)
    assert [(s.duration_ns, s.recovered) for s in old.stalls] == [(150 * MS, False)]
    assert old.limited_ns == 150 * MS
    assert old.limited_ns + old.in_flight_ns + old.idle_ns == succeeded_ns - old.start_ns
    assert old.end_ns == start_ns
    assert old.state == "established"


def test_a_late_rst_adds_the_time_up_to_itself() -> None:
    scene = Scene()
    closing_then_reused(scene)
    scene.say(Op.RST, answer=True, after=7 * MS)
    old, _ = scene.finish(10**9)
    assert old.limited_ns + old.in_flight_ns + old.idle_ns == scene.now_ns - old.start_ns


def test_a_clock_set_back_at_the_request_that_succeeds_makes_no_negative_time() -> None:
    scene = Scene(stall_threshold_ns=0)
    fill(scene)
    scene.say(Op.REQUEST, after=-MS)
    old, _ = scene.finish(10**9)
    assert (old.limited_ns, [s.duration_ns for s in old.stalls]) == (0, [0])


# Strays.


def test_a_stray_gathers_rsts_and_knows_nothing() -> None:
    scene = Scene()
    for answer in (False, True, True):
        assert scene.say(Op.RST, answer=answer) == Figures(conn=1, state="stray")
    (connection,) = scene.finish(10**9)
    assert (connection.end_ns, connection.estimated) == (scene.now_ns, False)
    assert (connection.limited_ns, connection.in_flight_ns, connection.idle_ns) == (0, 0, 0)
    assert (connection.client_to_server.packets, connection.server_to_client.packets) == (1, 2)
