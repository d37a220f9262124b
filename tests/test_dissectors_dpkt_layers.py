from __future__ import annotations

import dpkt
import pytest
import vsockdump.captures as captures
from dissectors_frames import any_bytes, edges, frames, unhurried
from hypothesis import given
from vsockdump.dissectors.dpkt_layers import VirtioVsock, VSockMon

from vsockdump import wire
from vsockdump.frames import FrameBatch
from vsockdump.packets import decode


@unhurried
@given(any_bytes)
def test_bytes_are_kept_and_short_ones_are_told(data: bytes) -> None:
    keeps(data)


@unhurried
@given(frames())
def test_fields_agree_with_decode(frame: bytes) -> None:
    agrees_with_decode(frame)


def test_the_same_at_every_edge() -> None:
    for frame in edges():
        keeps(frame)
        agrees_with_decode(frame)


def keeps(data: bytes) -> None:
    for kind in (VSockMon, VirtioVsock):
        if len(data) < kind.__hdr_len__:
            with pytest.raises(dpkt.NeedData):
                kind(data)
        else:
            packet = kind(data)
            assert bytes(packet) == data
            assert len(packet) == len(data)
            assert repr(packet)


def agrees_with_decode(frame: bytes) -> None:
    batch = decode(FrameBatch.of([frame]))
    row = batch.packet(0)
    if not batch.has_mon[0]:
        return
    packet = VSockMon(frame)
    for name in wire.MON_FIELDS:
        assert getattr(packet, name) == getattr(row, name)
    assert (VirtioVsock in packet) == batch.has_virtio[0]
    if VirtioVsock in packet:
        for name in wire.VIRTIO_FIELDS:
            assert getattr(packet.data, name.removeprefix("virtio_")) == getattr(row, name)
        assert packet.data.data == row.payload
        assert len(packet.data.padding) == batch.excess[0]
        extra = frame[wire.HEADERS_LEN : wire.MON_HDR_LEN + packet.transport_len]
        assert packet.data.extra == extra
    elif packet.transport == wire.Transport.VIRTIO and packet.transport_len >= wire.VIRTIO_HDR_LEN:
        assert packet.data == frame[wire.MON_HDR_LEN :]
    else:
        assert packet.data == row.payload


def test_built_by_hand() -> None:
    payload = b"payload"
    virtio = VirtioVsock(src_cid=3, dst_cid=2, len=len(payload), data=payload)
    frame = bytes(VSockMon(src_cid=3, dst_cid=2, data=virtio))
    row = decode(FrameBatch.of([frame])).packet(0)
    assert row.payload == payload
    assert (row.op, row.mon_op, row.type) == (wire.Op.RW, wire.MonOp.PAYLOAD, wire.Type.STREAM)
    assert (row.src_cid, row.virtio_src_cid) == (3, 3)


def test_shows_names_and_only_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    packet = VSockMon(bytes(VSockMon(data=VirtioVsock(op=99))))
    assert repr(packet) == "VSockMon(data=VirtioVsock(op=99))"
    packet.pprint()
    shown = capsys.readouterr().out
    assert "# PAYLOAD" in shown
    assert "# 99" in shown


@pytest.mark.parametrize("name", captures.names())
def test_real_captures(name: str) -> None:
    with captures.path(name).open("rb") as file:
        for _, frame in dpkt.pcapng.Reader(file):
            packet = VSockMon(frame)
            assert bytes(packet) == frame
            assert packet[VirtioVsock].src_cid == packet.src_cid
