"""Live capture against a real kernel's packet ring, in a network namespace of the test's own.

Frames go over veth pairs, which are Ethernet to the kernel and carry any bytes: the capture is
told to take their hardware type. What leaves a device is seen there at once and in order, as on
vsockmon.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import netns
import numpy as np
import pytest
from forked import forked

from vsockdump import device, privileges, wire
from vsockdump.errors import CaptureError
from vsockdump.frames import SLACK, FrameBatch
from vsockdump.sources import live
from vsockdump.sources.live import LiveCapture
from vsockdump.sources.packetsocket import BPF_RET_K, PacketSocket, snapped
from vsockdump.sources.ring import geometry

ETHERNET = 1
LOOPBACK = 772
LEAST_RING = 1
"""Bytes to ask for to get the smallest ring there is."""
REJECT_ODD = (
    (0x30, 0, 0, 14),  # ldb [14]
    (0x45, 0, 1, 1),  # jset #1
    (BPF_RET_K, 0, 0, 0),
    (BPF_RET_K, 0, 0, 0xFFFFFFFF),
)


@pytest.fixture
def net() -> Iterator[None]:
    with netns.namespace():
        yield


@pytest.fixture
def sender(net: None) -> Iterator[netns.Sender]:
    with contextlib.closing(netns.Sender(netns.veth("va"))) as made:
        yield made


@pytest.fixture
def capture(net: None) -> Iterator[Callable[..., LiveCapture]]:
    with contextlib.ExitStack() as stack:

        def make(*names: str, **options: Any) -> LiveCapture:
            options = {"hardware_types": (ETHERNET, LOOPBACK)} | options
            return stack.enter_context(contextlib.closing(LiveCapture(names or ("va",), **options)))

        yield make


def frames_of(count: int, sizes: Sequence[int] = (60, 120, 1500)) -> list[bytes]:
    """Frames that differ from one another: a running number, then bytes of its own."""
    rng = random.Random(count)
    made = []
    for number in range(count):
        size = sizes[number % len(sizes)]
        made.append((bytes(10) + number.to_bytes(5) + rng.randbytes(size))[:size])
    return made


def bytes_of(batch: FrameBatch) -> list[bytes]:
    return [batch.frame(row) for row in range(len(batch))]


def rest_of(capture: LiveCapture) -> list[bytes]:
    """Stop, and what is still delivered."""
    capture.stop()
    return [frame for batch in capture.batches() for frame in bytes_of(batch)]


def test_every_byte_arrives_in_order_with_the_time_it_was_sent(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture()
    sent = frames_of(600)
    before = time.time_ns()
    sender.send(sent)
    after = time.time_ns()
    source.stop()
    got: list[bytes] = []
    times: list[int] = []
    numbers: list[int] = []
    for batch in source.batches():
        got += bytes_of(batch)
        times += batch.time_ns.tolist()
        numbers += batch.number.tolist()
        assert batch.caplen.tolist() == batch.origlen.tolist()
        assert not batch.interface.any()
        assert batch.interfaces is source.interfaces
    assert got == sent
    assert times == sorted(times)
    # The kernel's clock and ours may differ by the grain of one of them.
    assert before - 1_000_000 <= times[0]
    assert times[-1] <= after + 1_000_000
    assert any(time_ns % 1000 for time_ns in times)
    assert numbers == list(range(1, len(sent) + 1))
    statistics = source.statistics()[0]
    assert (statistics.received, statistics.dropped) == (len(sent), 0)
    assert statistics.start_ns is not None
    assert statistics.end_ns is not None
    assert statistics.start_ns <= times[0] <= times[-1] <= statistics.end_ns


def test_batches_are_the_ring_itself_and_stay_until_the_next_is_asked_for(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture(ring_bytes=LEAST_RING)
    sent = frames_of(200)
    sender.send(sent)
    batches = _filled(source.batches())
    first = next(batches)
    assert np.shares_memory(first.buf, source._region.bytes)
    assert not first.buf.flags.writeable
    kept = bytes_of(first)
    assert kept == sent[: len(kept)]
    # More than the ring holds: whatever the kernel may write, it writes now.
    sender.send(frames_of(1000, sizes=(1500,)))
    assert bytes_of(first) == kept
    assert (source.statistics()[0].dropped or 0) > 0
    assert len(next(batches)) > 0


def test_the_longest_frame_arrives_whole(capture: Callable[..., LiveCapture]) -> None:
    netns.change("lo", state="up", mtu=wire.MAX_FRAME)
    source = capture("lo", ring_bytes=LEAST_RING, program=netns.OUTGOING_ONLY)
    sent = frames_of(12, sizes=(wire.MAX_FRAME, 20, wire.MAX_FRAME - 3))
    with contextlib.closing(netns.Sender("lo")) as sender:
        batches = _filled(source.batches())
        # One at a time: the smallest ring has no room for all of them.
        for frame in sent:
            sender.send([frame])
            batch = next(batches)
            assert bytes_of(batch) == [frame]
            assert batch.origlen.tolist() == [len(frame)]
    assert source.statistics()[0].received == len(sent)
    assert source.statistics()[0].dropped == 0


def _filled(batches: Iterator[FrameBatch]) -> Iterator[FrameBatch]:
    """The batches that are not empty; fails where nothing comes for long."""
    empty = 0
    for batch in batches:
        empty = 0 if len(batch) else empty + 1
        assert empty < 10_000 / live.TICK_MS
        if len(batch):
            yield batch


@pytest.mark.parametrize("program", [None, REJECT_ODD])
@pytest.mark.parametrize("snaplen", [20, 76, 100_000])
def test_the_snapshot_length_cuts_and_the_original_length_stays(
    sender: netns.Sender,
    capture: Callable[..., LiveCapture],
    snaplen: int,
    program: Sequence[tuple[int, int, int, int]] | None,
) -> None:
    source = capture(snaplen=snaplen, program=program, filter_text="some filter")
    sent = frames_of(100)
    sender.send(sent)
    wanted = [frame for frame in sent if program is None or not frame[14] & 1]
    source.stop()
    got: list[bytes] = []
    origlen: list[int] = []
    for batch in source.batches():
        got += bytes_of(batch)
        origlen += batch.origlen.tolist()
    assert got == [frame[:snaplen] for frame in wanted]
    assert origlen == [len(frame) for frame in wanted]
    assert source.interfaces[0].snaplen == snaplen
    assert source.interfaces[0].filter == "some filter"
    assert source.statistics()[0].received == len(wanted)


def test_a_program_is_cut_to_the_snapshot_length_where_it_keeps_more() -> None:
    assert snapped(None, 0) is None
    assert snapped(REJECT_ODD, 0) is REJECT_ODD
    program = snapped(REJECT_ODD, 76)
    assert program is not None
    assert list(program) == [*REJECT_ODD[:3], (BPF_RET_K, 0, 0, 76)]


def test_the_record_names_device_filter_and_machine(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    (interface,) = capture().interfaces
    system = os.uname()
    assert interface.linktype == wire.LINKTYPE_VSOCK
    assert (interface.name, interface.snaplen, interface.filter) == ("va", 0, "")
    assert interface.nanoseconds
    assert interface.kernel == f"{system.sysname} {system.release}"
    assert interface.section.hardware == system.machine
    assert interface.section.application.startswith("vsockdump ")


def test_what_finds_no_room_is_counted(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture(ring_bytes=LEAST_RING)
    sent = frames_of(1200, sizes=(1500,))
    assert sum(map(len, sent)) > 2 * source._region.size
    sender.send(sent)
    counted = source.statistics()[0]
    assert counted.received == len(sent)
    assert counted.dropped is not None
    assert 0 < counted.dropped < len(sent)
    got = rest_of(source)
    assert got == sent[: len(sent) - counted.dropped]
    # Counters are read and reset by the kernel; ours go on.
    assert source.statistics()[0].received == counted.received
    source.close()
    assert source.statistics()[0].dropped == counted.dropped


def test_a_ring_goes_round_many_times_without_loss(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    least = geometry(LEAST_RING)
    source = capture(ring_bytes=7 * least.block)
    sent = frames_of(6000, sizes=(14, 60, 300, 3000, 9000))
    assert sum(map(len, sent)) >= 10 * source._region.size
    got: list[bytes] = []
    waiting = iter(sent)
    ahead = 0
    batches = _filled(source.batches())
    while len(got) < len(sent):
        # More than a block on its way, so that one is full, and less than the blocks not held.
        while ahead < 3 * least.block // 2 and (frame := next(waiting, None)) is not None:
            sender.send([frame])
            ahead += len(frame)
        batch = next(batches)
        assert (batch.offset + batch.caplen <= batch.buf.size - SLACK).all()
        got += bytes_of(batch)
        ahead -= int(batch.caplen.sum())
        assert source.statistics()[0].dropped == 0
    assert got == sent


def test_several_interfaces_are_one_source_in_order_of_time(
    capture: Callable[..., LiveCapture],
) -> None:
    names = [netns.veth(name) for name in ("va", "vb", "vc")]
    source = capture(*names)
    senders = [netns.Sender(name) for name in names]
    sent = frames_of(300)
    for place, frame in enumerate(sent):
        senders[place % 3 if place % 7 else 0].send([frame])
    # All three rings have something ready, so that there is something to put in order.
    time.sleep(4 * live.RETIRE_MS / 1000)
    source.stop()
    by_interface: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    together: list[tuple[int, bytes]] = []
    numbers: list[int] = []
    for batch in source.batches():
        assert (np.diff(batch.time_ns) >= 0).all()
        numbers += batch.number.tolist()
        for row, frame in enumerate(bytes_of(batch)):
            by_interface[int(batch.interface[row])].append(frame)
            together.append((int(batch.time_ns[row]), frame))
    assert numbers == list(range(1, len(sent) + 1))
    for index in range(3):
        wanted = [f for place, f in enumerate(sent) if (place % 3 if place % 7 else 0) == index]
        assert by_interface[index] == wanted
        assert source.interfaces[index].name == names[index]
        assert source.statistics()[index].received == len(wanted)
    assert [frame for _, frame in sorted(together, key=lambda pair: pair[0])] == sent
    for made in senders:
        made.close()


def test_the_filter_holds_from_the_first_frame_on(
    sender: netns.Sender, capture: Callable[..., LiveCapture], monkeypatch: pytest.MonkeyPatch
) -> None:
    even, odd = frames_of(2)
    assert [frame[14] & 1 for frame in (even, odd)] == [0, 1]
    really_bind = PacketSocket.bind

    def bind(opened: PacketSocket) -> None:
        # Traffic right before and right after the moment from which frames are queued.
        sender.send([odd, even])
        really_bind(opened)
        sender.send([odd, even, odd])

    monkeypatch.setattr(PacketSocket, "bind", bind)
    assert rest_of(capture(program=REJECT_ODD)) == [even]


def test_nothing_from_before_the_capture_or_of_other_devices_appears(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    other = netns.Sender(netns.veth("vb"))
    sent = frames_of(30)
    sender.send(sent[:10])
    source = capture()
    other.send(sent[10:20])
    sender.send(sent[20:])
    assert rest_of(source) == sent[20:]
    other.close()


def test_an_idle_capture_yields_empty_batches(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture()
    begin = time.monotonic()
    batches = source.batches()
    for tick in range(1, 4):
        batch = next(batches)
        assert len(batch) == 0
        assert time.monotonic() - begin >= 0.9 * tick * live.TICK_MS / 1000
    sent = frames_of(1)
    sender.send(sent)
    assert bytes_of(next(_filled(batches))) == sent


def test_immediate_mode_does_not_wait_for_a_block_to_fill(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture(immediate=True)
    batches = _filled(source.batches())
    waits = []
    for frame in frames_of(15):
        begin = time.monotonic()
        sender.send([frame])
        assert bytes_of(next(batches)) == [frame]
        waits.append(1000 * (time.monotonic() - begin))
    assert sorted(waits)[len(waits) // 2] < live.RETIRE_MS / 2


@pytest.mark.parametrize("count", [0, 5])
def test_a_signal_ends_a_waiting_capture_at_once(
    sender: netns.Sender,
    capture: Callable[..., LiveCapture],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    source = capture()
    batches = source.batches()
    assert len(next(batches)) == 0
    # Were it not woken, it would go on until the next tick.
    monkeypatch.setattr(live, "TICK_MS", 3000)
    asked: list[float] = []

    def on_signal(number: int, frame: object) -> None:
        asked.append(time.monotonic())
        source.stop()

    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        sent = frames_of(count)
        # In a block that is not full when the signal comes.
        sender.send(sent)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        got = [frame for batch in batches for frame in bytes_of(batch)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert got == sent
    assert len(asked) == 1
    assert time.monotonic() - asked[0] < live.TICK_MS / 2000


def test_stop_delivers_what_came_before_it_however_little_that_is(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    for count in range(8):
        source = capture()
        sent = frames_of(count)
        sender.send(sent)
        assert rest_of(source) == sent
        source.close()


def test_what_is_sent_after_stop_is_not_waited_for(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture()
    sent = frames_of(600)
    sender.send(sent[:300])
    source.stop()
    got = []
    for batch in source.batches():
        got += bytes_of(batch)
        assert got == sent[: len(got)]
        assert len(got) <= 300
        sender.send(sent[300:])
    assert len(got) == 300


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda: netns.change("va", state="down"), "va went down while capturing"),
        (lambda: netns.remove("va"), "va was removed while capturing"),
    ],
)
def test_a_device_that_goes_is_one_error_after_its_last_frame(
    sender: netns.Sender,
    capture: Callable[..., LiveCapture],
    end: Callable[[], None],
    says: str,
) -> None:
    source = capture()
    sent = frames_of(20)
    got = []
    with pytest.raises(CaptureError) as raised:
        for ticks, batch in enumerate(source.batches()):
            if ticks == 0:
                sender.send(sent)
                end()
            got += bytes_of(batch)
    assert str(raised.value) == says
    assert got == sent


def test_closing_gives_the_ring_back_and_leaves_batches_harmless(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    packets = Path("/proc/thread-self/net/packet")
    idle = len(packets.read_text().splitlines())
    source = capture()
    assert len(packets.read_text().splitlines()) == idle + 1
    sender.send(frames_of(10))
    batches = source.batches()
    batch = next(_filled(batches))
    assert bytes_of(batch) == frames_of(10)[: len(batch)]
    assert batch.buf.any()
    source.close()
    assert len(packets.read_text().splitlines()) == idle
    assert not batch.buf.any()
    assert list(batches) == []
    source.stop()
    source.close()
    assert source.statistics()[0].received == 10


def test_a_capture_may_be_left_in_the_middle(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture()
    sent = frames_of(40)
    sender.send(sent[:20])
    left = next(_filled(source.batches()))
    got = bytes_of(left)
    numbers = left.number.tolist()
    sender.send(sent[20:])
    # A new iterator goes on where the one before was left.
    source.stop()
    for batch in source.batches():
        got += bytes_of(batch)
        numbers += batch.number.tolist()
    assert got == sent
    assert numbers == list(range(1, len(sent) + 1))


def test_a_device_of_another_kind_is_refused(sender: netns.Sender) -> None:
    with pytest.raises(CaptureError, match=r"^va is not a vsockmon device \(hardware type 1\)$"):
        LiveCapture(["va"])


def test_a_device_with_vsockmon_s_hardware_type_is_taken(net: None) -> None:
    with netns.tun("tap0", wire.ARPHRD_VSOCKMON) as name:
        sent = frames_of(3)
        with (
            contextlib.closing(LiveCapture([name])) as source,
            contextlib.closing(netns.Sender(name)) as sender,
        ):
            sender.send(sent)
            assert rest_of(source) == sent


@pytest.mark.parametrize("name", ["nosuch", "", "a-name-that-is-too-long", "nul\0"])
def test_a_device_that_is_not_there_is_named_with_what_to_do(
    net: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "list_devices", list)
    with pytest.raises(CaptureError) as raised:
        LiveCapture([name])
    assert str(raised.value) == (
        f"{name}: no such interface, nor any vsockmon device; try: vsockdump device create {name}"
    )
    there = [device.Device(name=n, index=1, up=True, mtu=1) for n in ("vsockmon0", "mon1")]
    monkeypatch.setattr(device, "list_devices", lambda: there)
    with pytest.raises(CaptureError, match=r"vsockmon devices here: vsockmon0, mon1$"):
        LiveCapture([name])


def test_a_device_that_is_down_is_named_with_what_to_do(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    netns.change("va", state="down")
    with pytest.raises(CaptureError, match=r"^va: is down; try: ip link set va up$"):
        capture()


def test_no_device_and_the_same_device_twice_are_refused(net: None) -> None:
    with pytest.raises(CaptureError, match="no interface"):
        LiveCapture([])
    with pytest.raises(CaptureError, match="vb is given twice"):
        LiveCapture(["va", "vb", "vb"])


def test_a_filter_beyond_the_memory_for_filters_is_refused(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    program = [(0x06, 0, 0, 1)] * 4096
    failing = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    with (
        patch.object(PacketSocket, "attach", side_effect=failing),
        pytest.raises(CaptureError, match=r"no memory for a filter of 4096 instructions; raise"),
    ):
        capture(program=program)


def test_a_ring_beyond_memory_is_refused(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    with pytest.raises(CaptureError, match=r"no memory for a ring of \d+ KiB; ask for less"):
        capture(ring_bytes=1 << 47)


def test_a_program_the_kernel_refuses_is_an_error(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CaptureError, match=r"^va: Invalid argument$"):
        capture(program=((0xFFFF, 0, 0, 0),))
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EAFNOSUPPORT, "va: this kernel has no packet sockets (CONFIG_PACKET)"),
        (errno.EMFILE, f"va: {os.strerror(errno.EMFILE)}"),
    ],
)
def test_other_failures_of_the_kernel_are_one_line(
    monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def fail(opened: PacketSocket, name: str) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(PacketSocket, "__init__", fail)
    with pytest.raises(CaptureError) as raised:
        LiveCapture(["va"])
    assert str(raised.value) == says


def test_without_permission_the_error_says_how_to_get_it(sender: netns.Sender) -> None:
    def attempt() -> None:
        privileges.drop("nobody")
        LiveCapture(["va"])

    assert forked(attempt) == [
        "CaptureError",
        "va: no permission to capture: run as root, or once as root: "
        f"{privileges.setcap_command()}",
    ]


def test_a_capture_goes_on_after_privileges_are_dropped(
    sender: netns.Sender, capture: Callable[..., LiveCapture]
) -> None:
    source = capture()
    sent = frames_of(20)

    def read() -> list[object]:
        privileges.drop("nobody")
        sender.send(sent)
        got = rest_of(source)
        source.close()
        return [[frame.hex() for frame in got], source.statistics()[0].received]

    assert forked(read) == [[frame.hex() for frame in sent], len(sent)]
