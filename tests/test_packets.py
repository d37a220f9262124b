"""Decode agrees with a plain decoder, one frame at a time with struct, and never raises."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import goldens
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import Layer, PacketBatch, Status, Stop, decode

MON = struct.Struct("<QQIIHHH2x")
VIRTIO = struct.Struct("<QQIIIHHIII")
ETHERNET = 1
LINKTYPES = (
    wire.LINKTYPE_VSOCK,
    wire.LINKTYPE_LINUX_SLL,
    wire.LINKTYPE_LINUX_SLL2,
    ETHERNET,
    wire.LINKTYPE_VSOCK + 2**16 - 2**9,
)
UNKNOWN_TRANSPORT = max(wire.Transport) + 1


class Frame(NamedTuple):
    """A captured frame, and which of LINKTYPES its interface has."""

    data: bytes
    origlen: int
    interface: int = 0


class Decoded(NamedTuple):
    """All that decode says of one frame."""

    mon: tuple[int, ...] | None
    virtio: tuple[int, ...] | None
    payload: bytes
    excess: int
    stop: Stop | None

    @property
    def status(self) -> Status:
        return self.stop.status if self.stop else Status.OK


def plain(frame: Frame) -> Decoded:
    """What is in a frame, one step after the other."""
    data, linktype = frame.data, LINKTYPES[frame.interface]
    short = Status.TRUNCATED if len(data) < frame.origlen else Status.MALFORMED
    at = 0
    if linktype == wire.LINKTYPE_LINUX_SLL:
        if len(data) < 16:
            return Decoded(None, None, b"", 0, Stop(short, Layer.LINK, 0, 16, len(data)))
        if struct.unpack_from(">H", data, 2) != (wire.ARPHRD_VSOCKMON,):
            return Decoded(None, None, b"", 0, Stop(Status.UNSUPPORTED, Layer.LINK, 2, 0, 0))
        at = 16
    elif linktype == wire.LINKTYPE_LINUX_SLL2:
        if len(data) < 20:
            return Decoded(None, None, b"", 0, Stop(short, Layer.LINK, 0, 20, len(data)))
        if struct.unpack_from(">H", data, 8) != (wire.ARPHRD_VSOCKMON,):
            return Decoded(None, None, b"", 0, Stop(Status.UNSUPPORTED, Layer.LINK, 8, 0, 0))
        at = 20
    elif linktype != wire.LINKTYPE_VSOCK:
        return Decoded(None, None, b"", 0, Stop(Status.UNSUPPORTED, Layer.LINK, 0, 0, 0))
    had = len(data) - at
    if had < MON.size:
        return Decoded(None, None, b"", 0, Stop(short, Layer.VSOCKMON, at, MON.size, had))
    mon = MON.unpack_from(data, at)
    transport, length = mon[5:]
    behind = data[at + MON.size :]
    payload = behind[length:]
    at += MON.size
    cut = Stop(short, Layer.VIRTIO, at, length, len(behind)) if len(behind) < length else None
    if transport == wire.Transport.NO_INFO:
        return Decoded(mon, None, payload, 0, cut)
    if transport != wire.Transport.VIRTIO:
        unknown = Stop(Status.UNSUPPORTED, Layer.VSOCKMON, at - MON.size + 26, 0, 0)
        return Decoded(mon, None, payload, 0, unknown)
    if length < VIRTIO.size:
        brief = Stop(Status.MALFORMED, Layer.VIRTIO, at, VIRTIO.size, length)
        return Decoded(mon, None, payload, 0, brief)
    if len(behind) < VIRTIO.size:
        return Decoded(mon, None, payload, 0, cut)
    virtio = VIRTIO.unpack_from(behind)
    said = virtio[4]
    if cut is None and len(payload) < said:
        cut = Stop(short, Layer.PAYLOAD, at + length, said, len(payload))
    return Decoded(mon, virtio, payload[:said], max(len(payload) - said, 0), cut)


def batch_of(frames: Sequence[Frame], linktypes: Sequence[int] = LINKTYPES) -> FrameBatch:
    return FrameBatch.of(
        [frame.data for frame in frames],
        time_ns=range(10**18, 10**18 + len(frames)),
        origlen=[frame.origlen for frame in frames],
        interface=[frame.interface for frame in frames],
        interfaces=[Interface(linktype=linktype) for linktype in linktypes],
        first_number=5,
    )


def decoded(packets: PacketBatch) -> list[Decoded]:
    """Every row as plain values; what is said twice must be the same twice."""
    count = len(packets)
    for name in ("headers", "start", "has_mon", "has_virtio", "payload", "captured", "excess"):
        assert getattr(packets, name).shape == (count,), name
    assert packets.status.shape == (count,)
    assert np.array_equal(np.flatnonzero(packets.status), packets.stop_rows)
    assert packets.stop_rows.shape == packets.stops.shape
    rows = []
    for row in range(count):
        values = packets.headers[row].item()
        fields = len(wire.MON_FIELDS)
        mon = values[:fields] if packets.has_mon[row] else None
        virtio = values[fields:] if packets.has_virtio[row] else None
        # What is not there reads 0.
        assert mon is not None or not any(values[:fields])
        assert virtio is not None or not any(values[fields:])
        payload = packets.payload_bytes(row)
        assert len(payload) == packets.captured[row]
        begin = int(packets.frames.offset[row])
        end = begin + int(packets.frames.caplen[row])
        assert begin <= packets.payload[row] <= packets.payload[row] + len(payload) <= end
        each = Decoded(mon, virtio, payload, int(packets.excess[row]), packets.stop(row))
        assert each.status == packets.status[row]
        rows.append(each)
    return rows


u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Both headers, with lies where decode decides."""
    transport = draw(st.sampled_from([*wire.Transport, wire.Transport.VIRTIO]) | u16)
    sane = st.just(VIRTIO.size)
    length = draw(sane | sane | st.integers(0, 2 * VIRTIO.size) | u16)
    mon = MON.pack(draw(u64), draw(u64), draw(u32), draw(u32), draw(u16), transport, length)
    ids = draw(st.tuples(u64, u64, u32, u32))
    said = draw(st.integers(0, 40) | u32)
    rest = draw(st.tuples(u16, u16, u32, u32, u32))
    return mon + VIRTIO.pack(*ids, said, *rest)


@st.composite
def frames(draw: st.DrawFn, interfaces: Sequence[int] = range(len(LINKTYPES))) -> Frame:
    interface = draw(st.sampled_from(interfaces))
    linktype = LINKTYPES[interface]
    hatype = struct.pack(">H", draw(st.just(wire.ARPHRD_VSOCKMON) | u16))
    cooked = b""
    if linktype == wire.LINKTYPE_LINUX_SLL:
        cooked = draw(st.binary(min_size=16, max_size=16))
        cooked = cooked[: wire.SLL_HATYPE] + hatype + cooked[wire.SLL_HATYPE + 2 :]
    elif linktype == wire.LINKTYPE_LINUX_SLL2:
        cooked = draw(st.binary(min_size=20, max_size=20))
        cooked = cooked[: wire.SLL2_HATYPE] + hatype + cooked[wire.SLL2_HATYPE + 2 :]
    data = draw(
        st.binary(max_size=120) | st.tuples(headers(), st.binary(max_size=60)).map(b"".join)
    )
    data = (cooked + data)[: draw(st.none() | st.integers(0, 140))]
    return Frame(data, draw(st.just(len(data)) | st.integers(0, 200) | u32), interface)


def ordinary(payload: bytes = b"", *, said: int | None = None, length: int = VIRTIO.size) -> Frame:
    mon = MON.pack(3, 2, 1000, 20, wire.MonOp.PAYLOAD, wire.Transport.VIRTIO, length)
    said = len(payload) if said is None else said
    virtio = VIRTIO.pack(3, 2, 1000, 20, said, wire.Type.STREAM, wire.Op.RW, 0, 9, 8)
    data = mon + virtio + payload
    return Frame(data, len(data))


def cut(frame: Frame, length: int) -> Frame:
    return frame._replace(data=frame.data[:length])


# A long header of which all that is known is there, and not the rest.
LONG = ordinary(b"more", length=VIRTIO.size + 8)


@given(st.lists(frames(), max_size=12))
@example([ordinary(b"x"), ordinary(b"xyz")])
@example([ordinary(b"x"), ordinary(b"xyz", said=2)])
@example([ordinary(b"x"), cut(ordinary(b"xyz"), 78)])
@example([LONG, ordinary()])
def test_any_frames_decode_as_plainly(drawn: list[Frame]) -> None:
    assert decoded(decode(batch_of(drawn))) == [plain(frame) for frame in drawn]


@given(st.lists(frames([0]) | st.binary(max_size=30).map(lambda x: ordinary(x)), max_size=12))
def test_frames_without_a_link_header_do_as_well(drawn: list[Frame]) -> None:
    packets = decode(batch_of(drawn, LINKTYPES[:1]))
    assert decoded(packets) == [plain(frame) for frame in drawn]


@given(st.lists(frames(), max_size=12), st.data())
def test_rows_taken_keep_everything(drawn: list[Frame], data: st.DataObject) -> None:
    packets = decode(batch_of(drawn))
    rows = decoded(packets)
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    kept = packets.take(np.array(mask, bool))
    assert decoded(kept) == [row for row, keep in zip(rows, mask, strict=True) if keep]
    some = st.lists(st.integers(-len(rows), len(rows) - 1), max_size=9) if rows else st.just([])
    indices = data.draw(some)
    assert decoded(packets.take(np.array(indices, np.int64))) == [rows[at] for at in indices]
    part = data.draw(st.slices(len(rows)))
    assert decoded(packets.take(part)) == rows[part]
    assert decoded(packets.take(part).take(slice(None, None, -1))) == rows[part][::-1]


@given(st.lists(frames(), max_size=12))
def test_a_copied_batch_decodes_alike(drawn: list[Frame]) -> None:
    batch = batch_of(drawn)
    assert decoded(decode(batch.copy())) == decoded(decode(batch))


@given(frames(), st.binary(max_size=200))
def test_what_lies_behind_a_frame_is_not_read(frame: Frame, behind: bytes) -> None:
    alone = decoded(decode(batch_of([frame])))
    followed = decode(batch_of([frame, Frame(behind, len(behind))]))
    assert decoded(followed)[:1] == alone


@given(st.lists(frames(), min_size=1, max_size=5))
def test_a_packet_shows_its_row(drawn: list[Frame]) -> None:
    packets = decode(batch_of(drawn))
    for row, (packet, frame) in enumerate(zip(packets, drawn, strict=True)):
        expected = plain(frame)
        mon = expected.mon or (None,) * len(wire.MON_FIELDS)
        virtio = expected.virtio or (None,) * len(wire.VIRTIO_FIELDS)
        assert tuple(getattr(packet, name) for name in wire.MON_FIELDS) == mon
        assert tuple(getattr(packet, name) for name in wire.VIRTIO_FIELDS) == virtio
        assert (packet.payload, packet.frame) == (expected.payload, frame.data)
        assert (packet.status, packet.stop) == (expected.status, expected.stop)
        assert (packet.number, packet.time_ns) == (5 + row, 10**18 + row)
        assert packets.packet(row).number == packet.number
        with pytest.raises(AttributeError):
            packet.unheard_of  # noqa: B018


def one(frame: Frame) -> Decoded:
    (row,) = decoded(decode(batch_of([frame])))
    return row


def test_a_packet_is_told_in_a_line() -> None:
    batch = decode(FrameBatch.of([frame for frame, _, _ in goldens.odd_frames()], first_number=7))
    for number, packet in enumerate(batch, 7):
        said = str(packet)
        assert said == repr(packet) == repr(batch.packet(packet.row))
        assert len(said) < 200
        shown = dict(part.split("=") for part in said[len("Packet(") : -1].split(", "))
        assert shown["number"] == str(number)
        for name in ("src_cid", "src_port", "dst_cid", "dst_port", "len"):
            assert shown[name] == str(getattr(packet, name))
        named = {op.name: op for op in wire.Op}
        assert named.get(shown["op"], shown["op"]) in (packet.op, str(packet.op))
        assert shown.get("status", "OK") == packet.status.name


@pytest.mark.parametrize("length", range(len(ordinary(b"payload").data) + 1))
def test_a_snapped_frame_is_truncated_and_a_short_one_malformed(length: int) -> None:
    whole = ordinary(b"payload")
    snapped = one(cut(whole, length))
    sent_so = one(cut(whole, length)._replace(origlen=length))
    if length == len(whole.data):
        assert snapped.stop is sent_so.stop is None
        return
    assert (snapped.status, sent_so.status) == (Status.TRUNCATED, Status.MALFORMED)
    assert snapped.stop is not None
    assert sent_so.stop == snapped.stop._replace(status=Status.MALFORMED)
    assert snapped.stop.offset + snapped.stop.had == length
    assert snapped.stop.had < snapped.stop.needed


def test_a_longer_transport_header_is_honoured() -> None:
    behind = len(LONG.data) - MON.size
    assert one(LONG).virtio is not None
    assert one(LONG).stop == Stop(Status.MALFORMED, Layer.VIRTIO, MON.size, VIRTIO.size + 8, behind)
    whole = ordinary(b"extended" + b"payload", said=7, length=VIRTIO.size + len("extended"))
    assert one(whole).payload == b"payload"
    assert one(whole).status is Status.OK


def test_no_info_has_no_second_header_and_skips_its_bytes() -> None:
    mon = MON.pack(3, 2, 1, 2, wire.MonOp.PAYLOAD, wire.Transport.NO_INFO, 4)
    row = one(Frame(mon + b"skipdata", MON.size + 8))
    assert (row.virtio, row.payload, row.status) == (None, b"data", Status.OK)


def test_an_unknown_transport_is_unsupported_but_read_as_far_as_it_goes() -> None:
    mon = MON.pack(3, 2, 1, 2, 99, UNKNOWN_TRANSPORT, 0)
    row = one(Frame(mon, MON.size))
    assert row.mon is not None and row.mon[:2] == (3, 2)
    assert row.status is Status.UNSUPPORTED


def test_more_payload_than_announced_is_counted_and_not_delivered() -> None:
    row = one(ordinary(b"truth and more", said=5))
    assert (row.payload, row.excess, row.status) == (b"truth", len(" and more"), Status.OK)


def test_a_stop_reads_as_a_sentence() -> None:
    whole = ordinary(b"payload")
    assert str(one(cut(whole, 40)).stop) == "truncated virtio at offset 32: needed 44, had 8"
    assert str(one(cut(whole, 40)._replace(origlen=40)).stop).startswith("malformed virtio")
    mon = MON.pack(3, 2, 1, 2, 99, UNKNOWN_TRANSPORT, 0)
    assert str(one(Frame(mon, MON.size)).stop) == "unsupported vsockmon at offset 26"


def test_an_empty_batch_decodes() -> None:
    assert decoded(decode(batch_of([]))) == []
    assert decoded(decode(FrameBatch.of([], interfaces=()))) == []
