"""A plain reader of pcap and pcapng: one block after the other, with struct, for comparison.

It shares nothing with the package. Everything of a file is in its outcome, in file order; times
are exact. Reading ends at the first thing that contradicts the format: ``damage`` says where.

Sources: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

Options = list[tuple[int, bytes]]

SHB, IDB, PB, SPB, NRB, ISB, EPB = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6
COMMENT = 1
TAKEN = (SHB, IDB, PB, SPB, ISB, EPB)
"""Blocks of use only when all of them is there; a longer one of another kind is passed by."""
LARGEST = 16 << 20
PCAP_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}


class Bad(Exception):
    """What is wrong, at which byte."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(f"at byte {at}: {reason}")
        self.at = at


@dataclass
class Section:
    order: str
    version: tuple[int, int]
    length: int
    options: Options


@dataclass
class Interface:
    section: Section | None
    linktype: int
    snaplen: int
    options: Options
    ticks_per_second: int = 10**6
    offset_seconds: int = 0

    def time_ns(self, ticks: int) -> int:
        """Ticks since the epoch as nanoseconds, rounded down."""
        return ticks * 10**9 // self.ticks_per_second + self.offset_seconds * 10**9


@dataclass
class Packet:
    interface: int
    time_ns: int | None
    origlen: int
    data: bytes
    options: Options = field(default_factory=list)


@dataclass
class Statistics:
    interface: int
    time_ns: int
    options: Options


@dataclass
class Plain:
    format: str
    sections: list[Section] = field(default_factory=list)
    interfaces: list[Interface] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    statistics: list[Statistics] = field(default_factory=list)
    others: list[tuple[int, bytes]] = field(default_factory=list)
    """Type and body of each block that is none of these."""
    kinds: list[int] = field(default_factory=list)
    """Type of each block, in order."""
    damage: Bad | None = None


def first(options: Options, code: int) -> bytes | None:
    """The value of the first option of this code."""
    return next((value for found, value in options if found == code), None)


def every(options: Options, code: int) -> list[bytes]:
    """The values of all options of this code."""
    return [value for found, value in options if found == code]


def read(path: Path | str, *, whole: bool = True) -> Plain:
    """The file at ``path``, decompressed; damage is a failure if the file is to be ``whole``."""
    data = Path(path).read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        data = reader.read()
    plain = parse(data)
    if whole and plain.damage is not None:
        raise plain.damage
    return plain


def parse(data: bytes) -> Plain:
    """Everything up to the end, or to the first damage."""
    plain = Plain("pcap" if data[:4] in PCAP_MAGICS else "pcapng")
    try:
        (_pcap if plain.format == "pcap" else _pcapng)(data, plain)
    except Bad as bad:
        plain.damage = bad
    return plain


def _pcap(data: bytes, plain: Plain) -> None:
    order, tick = PCAP_MAGICS[data[:4]]
    if len(data) < 24:
        raise Bad(0, "the file header is cut")
    major, minor, _, _, snaplen, linktype = struct.unpack_from(order + "HHiIII", data, 4)
    if major != 2:
        raise Bad(0, f"version {major}.{minor}")
    plain.interfaces.append(Interface(None, linktype & 0xFFFF, snaplen, [], 10**9 // tick))
    at = 24
    while at < len(data):
        if at + 16 > len(data):
            raise Bad(at, "a record header is cut")
        seconds, fraction, caplen, origlen = struct.unpack_from(order + "IIII", data, at)
        if caplen > 262_144:
            raise Bad(at, f"a record of {caplen} bytes")
        if at + 16 + caplen > len(data):
            raise Bad(at, "a record is cut")
        frame = data[at + 16 : at + 16 + caplen]
        plain.packets.append(Packet(0, seconds * 10**9 + fraction * tick, origlen, frame))
        at += 16 + caplen


def _pcapng(data: bytes, plain: Plain) -> None:
    at, order, base = 0, "", 0
    while at < len(data):
        if data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            magic = data[at + 8 : at + 12]
            if len(magic) == 4 and magic not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                raise Bad(at, "no byte-order magic")
            order = "<" if magic == b"\x4d\x3c\x2b\x1a" else ">"
        elif not order:
            raise Bad(at, "no section header")
        if at + 12 > len(data):
            raise Bad(at, "a block is cut")
        kind, length = struct.unpack_from(order + "II", data, at)
        if length < 12 or length % 4:
            raise Bad(at, f"a block of {length} bytes")
        if length > LARGEST and kind in TAKEN:
            raise Bad(at, f"a block of {length} bytes")
        if at + length > len(data):
            raise Bad(at, "a block is cut")
        (again,) = struct.unpack_from(order + "I", data, at + length - 4)
        if again != length:
            raise Bad(at, f"lengths {length} and {again}")
        body = data[at + 8 : at + length - 4]
        try:
            base = _block(plain, kind, body, order, base, at)
        except struct.error as error:
            raise Bad(at, str(error)) from error
        plain.kinds.append(kind)
        at += length


def _block(plain: Plain, kind: int, body: bytes, order: str, base: int, at: int) -> int:
    """Add one block; where the interfaces of the section start."""

    def interface(index: int) -> Interface:
        if base + index >= len(plain.interfaces):
            raise Bad(at, f"no interface {index}")
        return plain.interfaces[base + index]

    def cut(start: int, caplen: int) -> bytes:
        if start + caplen + -caplen % 4 > len(body):
            raise Bad(at, f"no room for {caplen} captured bytes")
        return body[start : start + caplen]

    if kind == SHB:
        major, minor, length = struct.unpack_from(order + "4xHHq", body)
        if major != 1:
            raise Bad(at, f"version {major}.{minor}")
        plain.sections.append(
            Section(order, (major, minor), length, list(_options(body[16:], order)))
        )
        return len(plain.interfaces)
    if kind == IDB:
        linktype, snaplen = struct.unpack_from(order + "HxxI", body)
        options = list(_options(body[8:], order))
        new = Interface(plain.sections[-1], linktype, snaplen, options)
        resolution, offset = first(options, 9), first(options, 14)
        if resolution is not None:
            (value,) = struct.unpack("B", resolution)
            power = value & 0x7F
            new.ticks_per_second = 2**power if value & 0x80 else 10**power
        if offset is not None:
            (new.offset_seconds,) = struct.unpack(order + "q", offset)
        plain.interfaces.append(new)
    elif kind == EPB:
        index, high, low, caplen, origlen = struct.unpack_from(order + "IIIII", body)
        time_ns = interface(index).time_ns(high << 32 | low)
        frame = cut(20, caplen)
        options = list(_options(body[20 + caplen + -caplen % 4 :], order))
        plain.packets.append(Packet(base + index, time_ns, origlen, frame, options))
    elif kind == PB:
        index, _, high, low, caplen, origlen = struct.unpack_from(order + "HHIIII", body)
        time_ns = interface(index).time_ns(high << 32 | low)
        frame = cut(20, caplen)
        options = list(_options(body[20 + caplen + -caplen % 4 :], order))
        plain.packets.append(Packet(base + index, time_ns, origlen, frame, options))
    elif kind == SPB:
        (origlen,) = struct.unpack_from(order + "I", body)
        caplen = min(origlen, interface(0).snaplen or origlen)
        plain.packets.append(Packet(base, None, origlen, cut(4, caplen)))
    elif kind == ISB:
        index, high, low = struct.unpack_from(order + "III", body)
        time_ns = interface(index).time_ns(high << 32 | low)
        plain.statistics.append(Statistics(base + index, time_ns, list(_options(body[12:], order))))
    else:
        plain.others.append((kind, body))
    return base


def _options(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from(order + "HH", data, at)
        if code == 0 or at + 4 + length > len(data):
            return
        yield code, data[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
