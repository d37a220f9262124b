"""The smallest traffic that shows each finding, and what differs by as little and does not.

Scenes have an X, who sends, and a Y, who receives. RAISES and BENIGN list them with the code of the
finding that they show, or nearly show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scenes import BOTH, BUFFER, CLIENT, SERVER, Script

from vsockdump import wire
from vsockdump.frames import Interface
from vsockdump.tracking.detect import MERGED, SKB_TRUESIZE
from vsockdump.tracking.tracker import STALL_THRESHOLD_NS
from vsockdump.wire import CID_ANY, CID_HYPERVISOR, Op, RwFlag, ShutdownFlag, Type

Scene = Callable[[Script], None]
RCV, SEND = ShutdownFlag.RCV, ShutdownFlag.SEND
RAISES: Final[list[tuple[str, Scene]]] = []
BENIGN: Final[list[tuple[str, Scene]]] = []


def raises(code: str) -> Callable[[Scene], Scene]:
    def note(scene: Scene) -> Scene:
        RAISES.append((code, scene))
        return scene

    return note


def benign(code: str) -> Callable[[Scene], Scene]:
    def note(scene: Scene) -> Scene:
        BENIGN.append((code, scene))
        return scene

    return note


# Credit.


@raises("beyond-window")
def one_byte_more_than_the_window(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.x(Op.RW, len=1)


@benign("beyond-window")
def exactly_the_window(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.x(Op.RW, len=0)


@benign("beyond-window")
def data_under_way_while_the_window_shrinks(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=600)
    s.y(Op.CREDIT_UPDATE, buf=500)
    s.x(Op.RW, len=300)


@raises("fwd-ahead")
def more_was_read_than_sent(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.CREDIT_UPDATE, fwd=11)


@benign("fwd-ahead")
def all_was_read(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.CREDIT_UPDATE, fwd=10)


@benign("fwd-ahead")
def more_was_read_of_what_began_before_the_capture(s: Script) -> None:
    s.y(Op.CREDIT_UPDATE, fwd=1000)
    s.x(Op.RW, len=10)
    s.y(Op.CREDIT_UPDATE, fwd=1011)


@raises("fwd-backwards")
def less_was_read_than_before(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.CREDIT_UPDATE, fwd=10)
    s.y(Op.CREDIT_UPDATE, fwd=9)


@benign("fwd-backwards")
def as_much_was_read_as_before(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.CREDIT_UPDATE, fwd=10)
    s.y(Op.CREDIT_UPDATE, fwd=10)
    s.y(Op.RST, fwd=0)


@benign("fwd-backwards")
def a_counter_that_wraps(s: Script) -> None:
    s.y(Op.CREDIT_UPDATE, fwd=2**32 - 1)
    s.x(Op.RW, len=3)
    s.y(Op.CREDIT_UPDATE, fwd=2)


@raises("buf-shrunk")
def a_buffer_below_what_is_in_flight(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=500)
    s.y(Op.CREDIT_UPDATE, buf=499)


@benign("buf-shrunk")
def a_buffer_that_still_holds_what_is_in_flight(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=500)
    s.y(Op.CREDIT_UPDATE, buf=500)


@raises("credit-request")
def credit_is_asked_for(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_REQUEST)
    s.y(Op.CREDIT_UPDATE)


@benign("credit-request")
def credit_is_told(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_UPDATE)


@raises("credit-request-unanswered")
def credit_is_asked_for_in_vain(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_REQUEST)
    s.x(Op.CREDIT_UPDATE, after=STALL_THRESHOLD_NS)


@benign("credit-request-unanswered")
def credit_is_told_when_asked_for(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_REQUEST)
    s.y(Op.CREDIT_UPDATE)
    s.y(Op.CREDIT_UPDATE, after=STALL_THRESHOLD_NS)


@benign("credit-request-unanswered")
def the_capture_ends_before_the_answer(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_REQUEST)
    s.x(Op.CREDIT_REQUEST, after=STALL_THRESHOLD_NS - 1)


@benign("credit-request-unanswered")
def the_connection_ends_before_the_answer(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_REQUEST)
    s.y(Op.RST)
    s.y(Op.RST, after=10 * STALL_THRESHOLD_NS)


# Stalls.


@raises("stall")
def a_full_window_that_is_read_late(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.y(Op.CREDIT_UPDATE, fwd=1, after=STALL_THRESHOLD_NS)


@benign("stall")
def a_full_window_that_is_read_in_time(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.y(Op.CREDIT_UPDATE, fwd=1, after=STALL_THRESHOLD_NS - 1)


@benign("stall")
def a_window_that_is_nearly_full(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER - 1)
    s.y(Op.CREDIT_UPDATE, fwd=1, after=STALL_THRESHOLD_NS)


@raises("stall-unrecovered")
def a_full_window_that_is_never_read(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.y(Op.CREDIT_UPDATE, after=STALL_THRESHOLD_NS)


@raises("stall-unrecovered")
def a_full_window_and_then_a_close(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.x(Op.SHUTDOWN, flags=BOTH, after=STALL_THRESHOLD_NS)


@benign("stall-unrecovered")
def a_full_window_and_nothing_more_to_send(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=BUFFER)
    s.x(Op.SHUTDOWN, flags=SEND)
    s.y(Op.CREDIT_UPDATE, after=STALL_THRESHOLD_NS)


@benign("stall-unrecovered")
def a_full_window_that_is_read_in_the_end(s: Script) -> None:
    a_full_window_that_is_read_late(s)
    s.y(Op.CREDIT_UPDATE, fwd=1, after=STALL_THRESHOLD_NS)


# The life of a connection.


@raises("data-before-response")
def data_before_the_answer(s: Script) -> None:
    s.add(Op.REQUEST)
    s.x(Op.RW, len=1)


@benign("data-before-response")
def data_after_the_answer(s: Script) -> None:
    s.add(Op.REQUEST)
    s.add(Op.RESPONSE, answer=True)
    s.x(Op.RW, len=1)


@raises("data-after-shutdown")
def data_after_saying_that_there_is_no_more(s: Script) -> None:
    s.open()
    s.x(Op.SHUTDOWN, flags=SEND)
    s.x(Op.RW, len=1)


@raises("data-after-shutdown")
def data_after_being_told_that_nobody_listens(s: Script) -> None:
    s.open()
    s.y(Op.SHUTDOWN, flags=RCV)
    s.x(Op.RW, len=1)


@benign("data-after-shutdown")
def data_in_the_direction_that_is_open(s: Script) -> None:
    s.open()
    s.x(Op.SHUTDOWN, flags=SEND)
    s.y(Op.RW, len=1)
    s.x(Op.RW, len=0)


@raises("data-after-rst")
def data_after_the_end(s: Script) -> None:
    s.open()
    s.y(Op.RST)
    s.x(Op.RW, len=1)


@benign("data-after-rst")
def words_after_the_end(s: Script) -> None:
    s.open()
    s.y(Op.RST)
    s.x(Op.CREDIT_UPDATE)


@benign("data-after-rst")
def data_of_the_next_connection(s: Script) -> None:
    s.open()
    s.y(Op.RST)
    s.open()
    s.x(Op.RW, len=1)


@raises("rst-after-rst")
def an_rst_after_the_one_that_ended(s: Script) -> None:
    s.open()
    s.y(Op.RST)
    s.x(Op.RST)


@benign("rst-after-rst")
def the_two_rsts_of_an_ordinary_close(s: Script) -> None:
    s.open()
    s.y(Op.SHUTDOWN, flags=BOTH)
    s.x(Op.RST)
    s.x(Op.RST)


@benign("rst-after-rst")
def rsts_of_an_unknown_connection(s: Script) -> None:
    s.x(Op.RST)
    s.x(Op.RST)


@raises("reset")
def an_rst_without_a_shutdown(s: Script) -> None:
    s.open()
    s.x(Op.RST)


@benign("reset")
def an_rst_after_a_shutdown(s: Script) -> None:
    s.open()
    s.y(Op.SHUTDOWN, flags=SEND)
    s.x(Op.RST)


@raises("unread-data")
def closing_with_something_unread(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.SHUTDOWN, flags=RCV, fwd=9)


@raises("unread-data")
def resetting_with_something_unread(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.RST, buf=BUFFER, fwd=9)


@raises("unread-data")
def an_rst_that_does_not_know_the_connection(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.RST, buf=0, fwd=0)


@benign("unread-data")
def closing_with_all_read(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.SHUTDOWN, flags=BOTH, fwd=10)


@benign("unread-data")
def an_rst_that_tells_that_all_was_read(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.y(Op.RST, buf=BUFFER, fwd=10)


@benign("unread-data")
def the_sender_closes(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=10)
    s.x(Op.SHUTDOWN, flags=BOTH)


@raises("mid-stream")
def a_capture_that_began_too_late(s: Script) -> None:
    s.x(Op.CREDIT_UPDATE)
    s.y(Op.CREDIT_UPDATE)


@benign("mid-stream")
def a_capture_that_began_in_time(s: Script) -> None:
    s.open()
    s.x(Op.CREDIT_UPDATE)


@benign("mid-stream")
def a_connection_that_nobody_knows(s: Script) -> None:
    s.x(Op.RST)


# Too many packets.

ROOM: Final = 20
"""Packets that fit into the buffer of the scenes below, however small they are."""
NEAR: Final = 19


def tiny_packets(s: Script, count: int, *, len: int = 1, type: int = Type.SEQPACKET) -> None:
    s.type = type
    s.open(buf=ROOM * SKB_TRUESIZE)
    for _ in range(count):
        s.x(Op.RW, len=len, flags=RwFlag.EOM, buf=ROOM * SKB_TRUESIZE)


@raises("packet-limit-near")
def many_tiny_packets(s: Script) -> None:
    tiny_packets(s, NEAR)


@benign("packet-limit-near")
def one_tiny_packet_less(s: Script) -> None:
    tiny_packets(s, NEAR - 1)


@benign("packet-limit-near")
def tiny_packets_that_a_stream_merges(s: Script) -> None:
    tiny_packets(s, ROOM, type=Type.STREAM)


@benign("packet-limit-near")
def packets_that_fill_the_window_first(s: Script) -> None:
    tiny_packets(s, NEAR, len=ROOM * SKB_TRUESIZE // 2 // NEAR + 1)


@raises("packet-limit-near")
def stream_packets_too_large_to_be_merged(s: Script) -> None:
    tiny_packets(s, NEAR, len=MERGED + 1, type=Type.STREAM)


@raises("packet-limit-reset")
def a_reset_with_many_tiny_packets_unread(s: Script) -> None:
    tiny_packets(s, ROOM)
    s.y(Op.RST)


@benign("packet-limit-reset")
def a_reset_with_some_tiny_packets_unread(s: Script) -> None:
    tiny_packets(s, NEAR - 1)
    s.y(Op.RST)


@benign("packet-limit-reset")
def a_reset_by_the_sender_of_many(s: Script) -> None:
    tiny_packets(s, ROOM)
    s.x(Op.RST)


# Headers and payload.


@raises("headers-differ")
def two_headers_that_disagree_on_a_port(s: Script) -> None:
    s.open()
    s.x(Op.RW, header={"virtio_src_port": 5})


@raises("headers-differ")
def two_headers_that_disagree_on_the_operation(s: Script) -> None:
    s.open()
    s.x(Op.RW, header={"mon_op": wire.MonOp.CONTROL})


@benign("headers-differ")
def an_operation_that_the_tap_does_not_know(s: Script) -> None:
    s.open()
    s.x(max(Op) + 1, header={"mon_op": wire.MonOp.UNKNOWN})
    s.x(Op.INVALID, header={"mon_op": wire.MonOp.UNKNOWN})


@raises("excess-payload")
def one_byte_more_than_the_header_says(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=3, payload=b"abcd")


@benign("excess-payload")
def as_many_bytes_as_the_header_says(s: Script) -> None:
    s.open()
    s.x(Op.RW, len=4, payload=b"abcd")


@raises("payload-repaired")
def pieces_on_a_kernel_that_repeats_them(s: Script) -> None:
    s.interfaces = (Interface(os="Linux 6.12.1"),)
    s.open()
    for _ in range(2):
        s.x(Op.RW, len=2, payload=b"abcd")


@benign("payload-repaired")
def pieces_on_a_kernel_that_does_not(s: Script) -> None:
    s.interfaces = (Interface(os="Linux 6.12.90"),)
    s.open()
    for _ in range(2):
        s.x(Op.RW, len=2, payload=b"abcd")


@raises("duplicate")
def a_packet_on_a_second_device(s: Script) -> None:
    s.open()
    s.x(Op.RW)
    s.x(Op.RW, interface=1)


@benign("duplicate")
def another_connection_on_a_second_device(s: Script) -> None:
    s.open()
    s.x(Op.RW, ends=(CLIENT._replace(port=7), SERVER), interface=1)


@raises("spoofed-cid")
def from_no_machine_at_all(s: Script) -> None:
    s.ends = tuple(s.ends[side]._replace(cid=(CID_ANY, CID_HYPERVISOR)[side]) for side in (0, 1))
    s.open()


@benign("spoofed-cid")
def to_no_machine_at_all(s: Script) -> None:
    other = s.ends[s.flipped]
    ends = [s.ends[0], s.ends[1]]
    ends[not s.flipped] = other._replace(cid=CID_ANY, port=1)
    s.ends = (ends[0], ends[1])
    s.x(Op.REQUEST)
