"""Pcapng block by block: what each kind says, what contradicts it, and the limits of a file."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_blocks import (
    NANOSECONDS,
    SLL2,
    TSOFFSET,
    TSRESOL,
    block,
    interface,
    obsolete,
    options,
    packet,
    section,
    simple,
    statistics,
    words,
)
from plain_savefile import EPB, IDB, ISB, PB, SHB, SPB
from savefile_reading import expected, read_bytes

from vsockdump.frames import SLACK, Interface, InterfaceStatistics, Ints, Option, Section
from vsockdump.sources import chain, pcapng
from vsockdump.sources.chain import Damage
from vsockdump.sources.options import MAX_OPTIONS
from vsockdump.sources.parser import Parsed
from vsockdump.sources.pcapng import PcapngParser
from vsockdump.sources.ticks import Clock

ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
UNKNOWN = 0xBAD
BILLION = 10**9


def parsed(data: bytes, *, last: bool = True) -> Parsed:
    """What a parser makes of these bytes alone."""
    buf = np.frombuffer(data + bytes(SLACK), np.uint8)
    return PcapngParser([]).parse(buf, 0, len(data), last=last)


def damage(data: bytes) -> Damage:
    found = parsed(data).damage
    assert found is not None
    # Whatever the buffer, the damage is the same.
    assert read_bytes(data, 64).damage == found.at
    return found


def reason(head: bytes, wrong: bytes) -> str:
    """What is said of a wrong block behind these; a good packet after it is not delivered."""
    found = damage(head + wrong + packet("<", b"never read"))
    assert found.at == len(head)
    assert len(read_bytes(head + wrong).rows) == len(expected(head).rows)
    return found.reason


HEAD = section("<") + interface("<")


# -- what blocks say ------------------------------------------------------------------------------


@ORDERS
def test_sections_and_interfaces_describe_themselves(order: str) -> None:
    about_section = [(1, b"one"), (1, b"two"), (2, b"arm64"), (3, b"Linux 6.12"), (4, b"by hand")]
    about = [
        (2, b"vsockmon0"),
        (3, b"tap"),
        (11, b"\0port 1"),
        (12, b"Linux 6.1"),
        (1, b"mine"),
        (TSRESOL, NANOSECONDS),
    ]
    data = section(order, about_section) + interface(order, about, linktype=SLL2, snaplen=68)
    made = Section(
        hardware="arm64", os="Linux 6.12", application="by hand", comments=("one", "two")
    )
    assert read_bytes(data).interfaces == [
        Interface(
            linktype=SLL2,
            snaplen=68,
            name="vsockmon0",
            description="tap",
            filter="port 1",
            os="Linux 6.1",
            comments=("mine",),
            section=made,
            nanoseconds=True,
        )
    ]


def test_a_filter_that_is_no_text_is_not_shown_as_one() -> None:
    data = section("<") + interface("<", [(11, b"\1" + bytes(8))]) + interface("<", [(11, b"")])
    assert [each.filter for each in read_bytes(data).interfaces] == ["", ""]


@ORDERS
def test_counters_are_of_their_interface_and_the_last_ones_count(order: str) -> None:
    def counters(received: int, dropped: int) -> bytes:
        pair = struct.pack(order + "Q", received), struct.pack(order + "Q", dropped)
        times = [(2, words(order, 3 * BILLION)), (3, words(order, 4 * BILLION))]
        return statistics(order, [(4, pair[0]), (5, pair[1]), *times], index=1)

    nanoseconds = interface(order, [(TSRESOL, NANOSECONDS)])
    earlier = section("<") + interface("<") * 2
    data = earlier + section(order) + interface(order) + nanoseconds
    data += counters(1, 2) + counters(2**40, 7) + statistics(order, [])
    found = read_bytes(data)
    assert found.statistics == {
        2: InterfaceStatistics(),
        3: InterfaceStatistics(received=2**40, dropped=7, start_ns=3 * BILLION, end_ns=4 * BILLION),
    }
    assert found == expected(data)


@ORDERS
def test_a_simple_packet_is_cut_at_the_snapshot_length_of_the_first_interface(order: str) -> None:
    head = section(order) + interface(order, snaplen=6) + interface(order, snaplen=99)
    data = head + simple(order, b"sixbyt", 8) + simple(order, b"all")
    found = read_bytes(data)
    assert [(row.data, row.origlen, row.interface) for row in found.rows] == [
        (b"sixbyt", 8, 0),
        (b"all", 3, 0),
    ]


def test_an_obsolete_packet_is_a_packet() -> None:
    about = options("<", [(1, b"old")])
    data = HEAD + obsolete("<", b"frame", drops=9, ticks=5, origlen=7, behind=about)
    (row,) = read_bytes(data).rows
    assert (row.data, row.origlen, row.time_ns) == (b"frame", 7, 5000)
    assert row.options == (Option(code=1, value=b"old"),)


def test_each_interface_has_its_own_clock() -> None:
    exponents = (3, 6, 9, 12, 0x80 | 10, 0x80 | 40)
    seconds = 10**6  # any more, and the finest ones do not fit
    interfaces = [
        interface("<", [(TSRESOL, bytes([exponent])), (TSOFFSET, struct.pack("<q", -place))])
        for place, exponent in enumerate(exponents)
    ]
    rates = [2 ** (each & 0x7F) if each & 0x80 else 10**each for each in exponents]
    packets = [
        packet("<", b"", index=place, ticks=(seconds + place) * rate)
        for place, rate in enumerate(rates)
    ]
    data = section("<") + b"".join(interfaces) + b"".join(packets)
    times = [row.time_ns for row in read_bytes(data).rows]
    assert times == [seconds * BILLION] * len(exponents)


@pytest.mark.parametrize("count", [pcapng.MANY, pcapng.MANY + 1, 5 * pcapng.MANY])
def test_many_clocks_in_one_batch_are_told_apart(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: list[int] = []
    column = Clock.times_ns

    def counting(self: Clock, ticks: NDArray[np.uint64]) -> Ints:
        columns.append(ticks.size)
        return column(self, ticks)

    monkeypatch.setattr(Clock, "times_ns", counting)
    interfaces = [interface("<", [(TSOFFSET, struct.pack("<q", place))]) for place in range(count)]
    packets = [packet("<", b"", index=place * 7 % count, ticks=place) for place in range(300)]
    data = section("<") + b"".join(interfaces + packets)
    assert read_bytes(data) == expected(data)
    # Each column costs a look at every packet, so there are few of them or none.
    assert len(columns) == (count if count <= pcapng.MANY else 0)


def test_a_section_starts_with_interfaces_of_its_own() -> None:
    fine = interface("<", [(TSRESOL, NANOSECONDS)])
    data = section("<") + fine + packet("<", b"", ticks=7)
    data += section(">") + interface(">") + packet(">", b"", ticks=7)
    assert [(row.time_ns, row.interface) for row in read_bytes(data).rows] == [(7, 0), (7000, 1)]


# -- what contradicts itself ----------------------------------------------------------------------


def spoiled(data: bytes, place: int, number: int, layout: str = "<I") -> bytes:
    spoilt = bytearray(data)
    struct.pack_into(layout, spoilt, place, number)
    return bytes(spoilt)


FRAME = packet("<", b"frame", behind=options("<", [(1, b"text")]))
CAPLEN, TRAILER = 20, len(FRAME) - 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (spoiled(FRAME, 4, 13), "a block claims a length of 13 bytes"),
        (spoiled(FRAME, 4, 8), "a block claims a length of 8 bytes"),
        (spoiled(FRAME, 4, 0), "a block claims a length of 0 bytes"),
        (
            spoiled(FRAME, TRAILER, 99),
            f"a block's two lengths differ: {len(FRAME)} and 99",
        ),
        (
            spoiled(FRAME, CAPLEN, len(FRAME)),
            f"a block of {len(FRAME)} bytes claims {len(FRAME)} captured bytes",
        ),
        (
            spoiled(FRAME, CAPLEN, 2**32 - 1),
            f"a block of {len(FRAME)} bytes claims {2**32 - 1} captured bytes",
        ),
        (
            packet("<", b"", index=1),
            "a packet names interface 1, but only 1 are described",
        ),
        (block("<", EPB, bytes(16)), "a packet block of 28 bytes is too short"),
        (block("<", PB, bytes(16)), "a block of type 2 is too short: 28 bytes"),
        (block("<", SPB, b""), "a block of type 3 is too short: 12 bytes"),
        (block("<", IDB, bytes(4)), "a block of type 1 is too short: 16 bytes"),
        (block("<", ISB, bytes(8)), "a block of type 5 is too short: 20 bytes"),
        (obsolete("<", b"", index=1), "a packet names an interface that is not described"),
        (
            spoiled(obsolete("<", b"frame"), CAPLEN, 9),
            "a block of 40 bytes claims 9 captured bytes",
        ),
        (
            simple("<", b"frame", 99),
            "a block of 24 bytes claims 99 captured bytes",
        ),
        (
            statistics("<", [], index=1),
            "statistics of an interface that is not described",
        ),
        (interface("<", [(TSRESOL, b"\6\6")]), "an interface's if_tsresol has 2 bytes"),
        (interface("<", [(TSRESOL, b"")]), "an interface's if_tsresol has 0 bytes"),
        (interface("<", [(TSOFFSET, bytes(4))]), "an interface's if_tsoffset has 4 bytes"),
        (
            spoiled(section("<"), 8, 0),
            "a section header without a byte-order magic",
        ),
        (spoiled(section("<"), 12, 2, "<H"), "pcapng version 2.0 is not known"),
        (
            block("<", SHB, section("<")[8:16]),
            f"a block of type {SHB} is too short: 20 bytes",
        ),
        (
            spoiled(spoiled(block("<", UNKNOWN, bytes(8)), 16, 24), 4, 20),
            "a block's two lengths differ: 20 and 24",
        ),
        (
            struct.pack("<II", IDB, pcapng.MAX_BLOCK + 4) + bytes(40),
            f"a block of type 1 claims a length of {pcapng.MAX_BLOCK + 4} bytes",
        ),
        (
            struct.pack("<II", EPB, pcapng.MAX_BLOCK + 4) + bytes(40),
            f"a block of type 6 claims a length of {pcapng.MAX_BLOCK + 4} bytes",
        ),
    ],
    ids=itertools.count(),
)
def test_a_block_that_contradicts_itself_ends_the_file(wrong: bytes, said: str) -> None:
    assert reason(HEAD, wrong) == said
    assert reason(HEAD + packet("<", b"whole"), wrong) == said


def test_packets_need_an_interface() -> None:
    nothing = section("<")
    assert reason(nothing, simple("<", b"")) == "a simple packet, but no interface is described"
    assert (
        reason(nothing, packet("<", b"")) == "a packet names interface 0, but only 0 are described"
    )
    # Those of another section do not count.
    assert reason(HEAD + nothing, packet("<", b"")).startswith("a packet names interface 0")


@pytest.mark.parametrize(
    ("whole", "there", "needed"),
    [
        (FRAME, 5, 12),
        (FRAME, 11, len(FRAME)),
        (FRAME, len(FRAME) - 1, len(FRAME)),
        (section(">"), 11, 12),
        (section(">"), 13, len(section(">"))),
        (block("<", UNKNOWN, bytes(90)), 50, len(block("<", UNKNOWN, bytes(90)))),
    ],
    ids=itertools.count(),
)
def test_a_cut_is_told_with_what_is_missing(whole: bytes, there: int, needed: int) -> None:
    said = damage(HEAD + whole[:there])
    assert (said.at, said.reason) == (
        len(HEAD),
        f"cut short: the block needs {needed} bytes, had {there}",
    )


def test_a_file_without_a_section_is_none() -> None:
    data = interface("<")
    assert parsed(data).damage == Damage(0, "a section header is missing")


def test_the_first_of_several_damages_is_told() -> None:
    data = HEAD + FRAME + spoiled(FRAME, TRAILER, 99) + FRAME + struct.pack("<II", IDB, 3)
    assert damage(data + bytes(4)).at == len(HEAD + FRAME)


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [64, 1000, 1 << 20])
def test_blocks_nobody_needs_are_skipped_however_long(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcapng, "MAX_BLOCK", 200)
    long = [block("<", UNKNOWN, bytes(size)) for size in (180, 188, 192, 5000, 70_000)]
    data = HEAD + b"".join(each + packet("<", b"between") for each in long)
    assert len(read_bytes(data, chunk).rows) == len(long)
    # Their second length is not looked at: it is not worth keeping them for.
    assert read_bytes(data, chunk) == expected(data)
    for length in range(len(data) - 300, len(data)):
        assert read_bytes(data[:length], chunk) == expected(data[:length])
    inside = data.index(long[-1]) + 3000
    assert read_bytes(data[:inside], chunk) == expected(data[:inside])


def test_a_long_block_that_is_cut_tells_where_it_starts_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pcapng, "MAX_BLOCK", 200)
    long = block("<", UNKNOWN, bytes(5000))
    assert damage(HEAD + long[:3000]) == Damage(
        len(HEAD), f"cut short: the block needs {len(long)} bytes, had 3000"
    )


@pytest.mark.parametrize("hops", [1, chain.HOPS])
@pytest.mark.parametrize("chunk", [64, 1000, 1 << 20])
def test_blocks_that_are_needed_may_be_so_long_and_no_longer(
    chunk: int, hops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = packet("<", bytes(200))
    monkeypatch.setattr(pcapng, "MAX_BLOCK", len(longest))
    monkeypatch.setattr(chain, "HOPS", hops)
    data = HEAD + longest * 3 + packet("<", bytes(201)) + longest
    found = read_bytes(data, chunk)
    assert (len(found.rows), found.damage) == (3, len(HEAD + longest * 3))


def test_a_file_may_have_so_many_interfaces_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng, "MAX_INTERFACES", 9)
    most = section("<") + interface("<") * 5 + section(">") + interface(">") * 4
    assert read_bytes(most).damage is None
    assert reason(most, interface(">")) == "more than 9 interfaces"


def test_a_file_may_describe_itself_at_such_length_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comment = [(1, bytes(1000))]
    # Sections without an interface are forgotten, and cost nothing.
    head = section("<", comment) * 20 + interface("<", comment) * 2
    data = head + interface("<", comment)
    kept = len(section("<", comment)) + 3 * len(interface("<", comment)) - 4 * 12
    monkeypatch.setattr(pcapng, "MAX_DESCRIPTIONS", kept)
    assert read_bytes(data).damage is None
    monkeypatch.setattr(pcapng, "MAX_DESCRIPTIONS", kept - 1)
    said = reason(head, interface("<", comment))
    assert said == f"more than {kept - 1} bytes that describe sections and interfaces"


@pytest.mark.parametrize("kind", [packet, obsolete])
def test_a_packet_may_have_so_many_options_and_no_more(kind: Callable[..., bytes]) -> None:
    empty = options("<", [(1, b"")], ended=False)
    most = kind("<", b"frame", behind=empty * MAX_OPTIONS)
    more = kind("<", b"frame", behind=empty * (MAX_OPTIONS + 1))
    first = HEAD + most
    found = read_bytes(first + more)
    assert [len(row.options) for row in found.rows] == [MAX_OPTIONS]
    assert found.damage == len(first)
    assert "options" in damage(first + more).reason
