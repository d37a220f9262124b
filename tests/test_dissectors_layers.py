from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vsockdump.captures as captures
from dissectors_frames import any_bytes, edges, frames, headers, unhurried, write_pcap
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.l2 import CookedLinux, CookedLinuxV2
from scapy.packet import Padding, Raw, fuzz
from scapy.plist import PacketList
from scapy.sendrecv import sniff
from scapy.utils import PcapReader, RawPcapReader, rdpcap, wrpcap
from scapy.volatile import RandLong
from vsockdump.dissectors.layers import (
    VirtioVsock,
    VSockMon,
    vsock_conversation,
    vsock_session,
)

from vsockdump import wire
from vsockdump.frames import FrameBatch
from vsockdump.packets import decode

MON_NAMES = wire.MON_FIELDS
VIRTIO_NAMES = [name.removeprefix("virtio_") for name in wire.VIRTIO_FIELDS]


@pytest.fixture(autouse=True, scope="module")
def strict() -> Iterator[None]:
    before = conf.debug_dissector
    conf.debug_dissector = True
    yield
    conf.debug_dissector = before


def rebuilt(packet: Any) -> bytes:
    """The packet built from its fields, not from the bytes it remembers."""
    copy = packet.copy()
    copy.clear_cache()
    return bytes(copy)


def test_fields_stand_where_the_wire_has_them() -> None:
    for layer, names, start in (
        (VSockMon, wire.MON_FIELDS, 0),
        (VirtioVsock, wire.VIRTIO_FIELDS, wire.MON_HDR_LEN),
    ):
        for name, field in zip(names, layer.fields_desc, strict=False):
            dtype, offset = wire.HEADERS.fields[name][:2]
            most = 2 ** (8 * dtype.itemsize) - 1
            there = bytes(layer(**{field.name: most}))
            here = bytes(layer(**{field.name: 0}))
            differ = [
                at for at, pair in enumerate(zip(here, there, strict=True)) if len(set(pair)) > 1
            ]
            first = offset - start
            assert differ == list(range(first, first + dtype.itemsize))


@unhurried
@given(any_bytes)
def test_any_bytes_dissect_and_build_to_the_same(data: bytes) -> None:
    for layer in (VSockMon, VirtioVsock):
        packet = layer(data)
        assert bytes(packet) == data
        assert rebuilt(packet) == data


@unhurried
@given(any_bytes)
def test_any_bytes_can_be_looked_at(data: bytes) -> None:
    for packet in (VSockMon(data), VirtioVsock(data)):
        for text in (packet.show(dump=True), packet.summary(), repr(packet), str(packet)):
            assert text.replace("\n", "").isprintable()
        json.loads(packet.json())
        assert packet.hashret() == type(packet)(data).hashret()
        assert vsock_session(packet) and vsock_conversation(packet)
        assert packet.answers(packet) in (0, 1)


@unhurried
@given(any_bytes)
def test_what_command_prints_makes_the_same_bytes(data: bytes) -> None:
    packet = VSockMon(data)
    if data:
        assert bytes(eval(packet.command())) == data


@unhurried
@given(frames())
def test_fields_agree_with_decode(frame: bytes) -> None:
    agrees_with_decode(frame)


def test_fields_agree_with_decode_at_every_edge() -> None:
    for frame in edges():
        agrees_with_decode(frame)
        assert bytes(VSockMon(frame)) == rebuilt(VSockMon(frame)) == frame


def agrees_with_decode(frame: bytes) -> None:
    packet = VSockMon(frame)
    batch = decode(FrameBatch.of([frame]))
    row = batch.packet(0)
    assert isinstance(packet, VSockMon) == batch.has_mon[0]
    assert bool(packet.haslayer(VirtioVsock)) == batch.has_virtio[0]
    if not batch.has_mon[0]:
        assert type(packet) is Raw
        return
    for name in wire.MON_FIELDS:
        assert packet.getfieldval(name) == getattr(row, name)
    assert packet.reserved == frame[wire.MON_HDR_LEN - 2 : wire.MON_HDR_LEN]
    behind = frame[wire.MON_HDR_LEN :]
    if batch.has_virtio[0]:
        virtio = packet[VirtioVsock]
        for name, field in zip(wire.VIRTIO_FIELDS, VIRTIO_NAMES, strict=True):
            assert virtio.getfieldval(field) == getattr(row, name)
        extra = behind[wire.VIRTIO_HDR_LEN : packet.transport_len]
        assert (virtio.extra or b"") == extra
        payload = virtio.payload
        padding = packet[Padding].load if Padding in packet else b""
        assert len(padding) == batch.excess[0]
        loaded = payload.load if type(payload) is Raw else b""
    elif packet.transport == wire.Transport.VIRTIO and packet.transport_len >= wire.VIRTIO_HDR_LEN:
        # The header is cut; scapy shows the bytes there are.
        assert bytes(packet.payload) == behind
        loaded = b""
    else:
        assert packet.transport_header == behind[: packet.transport_len]
        loaded = packet.load if Raw in packet else b""
    assert loaded == row.payload


@unhurried
@given(headers(plain=True), st.binary(max_size=40), st.binary(max_size=8), st.binary(max_size=8))
def test_build_dissect_build(header: Any, payload: bytes, extra: bytes, padding: bytes) -> None:
    values = {name: int(header[name]) for name in wire.HEADERS.names}
    outer = {name: values[name] for name in MON_NAMES if name not in ("transport", "transport_len")}
    inner = dict(zip(VIRTIO_NAMES, (values[name] for name in wire.VIRTIO_FIELDS), strict=True))
    inner["len"] = len(payload)
    built = VSockMon(**outer) / VirtioVsock(**inner, extra=extra)
    if payload:
        built /= Raw(payload)
    if padding:
        built /= Padding(padding)
    read = VSockMon(bytes(built))
    assert bytes(read) == rebuilt(read) == bytes(built)
    assert {name: read.getfieldval(name) for name in outer} == outer
    assert {name: read[VirtioVsock].getfieldval(name) for name in inner} == inner
    assert (read[VirtioVsock].extra or b"") == extra
    assert read.transport_len == wire.VIRTIO_HDR_LEN + len(extra)


@pytest.mark.parametrize("op", list(wire.Op) + [max(wire.Op) + 1])
def test_what_is_left_out_is_filled_in(op: int) -> None:
    payload = b"payload"
    built = VSockMon(src_cid=3, dst_cid=2, src_port=1024, dst_port=1234) / VirtioVsock(op=op)
    read = VSockMon(bytes(built / payload))
    assert read.mon_op == wire.MON_OP_OF.get(op, wire.MonOp.UNKNOWN)
    assert read.transport == wire.Transport.VIRTIO
    assert read.transport_len == wire.VIRTIO_HDR_LEN
    assert read.len == len(payload)
    ends = ("src_cid", "dst_cid", "src_port", "dst_port")
    assert [read[VirtioVsock].getfieldval(x) for x in ends] == [read.getfieldval(x) for x in ends]
    assert built[VirtioVsock].src_cid == built.src_cid


def test_what_is_given_is_not_changed() -> None:
    built = VSockMon(mon_op=9, transport=7, transport_len=3, src_cid=5) / VirtioVsock(
        len=2, src_cid=6
    )
    payload = b"payload"
    frame = bytes(built / payload)
    header = decode(FrameBatch.of([frame])).headers[0]
    assert [header[x] for x in ("mon_op", "transport", "transport_len", "src_cid")] == [9, 7, 3, 5]
    virtio = VirtioVsock(frame[wire.MON_HDR_LEN :])
    assert (virtio.len, virtio.src_cid) == (2, 6)
    assert (virtio[Raw].load, virtio[Padding].load) == (payload[:2], payload[2:])


def test_values_that_change_with_each_build_stay_alike_in_both_headers() -> None:
    built = VSockMon(src_cid=RandLong()) / VirtioVsock()
    reads = [VSockMon(bytes(built)) for _ in range(5)]
    assert all(read.src_cid == read[VirtioVsock].src_cid for read in reads)
    assert len({read.src_cid for read in reads}) > 1


def test_fuzz_builds() -> None:
    for _ in range(50):
        packet = fuzz(VSockMon() / VirtioVsock()) / b"x"
        assert shown(packet, "flags")
        frame = bytes(packet)
        assert bytes(VSockMon(frame)) == frame


def test_a_transport_header_of_another_transport_is_kept_apart_from_payload() -> None:
    built = VSockMon(transport="NO_INFO", mon_op="PAYLOAD", transport_header=b"abc") / b"payload"
    read = VSockMon(bytes(built))
    assert read.transport_len == len(b"abc")
    assert read.transport_header == b"abc"
    assert read.load == b"payload"
    assert VirtioVsock not in read


def shown(packet: Any, name: str) -> str:
    lines = packet.show(dump=True).splitlines()
    [found] = {x.partition("=")[2].strip() for x in lines if x.strip().startswith(name)}
    return found


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"op": "SHUTDOWN", "flags": "RCV+SEND"}, "RCV+SEND"),
        ({"op": "SHUTDOWN", "flags": 7}, "RCV+SEND+0x4"),
        ({"op": "RW", "type": "SEQPACKET", "flags": ["EOM", "EOR"]}, "EOM+EOR"),
        ({"op": "RW", "type": "STREAM", "flags": wire.RwFlag.EOM}, "0x1"),
        ({"op": "REQUEST", "flags": ""}, "0"),
        ({"op": 99, "type": 99, "flags": 2}, "0x2"),
        ({"op": "SHUTDOWN", "flags": "RCV+0x8"}, "RCV+0x8"),
    ],
)
def test_flags_are_named_by_op_and_type(fields: dict[str, Any], text: str) -> None:
    packet = VSockMon(bytes(VSockMon() / VirtioVsock(**fields)))
    assert shown(packet, "flags") == text
    assert VirtioVsock(flags=text).flags == packet.flags


def test_a_flag_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="URGENT"):
        VirtioVsock(flags="URGENT")


def test_names_are_the_kernels_and_unknown_values_are_numbers() -> None:
    packet = VSockMon(src_cid="host", dst_cid=77) / VirtioVsock(type="DGRAM", op=9)
    packet = VSockMon(bytes(packet))
    assert packet.src_cid == wire.CID_HOST
    texts = {x: shown(packet, x) for x in ("src_cid", "dst_cid", "type", "op", "transport ")}
    assert texts == {
        "src_cid": wire.CID_NAMES[wire.CID_HOST],
        "dst_cid": "77",
        "type": wire.Type.DGRAM.name,
        "op": "9",
        "transport ": wire.Transport.VIRTIO.name,
    }


def test_summary() -> None:
    packet = VSockMon(src_cid=3, src_port=1024, dst_cid=2, dst_port=1234) / VirtioVsock(flags=1)
    line = "VSockMon / VirtioVsock 3.1024 > host.1234 STREAM RW 0x1 len=4 / Raw"
    assert (packet / b"abcd").summary() == VSockMon(bytes(packet / b"abcd")).summary() == line
    assert VSockMon(src_cid=3, transport=9).summary() == "VSockMon 3.0 > local.0 9 None"


def connection(**fields: Any) -> list[Any]:
    """Packets of one connection, client first."""
    there = VSockMon(src_cid=3, src_port=1024, dst_cid=2, dst_port=1234)
    back = VSockMon(src_cid=2, src_port=1234, dst_cid=3, dst_port=1024)
    return [
        end / VirtioVsock(op=op, **fields)
        for end, op in (
            (there, "REQUEST"),
            (back, "RESPONSE"),
            (there, "RW"),
            (back, "CREDIT_UPDATE"),
            (back, "SHUTDOWN"),
            (there, "RST"),
        )
    ]


def test_answers_pair_up() -> None:
    request, response, data, credit, shutdown, reset = connection()
    assert response.answers(request) and credit.answers(data) and reset.answers(shutdown)
    assert not request.answers(response)
    assert not data.answers(request)
    assert not connection(type="SEQPACKET")[1].answers(request)
    assert not response.answers(Raw(b"x"))
    assert request.hashret() == response.hashret()
    for other in ("src_cid", "dst_cid", "src_port", "dst_port"):
        elsewhere = response.copy()
        elsewhere.setfieldval(other, 9)
        assert not elsewhere.answers(request)
        assert elsewhere.hashret() != request.hashret()
    pairs, rest = PacketList(connection()).sr()
    assert [pair.answer for pair in pairs] == [response, credit, reset]
    assert not rest


def test_sessions() -> None:
    packets = PacketList([*connection(), Raw(b"x")])
    directions = packets.sessions(vsock_session)
    assert {name: len(found) for name, found in directions.items()} == {
        "VSOCK STREAM 3.1024 > 2.1234": 3,
        "VSOCK STREAM 2.1234 > 3.1024": 3,
        "Other": 1,
    }
    both = packets.sessions(vsock_conversation)
    assert {name: len(found) for name, found in both.items()} == {
        "VSOCK STREAM 2.1234 <> 3.1024": 6,
        "Other": 1,
    }
    assert vsock_session(VSockMon(src_cid=3)) == "VSOCK 3.0 > 1.0"
    assert vsock_session(VirtioVsock(src_cid=3)) == "VSOCK STREAM 3.0 > 0.0"


@pytest.mark.parametrize("cooked", [CookedLinux, CookedLinuxV2])
@pytest.mark.parametrize("proto", [0, 0x0800, 1])
def test_a_cooked_frame_is_told_by_its_hardware_type(cooked: Any, proto: int) -> None:
    packet = VSockMon(src_cid=3) / VirtioVsock() / b"payload"
    built = cooked() / packet
    assert built.lladdrtype == wire.ARPHRD_VSOCKMON
    assert built.pkttype == socket.PACKET_OUTGOING
    built.proto = proto
    read = cooked(bytes(built))
    assert type(read.payload) is VSockMon
    assert bytes(read.payload) == bytes(packet)
    assert bytes(read) == bytes(built)
    ethernet = cooked(bytes(cooked(lladdrtype=1, proto=0) / b"x"))
    assert VSockMon not in ethernet


@unhurried
@given(any_bytes, st.sampled_from([CookedLinux, CookedLinuxV2]))
def test_any_bytes_behind_a_cooked_header(data: bytes, cooked: Any) -> None:
    head = bytes(cooked(lladdrtype=wire.ARPHRD_VSOCKMON, proto=0))
    read = cooked(head + data)
    assert bytes(read) == head + data
    if data:
        assert type(read.payload) is (VSockMon if len(data) >= wire.MON_HDR_LEN else Raw)


def test_savefiles_go_through_scapy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "scapy")
    packets = [packet / b"payload" for packet in connection()]
    for place, packet in enumerate(packets):
        packet.time = 1_700_000_000 + place / 8
    path = str(tmp_path / "vsock.pcap")
    wrpcap(path, packets)
    with RawPcapReader(path) as reader:
        assert reader.linktype == wire.LINKTYPE_VSOCK
    expected = [bytes(packet) for packet in packets]
    with PcapReader(path) as reader:
        streamed = list(reader)
    for read in (rdpcap(path), streamed, sniff(offline=path, quiet=True)):
        assert [bytes(packet) for packet in read] == expected
        assert {type(packet) for packet in read} == {VSockMon}
        assert [float(x.time) for x in read] == [float(x.time) for x in packets]
    assert not caplog.records
    assert repr(rdpcap(path)).endswith(f"VirtioVsock:{len(packets)} Other:0>")


def test_the_hardware_type_is_known_to_live_sockets() -> None:
    assert conf.l2types.num2layer[wire.ARPHRD_VSOCKMON] is VSockMon
    assert conf.l2types.layer2num[VSockMon] == wire.LINKTYPE_VSOCK


@pytest.mark.parametrize("name", captures.names())
def test_captures_of_real_kernels(name: str) -> None:
    for packet in rdpcap(str(captures.path(name))):
        frame = packet.original
        assert rebuilt(packet) == frame
        again = packet.copy()
        for field in ("mon_op", "transport_len"):
            again.delfieldval(field)
        for field in ("src_cid", "dst_cid", "src_port", "dst_port"):
            again[VirtioVsock].delfieldval(field)
        again.clear_cache()
        # What the kernel wrote is what we would have filled in.
        assert bytes(again) == frame


TSHARK = {
    **dict(
        zip(
            MON_NAMES,
            ("src_cid", "dst_cid", "src_port", "dst_port", "op", "trans", "trans_len"),
            strict=True,
        )
    ),
    **{
        name: "virtio." + field.replace("_port", "_prot")
        for name, field in zip(wire.VIRTIO_FIELDS, VIRTIO_NAMES, strict=True)
    },
}
"""Wireshark's names of our fields (``prot`` is its own spelling)."""


@pytest.fixture(scope="module")
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        if "CI" in os.environ:
            pytest.fail("tshark is not installed")
        pytest.skip("tshark is not installed")
    return found


def asked(tshark: str, path: Path | str) -> list[dict[str, int]]:
    """What tshark reads in every packet of a savefile."""
    fields = [x for name in TSHARK.values() for x in ("-e", f"vsock.{name}")]
    command = [tshark, "-n", "-r", str(path), "-T", "fields", "-E", "separator=,", *fields]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return [dict(zip(TSHARK, (int(x, 0) for x in line.split(",")), strict=True)) for line in lines]


def ours(packet: Any) -> dict[str, int]:
    virtio = [packet[VirtioVsock].getfieldval(name) for name in VIRTIO_NAMES]
    mon = [packet.getfieldval(name) for name in MON_NAMES]
    return dict(zip(TSHARK, [*mon, *virtio], strict=True))


@pytest.mark.judge
@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(headers(plain=True), st.binary(max_size=40)), min_size=1, max_size=50))
def test_tshark_agrees_on_generated_packets(
    tshark: str, tmp_path_factory: pytest.TempPathFactory, drawn: Any
) -> None:
    packets = []
    for header, payload in drawn:
        values = [int(header[name]) for name in wire.VIRTIO_FIELDS]
        virtio = dict(zip(VIRTIO_NAMES, values, strict=True))
        ends = {name: int(header[name]) for name in MON_NAMES[:5]}
        packets.append(VSockMon(**ends) / VirtioVsock(**virtio | {"len": len(payload)}) / payload)
    path = str(tmp_path_factory.mktemp("judge") / "generated.pcap")
    wrpcap(path, packets)
    read = rdpcap(path)
    assert asked(tshark, path) == [ours(packet) for packet in read]


@pytest.mark.judge
@pytest.mark.parametrize("name", captures.names())
def test_tshark_agrees_on_real_captures(tshark: str, name: str) -> None:
    path = captures.path(name)
    assert asked(tshark, path) == [ours(packet) for packet in rdpcap(str(path))]


@pytest.mark.judge
def test_tshark_finds_no_fault_with_what_wrpcap_writes(tshark: str, tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "x.pcap", [bytes(x / b"payload") for x in connection()])
    wrpcap(str(tmp_path / "y.pcap"), rdpcap(path))
    command = [tshark, "-n", "-r", str(tmp_path / "y.pcap"), "-Y", "_ws.malformed or _ws.expert"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""
