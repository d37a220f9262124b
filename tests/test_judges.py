"""tshark, capinfos and tcpdump read what we read: every field of every capture there is.

Where they and we differ by intention a comment says so, and the comparison leaves out just that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import vsockdump.captures as captures
from conftest import Judge
from plain_blocks import (
    NANOSECONDS,
    TSOFFSET,
    TSRESOL,
    interface,
    obsolete,
    options,
    packet,
    pcap_header,
    record,
    section,
    simple,
)
from plain_savefile import PCAP_MAGICS
from savefile_reading import Outcome, read

from vsockdump import wire
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.savefile import Savefile

pytestmark = pytest.mark.judge

MON = struct.Struct("<QQIIHHH2x")
VIRTIO = struct.Struct("<QQIIIHHIII")
NOW = 1_780_000_000_123_456_789
COMMENT = 1
FRAME_FIELDS = (
    "frame.number",
    "frame.time_epoch",
    "frame.len",
    "frame.cap_len",
    "frame.interface_name",
    "frame.comment",
)
# Their names of our columns; the typos are theirs.
MON_FIELDS = {
    "src_cid": "vsock.src_cid",
    "dst_cid": "vsock.dst_cid",
    "src_port": "vsock.src_port",
    "dst_port": "vsock.dst_port",
    "mon_op": "vsock.op",
    "transport": "vsock.trans",
    "transport_len": "vsock.trans_len",
}
VIRTIO_FIELDS = {
    "virtio_src_cid": "vsock.virtio.src_cid",
    "virtio_dst_cid": "vsock.virtio.dst_cid",
    "virtio_src_port": "vsock.virtio.src_prot",
    "virtio_dst_port": "vsock.virtio.dst_prot",
    "len": "vsock.virtio.len",
    "type": "vsock.virtio.type",
    "op": "vsock.virtio.op",
    "flags": "vsock.virtio.flags",
    "buf_alloc": "vsock.virtio.buf_alloc",
    "fwd_cnt": "vsock.virtio.fwd_cnt",
}
PAYLOAD = "vsock.payload"
FIELDS = (*FRAME_FIELDS, *MON_FIELDS.values(), *VIRTIO_FIELDS.values(), PAYLOAD)

Row = dict[str, Any]


def test_every_column_has_a_field() -> None:
    assert (*MON_FIELDS, *VIRTIO_FIELDS) == wire.HEADERS.names


def frame(
    op: int,
    payload: bytes = b"",
    *,
    type_: int = wire.Type.STREAM,
    flags: int = 0,
    said: int | None = None,
    mon_op: int | None = None,
    skipped: bytes = b"",
) -> bytes:
    meaning = wire.MON_OP_OF.get(wire.Op(op), 0) if op in list(wire.Op) else wire.MonOp.UNKNOWN
    mon = (2**40 + 3, wire.CID_HOST, 4_000_000_000, 20, meaning if mon_op is None else mon_op)
    said = len(payload) if said is None else said
    virtio = VIRTIO.pack(*mon[:4], said, type_, op, flags, 262_144, 2**32 - 1)
    length = len(virtio + skipped)
    return MON.pack(*mon, wire.Transport.VIRTIO, length) + virtio + skipped + payload


def without_info(payload: bytes, *, skipped: bytes = b"", transport: int = 1) -> bytes:
    return MON.pack(3, 2, 1, 2, wire.MonOp.PAYLOAD, transport, len(skipped)) + skipped + payload


def varied() -> list[tuple[bytes, int]]:
    """Frames of every kind, with their original lengths."""
    data = frame(wire.Op.RW, b"some payload")
    whole = [
        *(frame(op, type_=type_) for op in (*wire.Op, 99) for type_ in (*wire.Type, 0, 77)),
        *(frame(wire.Op.SHUTDOWN, flags=flags) for flags in range(5)),
        *(frame(wire.Op.RW, b"x", type_=wire.Type.SEQPACKET, flags=each) for each in range(5)),
        *(frame(wire.Op.RW, b"x", mon_op=mon_op) for mon_op in (*wire.MonOp, 2**16 - 1)),
        data,
        frame(wire.Op.RW, b"more than announced", said=4),
        frame(wire.Op.RW, b"less", said=400),
        frame(wire.Op.RW, b"payload", skipped=b"a longer header"),
        frame(wire.Op.RW, bytes(wire.MAX_PAYLOAD)),
        without_info(b"data"),
        without_info(b"data", skipped=b"skip"),
        without_info(b""),
        without_info(b"data", transport=max(wire.Transport) + 1),
        data[: wire.HEADERS_LEN - 1],
        data[: wire.MON_HDR_LEN],
        data[: wire.MON_HDR_LEN - 1],
    ]
    snapped = [(data[:length], len(data)) for length in range(1, len(data))]
    return [(each, len(each)) for each in whole] + snapped


def write_pcapng(path: Path) -> Path:
    frames = varied()
    head = [(TSRESOL, NANOSECONDS), (2, b"vsockmon0")]
    other = [(TSRESOL, b"\x06"), (2, b"vsockmon1")]
    blocks = [section("<"), interface("<", head), interface("<", other)]
    for place, (data, origlen) in enumerate(frames):
        second = place % 3 == 2
        said = [(COMMENT, f"packet {place}".encode()), (COMMENT, b"again")][: place % 4]
        blocks.append(
            packet(
                "<",
                data,
                index=int(second),
                ticks=(NOW + place) // (1000 if second else 1),
                origlen=origlen,
                behind=options("<", said),
            )
        )
    path.write_bytes(b"".join(blocks))
    return path


def write_pcap(path: Path, magic: bytes) -> Path:
    parts = [pcap_header(magic)]
    for place, (data, origlen) in enumerate(varied()):
        seconds, rest = divmod(NOW + place * 10**8, 10**9)
        fraction = rest // PCAP_MAGICS[magic][1]
        parts.append(record(magic, data, seconds=seconds, fraction=fraction, origlen=origlen))
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every bundled capture, and some of our own making."""
    folder = tmp_path_factory.mktemp("judged")
    made = {magic.hex(): write_pcap(folder / magic.hex(), magic) for magic in PCAP_MAGICS}
    made["pcapng"] = write_pcapng(folder / "pcapng")
    return made | {name: captures.path(name) for name in captures.names()}


GENERATED = [*(magic.hex() for magic in PCAP_MAGICS), "pcapng"]
ALL = [*GENERATED, *captures.names()]


def decoded(path: Path) -> Iterator[tuple[PacketBatch, int]]:
    source = Savefile(path)
    for batch in source.batches():
        packets = decode(batch)
        for row in range(len(packets)):
            yield packets, row
    source.close()


def ours(path: Path) -> list[Row]:
    """Our view of every packet in their names; a field that is not there is missing."""
    rows = []
    for packets, row in decoded(path):
        frames = packets.frames
        shown: Row = {
            "frame.number": int(frames.number[row]),
            "frame.time_epoch": int(frames.time_ns[row]),
            "frame.len": int(frames.origlen[row]),
            "frame.cap_len": int(frames.caplen[row]),
        }
        name = frames.interfaces[int(frames.interface[row])].name
        if name:
            shown["frame.interface_name"] = name
        comments = [each.value.decode() for each in frames.options.get(row, ()) if each.code == 1]
        if comments:
            shown["frame.comment"] = comments
        if packets.has_mon[row]:
            for ours_, theirs in MON_FIELDS.items():
                shown[theirs] = int(packets.headers[ours_][row])
        if packets.has_virtio[row]:
            for ours_, theirs in VIRTIO_FIELDS.items():
                shown[theirs] = int(packets.headers[ours_][row])
        # They show all that is left, we no more than was announced.
        start, length = int(packets.payload[row]), int(packets.captured[row] + packets.excess[row])
        if length:
            shown[PAYLOAD] = frames.buf[start : start + length].tobytes()
        rows.append(shown)
    return rows


def value(name: str, shown: str) -> Any:
    if name == "frame.time_epoch":
        return int(Decimal(shown) * 10**9)
    if name == "frame.interface_name":
        return shown
    if name == PAYLOAD:
        return bytes.fromhex(shown.replace(":", ""))
    return int(shown, 0)


def compare(theirs: list[Row], path: Path) -> None:
    rows = ours(path)
    assert len(theirs) == len(rows) > 0
    for them, us in zip(theirs, rows, strict=True):
        if us["frame.cap_len"] < us["frame.len"]:
            # Of a cut frame they show single fields of a header, and no payload; we do neither.
            them = {name: found for name, found in them.items() if name in us}
            us = {name: found for name, found in us.items() if name != PAYLOAD}
            them.pop(PAYLOAD, None)
        elif "vsock.virtio.op" not in us:
            # A header that is not whole, as sent: the same.
            them = {name: found for name, found in them.items() if name in us}
        assert them == us


@pytest.mark.parametrize("name", ALL)
def test_tshark_shows_the_same_fields(tshark: Judge, files: dict[str, Path], name: str) -> None:
    separators = ["-E", "separator=|", "-E", "aggregator=~"]
    wanted = [part for field in FIELDS for part in ("-e", field)]
    shown = tshark("-r", files[name], "-T", "fields", *separators, *wanted)
    theirs = []
    for line in shown.splitlines():
        cells = dict(zip(FIELDS, line.split("|"), strict=True))
        row: Row = {
            field: value(field, cell)
            for field, cell in cells.items()
            if cell and field != "frame.comment"
        }
        if cells["frame.comment"]:
            row["frame.comment"] = cells["frame.comment"].split("~")
        theirs.append(row)
    compare(theirs, files[name])


@pytest.mark.parametrize("name", [*GENERATED[-1:], captures.names()[0]])
def test_tshark_writes_the_same_json(tshark: Judge, files: dict[str, Path], name: str) -> None:
    shown = tshark("-r", files[name], "-T", "json", "--no-duplicate-keys")
    theirs = []
    for each in json.loads(shown):
        found = dict(flattened(each["_source"]["layers"]))
        row: Row = {
            field: value(field, found[field])
            for field in FIELDS
            if field in found and field != "frame.comment"
        }
        if "frame.comment" in found:
            said = found["frame.comment"]
            row["frame.comment"] = said if isinstance(said, list) else [said]
        theirs.append(row)
    compare(theirs, files[name])


def flattened(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, found in tree.items():
        if isinstance(found, dict):
            yield from flattened(found)
        elif name == "frame.comment" or not isinstance(found, list):
            yield name, found
        else:
            for each in found:
                yield from flattened(each) if isinstance(each, dict) else [(name, each)]


@pytest.mark.parametrize("name", ALL)
def test_capinfos_counts_the_same(capinfos: Judge, files: dict[str, Path], name: str) -> None:
    path = files[name]
    outcome, error = read(Savefile(path))
    assert error is None
    # Table of: name, encapsulation, packets, length on disk, length of all packets.
    table = capinfos("-TMrQ", "-Ecsd", path).strip().split("\t")
    assert [cell.strip("'\"") for cell in table] == [
        str(path),
        "vsock",
        str(len(outcome.rows)),
        str(path.stat().st_size),
        str(sum(row.origlen for row in outcome.rows)),
    ]


def rewritten(tcpdump: Judge, path: Path, folder: Path) -> Outcome:
    """What tcpdump makes of a file, read by us."""
    copy = folder / "copy.pcap"
    command = ["-r", path, "--time-stamp-precision=nano", "-w", copy]
    tcpdump(*command)
    return read(Savefile(copy))[0]


@pytest.mark.parametrize("name", ALL)
def test_tcpdump_passes_on_the_same_packets(
    tcpdump: Judge, files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    copy = rewritten(tcpdump, files[name], tmp_path).rows
    rows = read(Savefile(files[name]))[0].rows
    assert [(row.data, row.origlen, row.time_ns) for row in copy] == [
        (row.data, row.origlen, row.time_ns) for row in rows
    ]


def unusual(order: str) -> bytes:
    """Packets of unusual clocks and blocks, in two sections."""
    seconds = 1_500_000_000
    clocks = ((0x80 | 20, 0), (0x80 | 30, 0), (9, 1000), (6, -1000), (3, 0), (0, 0), (0x80, 7))
    parts = []
    for each in (order, "<" if order == ">" else ">"):
        parts.append(section(each))
        for index, (resolution, offset) in enumerate(clocks):
            about = [(TSRESOL, bytes([resolution])), (TSOFFSET, struct.pack(each + "q", offset))]
            parts.append(interface(each, about))
            rate = (2 if resolution & 0x80 else 10) ** (resolution & 0x7F)
            for fraction in range(7):
                ticks = seconds * rate + fraction * rate // 7
                parts.append(packet(each, frame(wire.Op.RW), index=index, ticks=ticks))
        parts.append(obsolete(each, frame(wire.Op.RST), ticks=seconds << 20))
        parts.append(simple(each, frame(wire.Op.RST)))
    return b"".join(parts)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tshark_agrees_on_unusual_clocks_and_blocks(
    tshark: Judge, tmp_path: Path, order: str
) -> None:
    path = tmp_path / "x.pcapng"
    path.write_bytes(unusual(order))
    shown = tshark("-r", path, "-T", "fields", "-e", "frame.time_epoch", "-e", "vsock.virtio.op")
    rows = ours(path)
    theirs = [line.split("\t") for line in shown.splitlines()]
    assert [int(op) for _, op in theirs] == [row["vsock.virtio.op"] for row in rows]
    for (time, _), row in zip(theirs, rows, strict=True):
        # A simple packet has no time; we say 0.
        assert value("frame.time_epoch", time or "0") == row["frame.time_epoch"]


def test_tcpdump_knows_the_link_type_by_our_number(tcpdump: Judge, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap_header(next(iter(PCAP_MAGICS)), linktype=wire.LINKTYPE_VSOCK))
    assert tcpdump("-r", path) == ""
