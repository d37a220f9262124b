"""Classic pcap as its specification has it: every magic, the limits of each field, and damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from plain_blocks import (
    PCAP_FILE_HDR,
    PCAP_RECORD_HDR,
    SLL2,
    VSOCK,
    pcap_header,
    record,
)
from plain_savefile import PCAP_MAGICS
from savefile_reading import expected, read_bytes

from vsockdump.frames import SLACK, Bytes, Interface, Ints
from vsockdump.sources import chain, pcap
from vsockdump.sources.parser import Parsed
from vsockdump.sources.pcap import MAX_CAPLEN, RECORD_LEN, PcapParser

U32 = 2**32 - 1
TODAY = 1_780_000_000
MAGICS = pytest.mark.parametrize("magic", PCAP_MAGICS, ids=lambda magic: magic.hex())
SOME = next(iter(PCAP_MAGICS))


def parsed(data: bytes, *, last: bool = True) -> Parsed:
    """What a parser makes of these bytes alone."""
    buf = np.frombuffer(data + bytes(SLACK), np.uint8)
    return PcapParser([]).parse(buf, 0, len(data), last=last)


def test_the_parser_knows_the_magics_there_are() -> None:
    assert pcap.MAGICS == PCAP_MAGICS
    assert (pcap.FILE_HDR_LEN, pcap.RECORD_LEN) == (PCAP_FILE_HDR, PCAP_RECORD_HDR)


@MAGICS
def test_every_field_may_be_as_large_as_it_can(magic: bytes) -> None:
    _, tick = PCAP_MAGICS[magic]
    data = pcap_header(magic, snaplen=U32, linktype=SLL2)
    data += record(magic, b"frame", seconds=U32, fraction=U32, origlen=U32)
    found = read_bytes(data)
    (row,) = found.rows
    assert (row.data, row.origlen) == (b"frame", U32)
    assert row.time_ns == U32 * 10**9 + U32 * tick
    assert found.interfaces == [Interface(linktype=SLL2, snaplen=U32, nanoseconds=tick == 1)]


@MAGICS
def test_bits_above_the_link_type_are_not_part_of_it(magic: bytes) -> None:
    found = read_bytes(pcap_header(magic, linktype=0xFC00_0000 | VSOCK))
    assert found.interfaces[0].linktype == VSOCK


@MAGICS
@pytest.mark.parametrize("hops", [1, chain.HOPS])
def test_a_record_may_be_as_long_as_tcpdump_takes_and_no_longer(
    magic: bytes, hops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "HOPS", hops)
    monkeypatch.setattr(chain, "SPARSE", 2 * MAX_CAPLEN)
    head = pcap_header(magic)
    longest = record(magic, b"x" * MAX_CAPLEN, seconds=TODAY)
    longer = record(magic, b"x" * (MAX_CAPLEN + 1), seconds=TODAY)
    data = head + longest * 2 + longer + longest
    found = read_bytes(data)
    assert found == read_bytes(data, 64) == expected(data)
    assert (len(found.rows), found.damage) == (2, len(head + longest * 2))
    damage = parsed(head + longer).damage
    assert damage is not None
    assert damage.reason == f"a record claims {MAX_CAPLEN + 1} captured bytes"


def test_another_version_is_refused() -> None:
    head = bytearray(pcap_header(SOME))
    struct.pack_into("<H", head, len(SOME), 3)
    damage = parsed(bytes(head)).damage
    assert damage is not None
    assert (damage.at, damage.reason) == (0, "pcap version 3.4 is not known")


@pytest.mark.parametrize(
    ("there", "at", "what", "needed"),
    [
        (10, 0, "file header", PCAP_FILE_HDR),
        (PCAP_FILE_HDR + 3, PCAP_FILE_HDR, "record", PCAP_RECORD_HDR),
        (PCAP_FILE_HDR + PCAP_RECORD_HDR, PCAP_FILE_HDR, "record", PCAP_RECORD_HDR + 5),
    ],
)
def test_a_cut_is_told_with_what_is_missing(there: int, at: int, what: str, needed: int) -> None:
    data = (pcap_header(SOME) + record(SOME, b"frame"))[:there]
    assert parsed(data, last=False).damage is None
    damage = parsed(data).damage
    assert damage is not None
    assert damage.at == at
    assert damage.reason == f"cut short: the {what} needs {needed} bytes, had {there - at}"


@MAGICS
def test_frames_of_nothing_are_frames(magic: bytes) -> None:
    data = pcap_header(magic) + record(magic, b"", origlen=9) * 500
    assert read_bytes(data) == expected(data)


@MAGICS
@pytest.mark.parametrize("step", [0, 1, 60, 2**16, 2**31])
def test_time_may_stand_still_jump_and_go_backwards(magic: bytes, step: int) -> None:
    # Two bytes of the seconds mark the records: here they change at every step, or wrap.
    records = [
        record(magic, bytes(place % 7), seconds=(U32 - 5 + place * step) % (U32 + 1))
        for place in range(600)
    ]
    data = pcap_header(magic) + b"".join(records)
    assert read_bytes(data) == expected(data)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each scan found; every buffer is scanned at once."""
    found: list[int] = []
    scan = PcapParser._chain

    def counting(self: PcapParser, buf: Bytes, begin: int, end: int) -> tuple[Ints, int]:
        offsets, following = scan(self, buf, begin, end)
        found.append(offsets.size)
        return offsets, following

    monkeypatch.setattr(chain, "HOPS", 1)
    monkeypatch.setattr(PcapParser, "_chain", counting)
    return found


@MAGICS
def test_records_are_found_on_both_sides_of_every_slice(
    magic: bytes, scanned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pcap_header(magic) + b"".join(
        record(magic, b"payload"[: place % 8], seconds=TODAY + place) for place in range(100)
    )
    for size in range(RECORD_LEN, 5 * RECORD_LEN):
        monkeypatch.setattr(pcap, "_SLICE", size)
        scanned.clear()
        assert read_bytes(data) == expected(data)
        assert scanned == [99]


@MAGICS
def test_a_crowd_of_marks_is_hopped_through(magic: bytes, scanned: list[int]) -> None:
    data = pcap_header(magic) + record(magic, bytes(100)) * 1000
    assert read_bytes(data) == expected(data)
    assert scanned == [0]
