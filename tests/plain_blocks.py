"""Build pcap and pcapng with struct, block by block, as well as wrongly; and draw whole files.

Nothing here knows the package. What a file built here says is for ``plain_savefile`` to tell.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from plain_savefile import EPB, IDB, ISB, NRB, PB, PCAP_MAGICS, SHB, SPB, Options

VSOCK, SLL, SLL2, ETHERNET = 271, 113, 276, 1
UNKNOWN_LENGTH = -1
NANOSECONDS = b"\x09"
TSRESOL, TSOFFSET = 9, 14
CUSTOM_TEXT = 2988
PCAP_FILE_HDR, PCAP_RECORD_HDR = 24, 16


def block(order: str, kind: int, body: bytes) -> bytes:
    length = struct.pack(order + "I", len(body) + len(pad(body)) + 12)
    return struct.pack(order + "I", kind) + length + body + pad(body) + length


def pad(data: bytes) -> bytes:
    return bytes(-len(data) % 4)


def options(order: str, pairs: Sequence[tuple[int, bytes]], *, ended: bool = True) -> bytes:
    parts = [struct.pack(order + "HH", code, len(data)) + data + pad(data) for code, data in pairs]
    return b"".join(parts) + (bytes(4) if parts and ended else b"")


def section(order: str, pairs: Sequence[tuple[int, bytes]] = (), *, minor: int = 0) -> bytes:
    fixed = struct.pack(order + "IHHq", 0x1A2B3C4D, 1, minor, UNKNOWN_LENGTH)
    return block(order, SHB, fixed + options(order, pairs))


def interface(
    order: str,
    pairs: Sequence[tuple[int, bytes]] = (),
    *,
    linktype: int = VSOCK,
    snaplen: int = 0,
) -> bytes:
    return block(order, IDB, struct.pack(order + "HxxI", linktype, snaplen) + options(order, pairs))


def words(order: str, number: int) -> bytes:
    """A 64-bit number, the upper half first."""
    return struct.pack(order + "II", number >> 32, number & 0xFFFF_FFFF)


def packet(
    order: str,
    data: bytes,
    *,
    index: int = 0,
    ticks: int = 0,
    origlen: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """An enhanced packet block."""
    lengths = struct.pack(order + "II", len(data), len(data) if origlen is None else origlen)
    fixed = struct.pack(order + "I", index) + words(order, ticks) + lengths
    return block(order, EPB, fixed + data + pad(data) + behind)


def obsolete(
    order: str,
    data: bytes,
    *,
    index: int = 0,
    drops: int = 0,
    ticks: int = 0,
    origlen: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """A packet block, which the enhanced one replaced."""
    lengths = struct.pack(order + "II", len(data), len(data) if origlen is None else origlen)
    fixed = struct.pack(order + "HH", index, drops) + words(order, ticks) + lengths
    return block(order, PB, fixed + data + pad(data) + behind)


def simple(order: str, data: bytes, origlen: int | None = None) -> bytes:
    origlen = len(data) if origlen is None else origlen
    return block(order, SPB, struct.pack(order + "I", origlen) + data)


def statistics(order: str, pairs: Options, *, index: int = 0, ticks: int = 0) -> bytes:
    fixed = struct.pack(order + "I", index) + words(order, ticks)
    return block(order, ISB, fixed + options(order, pairs))


def pcap_header(magic: bytes, *, snaplen: int = 262_144, linktype: int = VSOCK) -> bytes:
    order, _ = PCAP_MAGICS[magic]
    return magic + struct.pack(order + "HHiIII", 2, 4, 0, 0, snaplen, linktype)


def record(
    magic: bytes, data: bytes, *, seconds: int = 0, fraction: int = 0, origlen: int | None = None
) -> bytes:
    order, _ = PCAP_MAGICS[magic]
    origlen = len(data) if origlen is None else origlen
    return struct.pack(order + "IIII", seconds, fraction, len(data), origlen) + data


# -- whole files, drawn ---------------------------------------------------------------------------

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
# Times of today in most resolutions, and any.
some_ticks = st.integers(1_780_000_000 * 10**9, 1_790_000_000 * 10**9) | u64
texts = st.text(max_size=9).map(lambda text: text.encode("utf-8", "replace")) | st.binary(
    max_size=9
)
orders = st.sampled_from("<>")


# Payload that looks like blocks and records is the reader's worst case.
FAKE = tuple(
    packet(order, b"fake") + block(order, NRB, b"") + section(order) for order in ("<", ">")
) + tuple(record(magic, b"fake", seconds=0x6A18_0000) for magic in PCAP_MAGICS)
payloads = st.binary(max_size=90) | st.sampled_from(FAKE).flatmap(
    lambda fake: st.integers(0, 3).map(lambda lead: bytes(lead) + fake)
)


def pairs(codes: Sequence[int]) -> st.SearchStrategy[Options]:
    return st.lists(
        st.tuples(st.sampled_from(codes), texts)
        | st.tuples(st.integers(1, 2**16 - 1), st.binary(max_size=12)),
        max_size=4,
    )


@st.composite
def option_bytes(draw: st.DrawFn, order: str) -> bytes:
    """Options of a packet: those that hold integers at their width and not, and odd endings."""
    some = draw(
        st.lists(
            st.tuples(st.sampled_from((1, 2, 3, 4, 5, 6, 7, CUSTOM_TEXT, 19372)), texts)
            | st.tuples(st.sampled_from((2, 6)), st.binary(min_size=4, max_size=4))
            | st.tuples(st.sampled_from((4, 5)), st.binary(min_size=8, max_size=8)),
            max_size=3,
        )
    )
    made = options(order, some, ended=draw(st.booleans()))
    odd = draw(st.sampled_from((b"", b"", b"", bytes(4), b"\1\0\0\1", b"\xff" * 8)))
    return made + odd


@st.composite
def clocks(draw: st.DrawFn, order: str) -> Options:
    found: Options = []
    if draw(st.booleans()):
        power = draw(st.sampled_from((0, 3, 6, 9, 10, 12, 20, 30, 32, 33, 63, 64, 127)))
        binary = draw(st.sampled_from((0, 0x80)))
        found.append((TSRESOL, bytes([binary | power])))
    if draw(st.sampled_from((False, False, True))):
        offset = draw(st.integers(-(10**10), 10**10) | st.integers(-(2**63), 2**63 - 1))
        found.append((TSOFFSET, struct.pack(order + "q", offset)))
    return draw(st.permutations(found))


@st.composite
def sections(draw: st.DrawFn) -> list[bytes]:
    """The blocks of one section."""
    order = draw(orders)
    blocks = [section(order, draw(pairs((1, 2, 3, 4))), minor=draw(st.sampled_from((0, 2))))]
    known = 0
    first_snaplen = 0
    kinds = ["interface", *draw(st.lists(st.sampled_from(KINDS), max_size=10))]
    for kind in kinds if draw(st.integers(0, 9)) else kinds[1:]:
        if kind == "interface":
            snaplen = draw(st.sampled_from((0, 16, 262_144)))
            first_snaplen = first_snaplen if known else snaplen
            named = draw(pairs((1, 2, 3, 11, 12)))
            clock = draw(clocks(order))
            about = clock + [each for each in named if each[0] not in (TSRESOL, TSOFFSET)]
            linktype = draw(st.sampled_from((VSOCK, SLL, SLL2, ETHERNET)))
            blocks.append(interface(order, about, linktype=linktype, snaplen=snaplen))
            known += 1
        elif kind == "unknown":
            unknown = draw(st.sampled_from((NRB, 7, 9, 0xBAD, 0x4000_0BAD, 2**32 - 1)))
            often = draw(st.sampled_from((0, 0, 1, 60)))
            blocks.append(block(order, unknown, draw(st.sampled_from(FAKE)) * often))
        elif known:
            index = draw(st.integers(0, known - 1))
            data = draw(payloads)
            origlen = draw(st.just(len(data)) | u32)
            about_packet = draw(option_bytes(order))
            ticks = draw(some_ticks)
            if kind == "packet":
                blocks.append(
                    packet(
                        order, data, index=index, ticks=ticks, origlen=origlen, behind=about_packet
                    )
                )
            elif kind == "obsolete":
                drops = draw(u16)
                blocks.append(
                    obsolete(
                        order,
                        data,
                        index=index,
                        drops=drops,
                        ticks=ticks,
                        origlen=origlen,
                        behind=about_packet,
                    )
                )
            elif kind == "simple":
                blocks.append(simple(order, data[: first_snaplen or None], len(data)))
            else:
                counters = draw(
                    st.lists(
                        st.tuples(
                            st.sampled_from((1, 2, 3, 4, 5, 6)),
                            st.binary(min_size=8, max_size=8) | st.binary(max_size=3),
                        ),
                        max_size=5,
                    )
                )
                blocks.append(statistics(order, counters, index=index, ticks=ticks))
    return blocks


KINDS = ("packet",) * 5 + ("simple", "obsolete", "statistics", "unknown", "interface")


def pcapng_files() -> st.SearchStrategy[bytes]:
    return st.lists(sections(), min_size=1, max_size=3).map(
        lambda some: b"".join(each for blocks in some for each in blocks)
    )


@st.composite
def pcap_files(draw: st.DrawFn) -> bytes:
    magic = draw(st.sampled_from(tuple(PCAP_MAGICS)))
    parts = [
        pcap_header(
            magic,
            snaplen=draw(u32),
            # The upper half tells of a frame check sequence.
            linktype=draw(st.sampled_from((VSOCK, SLL, SLL2, ETHERNET, 0x3400_0000 | VSOCK))),
        )
    ]
    base = draw(u32)
    for _ in range(draw(st.integers(0, 12))):
        data = draw(payloads)
        seconds = (base + draw(st.integers(0, 2**17))) % 2**32
        origlen = draw(st.just(len(data)) | u32)
        parts.append(record(magic, data, seconds=seconds, fraction=draw(u32), origlen=origlen))
    return b"".join(parts)


def savefiles() -> st.SearchStrategy[bytes]:
    return pcapng_files() | pcapng_files() | pcap_files()


# -- whole files, made ----------------------------------------------------------------------------


def rich(order: str) -> bytes:
    """A small pcapng file with one of everything."""
    fine = [(TSRESOL, NANOSECONDS), (1, b"comment"), (2, b"vsockmon0"), (11, b"\0port 1")]
    about = options(order, [(1, b"hello"), (2, bytes(4))])
    other = "<" if order == ">" else ">"
    return b"".join(
        [
            section(order, [(1, b"made by hand"), (3, b"Linux")]),
            interface(order, fine, snaplen=64),
            packet(order, b"frame", ticks=7, origlen=9, behind=about),
            simple(order, b"simply"),
            block(order, 0xBAD, FAKE[0]),
            interface(order, [(TSRESOL, b"\x8a"), (TSOFFSET, bytes(8))], linktype=SLL),
            obsolete(order, b"old", index=1, drops=3, ticks=2**33, behind=about),
            packet(order, FAKE[1], index=1),
            statistics(order, [(4, bytes(range(8))), (2, bytes(8))]),
            section(other),
            interface(other),
            packet(other, b"last"),
        ]
    )


def classic(magic: bytes) -> bytes:
    """A small pcap file."""
    records = [record(magic, FAKE[at][: 9 * at], seconds=9 * at, fraction=at) for at in range(6)]
    return pcap_header(magic) + b"".join(records)


SMALL = {
    "pcapng, little-endian": rich("<"),
    "pcapng, big-endian": rich(">"),
    **{f"pcap {magic.hex()}": classic(magic) for magic in PCAP_MAGICS},
}

# What a file starts with, and how to make a packet of it.
HEADS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "pcapng": (section("<") + interface("<"), lambda data: packet("<", data)),
    "pcap": (
        pcap_header(next(iter(PCAP_MAGICS))),
        lambda data: record(next(iter(PCAP_MAGICS)), data),
    ),
}
