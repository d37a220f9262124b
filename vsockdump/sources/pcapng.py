"""Parse pcapng: sections, interfaces and packets of every resolution, in either byte order.

Sans I/O. Enhanced packet blocks, nearly all of a capture, are located in bulk (chain.py: their
type is a 4-byte word at a 4-byte boundary) and read as records; other blocks are looked at one by
one. Blocks nobody here needs are skipped, however long they are.

Source: draft-ietf-opsawg-pcapng. Sections are flattened: an interface gets an index of its own
that counts on through the file.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import (
    Bytes,
    FrameBatch,
    Interface,
    InterfaceStatistics,
    Ints,
    Option,
    Section,
    gather,
)
from vsockdump.sources import options
from vsockdump.sources.chain import Damage, Walk, follow
from vsockdump.sources.parser import Parsed, cut_short
from vsockdump.sources.ticks import Clock

MAGIC: Final = b"\x0a\x0d\x0d\x0a"
SHB: Final = 0x0A0D0D0A
IDB: Final = 1
PB: Final = 2
SPB: Final = 3
ISB: Final = 5
EPB: Final = 6
_READ: Final = frozenset((SHB, IDB, PB, SPB, ISB, EPB))
"""Block types that are read; all others are skipped."""
_BYTE_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_FRAMING: Final = 12
"""Type, length, and the length again at the end."""
_EPB_FIXED: Final = 32
_WORD: Final = 4
_EPB_DATA: Final = 28
_SPB_DATA: Final = 12
MAX_BLOCK: Final = 16 * 1024 * 1024
"""Longest block that is read; Wireshark's limit. Longer ones of other types are skipped."""
MAX_INTERFACES: Final = 65_536
"""Interface blocks accepted in a file, so that a file of nothing else costs bounded memory."""
MAX_DESCRIPTIONS: Final = 4 * MAX_BLOCK
"""Bytes of section and interface blocks accepted together: their names and comments are kept."""
MANY: Final = 16
"""Interfaces of different clocks in a batch from which each packet's time is taken on its own."""
_CROWDED: Final = f"a packet has more than {options.MAX_OPTIONS} options"

_IF_OPTIONS: Final = (
    options.IF_NAME,
    options.IF_DESCRIPTION,
    options.IF_TSRESOL,
    options.IF_FILTER,
    options.IF_OS,
    options.IF_TSOFFSET,
)
_ISB_OPTIONS: Final = (
    options.ISB_STARTTIME,
    options.ISB_ENDTIME,
    options.ISB_IFRECV,
    options.ISB_IFDROP,
)


class PcapngParser:
    """Turns the bytes of a pcapng file into FrameBatches; appends to ``interfaces``."""

    def __init__(self, interfaces: list[Interface]) -> None:
        self.statistics: dict[int, InterfaceStatistics] = {}
        self._interfaces = interfaces
        self._clocks: list[Clock] = []
        self._clock: Clock | None = None
        """The one that all interfaces of the section share, if they do."""
        self._base = 0
        self._order = ""
        self._section = Section()
        self._section_size = 0
        self._described = 0
        self._number = 1
        self._epb: np.dtype[Any] = np.dtype([])

    def parse(self, buf: Bytes, begin: int, end: int, *, last: bool) -> Parsed:
        """Every whole block of ``buf[begin:end]``; ``last``: no more bytes will come."""
        walk = Walk(
            lambda start: self._chain(buf, start, end),
            lambda start, most: self._hops(buf, start, end, most),
        )
        pieces: list[FrameBatch] = []
        at, skip, damage = begin, 0, None
        while True:
            if self._order:
                offsets, at, damage = walk.run(at)
                if offsets.size:
                    piece, wrong = self._packets(buf, offsets)
                    if piece is not None:
                        pieces.append(piece)
                    if wrong is not None:
                        at, damage = wrong.at, wrong
                if damage is not None:
                    break
            if end - at < _FRAMING:
                break
            following, damage = self._other(buf, at, end, pieces)
            if damage is not None or following == at:
                break
            if following > end:
                skip = following - at
                break
            at = following
        if last and at < end and damage is None:
            damage = self._cut(buf, at, end)
        return Parsed(_join(pieces), at, damage, skip)

    # -- enhanced packet blocks, in bulk ----------------------------------------------------

    def _chain(self, buf: Bytes, begin: int, end: int) -> tuple[Ints, int]:
        whole = begin + (end - begin) // 4 * 4
        if whole - begin < _EPB_FIXED:
            return np.zeros(0, np.int64), begin
        words = np.ndarray(((whole - begin) // 4,), self._order + "u4", buf.data, begin)
        candidates = np.flatnonzero(words[:-2] == EPB)
        length = words[candidates + 1].astype(np.int64)
        successors = candidates + (length >> 2)
        plausible = (length & 3 == 0) & (length >= _EPB_FIXED) & (length <= MAX_BLOCK)
        plausible &= successors <= words.size
        candidates, successors = candidates[plausible], successors[plausible]
        offsets, at = follow(candidates, successors, 0)
        return offsets * 4 + begin, at * 4 + begin

    def _hops(
        self, buf: Bytes, begin: int, end: int, most: int | None
    ) -> tuple[Ints, int, Damage | None]:
        offsets: list[int] = []
        head, tail = struct.Struct(self._order + "II"), struct.Struct(self._order + "I")
        unpack, data = head.unpack_from, buf.data
        while begin + _FRAMING <= end and len(offsets) != most:
            kind, length = unpack(data, begin)
            if length & 3 or length > MAX_BLOCK or begin + length > end:
                break
            if kind == EPB and length >= _EPB_FIXED:
                offsets.append(begin)
            elif (
                kind in _READ
                or length < _FRAMING
                or tail.unpack_from(data, begin + length - 4) != (length,)
            ):
                break
            begin += length
        return np.array(offsets, np.int64), begin, None

    def _packets(self, buf: Bytes, offsets: Ints) -> tuple[FrameBatch | None, Damage | None]:
        """The frames of whole blocks, and what is wrong with the first bad one."""
        records = self._records(buf, offsets)
        length = records["length"].astype(np.int64)
        caplen = records["caplen"].astype(np.int64)
        interface = records["interface"].astype(np.int64)
        # Behind most blocks the next one follows, whose record has the word before it.
        ends = offsets + length
        trailer = np.empty_like(records["before"])
        trailer[:-1] = records["before"][1:]
        alone = np.flatnonzero(np.append(ends[:-1] != offsets[1:], True))
        trailer[alone] = gather(buf, ends[alone] - 4, trailer.dtype)
        behind = length - _EPB_FIXED - (caplen + 3 & ~np.int64(3))
        known = len(self._interfaces) - self._base
        bad = (behind < 0) | (interface >= known) | (trailer != records["length"])
        rows, damage = offsets.size, None
        if bad.any():
            rows = int(np.argmax(bad))
            at = int(offsets[rows])
            damage = self._packet_damage(at, records[rows], int(trailer[rows]), known)
        found, crowded = self._packet_options(buf, (ends - 4)[:rows], behind[:rows])
        if crowded is not None:
            rows, damage = crowded, Damage(int(offsets[crowded]), _CROWDED)
        if not rows:
            return None, damage
        records, interface = records[:rows], interface[:rows] + self._base
        ticks = records["high"].astype(np.uint64) << np.uint64(32) | records["low"]
        return (
            FrameBatch(
                buf=buf,
                offset=offsets[:rows] + _EPB_DATA,
                caplen=caplen[:rows],
                origlen=records["origlen"].astype(np.int64),
                time_ns=self._times_ns(ticks, interface),
                interface=interface,
                number=self._take_numbers(rows),
                interfaces=self._interfaces,
                options=found,
            ),
            damage,
        )

    def _records(self, buf: Bytes, offsets: Ints) -> NDArray[Any]:
        """The fixed parts of the blocks at ``offsets``, each with the word ``before`` it.

        What is before a block at the buffer's begin nobody knows.
        """
        missing = max(_WORD - int(offsets[0]), 0)
        begins = offsets - _WORD
        begins[0] += missing
        records = gather(buf, begins, self._epb)
        if missing:
            first = records[:1].view(np.uint8)
            first[missing:] = first[:-missing].copy()
        return records

    def _packet_damage(self, at: int, record: Any, trailer: int, known: int) -> Damage:
        length, caplen, interface = (
            int(record[name]) for name in ("length", "caplen", "interface")
        )
        if trailer != length:
            return Damage(at, f"a block's two lengths differ: {length} and {trailer}")
        if interface >= known:
            return Damage(
                at, f"a packet names interface {interface}, but only {known} are described"
            )
        return Damage(at, _claims(length, caplen))

    def _times_ns(self, ticks: NDArray[np.uint64], interface: Ints) -> Ints:
        if self._clock is not None:
            return self._clock.times_ns(ticks)
        indices = np.unique(interface).tolist()
        if len(indices) > MANY:
            pairs = zip(interface.tolist(), ticks.tolist(), strict=True)
            return np.array([self._clocks[index].time_ns(tick) for index, tick in pairs], np.int64)
        times = np.zeros(ticks.size, np.int64)
        for index in indices:
            rows = interface == index
            times[rows] = self._clocks[index].times_ns(ticks[rows])
        return times

    def _take_numbers(self, count: int) -> Ints:
        first, self._number = self._number, self._number + count
        return np.arange(first, self._number, dtype=np.int64)

    def _packet_options(
        self, buf: Bytes, ends: Ints, behind: Ints
    ) -> tuple[dict[int, tuple[Option, ...]], int | None]:
        """The options of the rows that have any, and the row that has too many."""
        found: dict[int, tuple[Option, ...]] = {}
        for row in np.flatnonzero(behind).tolist():
            end = int(ends[row])
            data = buf[end - int(behind[row]) : end].tobytes()
            of_row = options.of_packet(data, self._order)
            if of_row is None:
                return found, row
            if of_row:
                found[row] = of_row
        return found, None

    # -- the other blocks, one by one -------------------------------------------------------

    def _other(
        self, buf: Bytes, at: int, end: int, pieces: list[FrameBatch]
    ) -> tuple[int, Damage | None]:
        """Take the block at ``at``: where the next one starts (``at`` if this one is not whole)."""
        magic = buf[at : at + 4].tobytes()
        if magic == MAGIC:
            order = _BYTE_ORDERS.get(buf[at + 8 : at + 12].tobytes())
            if order is None:
                return at, Damage(at, "a section header without a byte-order magic")
            self._order = order
        elif not self._order:
            return at, Damage(at, "a section header is missing")
        kind, length = struct.unpack_from(self._order + "II", buf.data, at)
        if length < _FRAMING or length & 3:
            return at, Damage(at, f"a block claims a length of {length} bytes")
        if length > MAX_BLOCK:
            if kind in _READ:
                return at, Damage(at, f"a block of type {kind} claims a length of {length} bytes")
            return at + length, None
        if at + length > end:
            return at, None
        (trailer,) = struct.unpack_from(self._order + "I", buf.data, at + length - 4)
        if trailer != length:
            return at, Damage(at, f"a block's two lengths differ: {length} and {trailer}")
        try:
            wrong = self._block(buf, kind, at, length, pieces)
        except struct.error:
            wrong = f"a block of type {kind} is too short: {length} bytes"
        return (at, Damage(at, wrong)) if wrong else (at + length, None)

    def _block(
        self, buf: Bytes, kind: int, at: int, length: int, pieces: list[FrameBatch]
    ) -> str | None:
        body = buf[at + 8 : at + length - 4].tobytes()
        if kind == SHB:
            return self._section_header(body)
        if kind == IDB:
            return self._interface(body)
        if kind == ISB:
            return self._interface_statistics(body)
        if kind == SPB:
            return self._simple_packet(buf, at, body, pieces)
        if kind == PB:
            return self._obsolete_packet(buf, at, body, pieces)
        # Hops pass over every whole packet block and all other types.
        return f"a packet block of {length} bytes is too short"

    def _section_header(self, body: bytes) -> str | None:
        major, minor = struct.unpack_from(self._order + "4xHH8x", body)
        if major != 1:
            return f"pcapng version {major}.{minor} is not known"
        found = options.Chosen(
            body[16:], self._order, (options.SHB_HARDWARE, options.SHB_OS, options.SHB_USERAPPL)
        )
        self._section = Section(
            hardware=found.text(options.SHB_HARDWARE),
            os=found.text(options.SHB_OS),
            application=found.text(options.SHB_USERAPPL),
            comments=found.comments,
        )
        self._base = len(self._interfaces)
        # Nobody keeps a section without interfaces, so it counts with its first one.
        self._section_size = len(body)
        names = ["before", "kind", "length", "interface", "high", "low", "caplen", "origlen"]
        self._epb = np.dtype([(name, self._order + "u4") for name in names])
        return None

    def _interface(self, body: bytes) -> str | None:
        linktype, snaplen = struct.unpack_from(self._order + "HxxI", body)
        if len(self._interfaces) == MAX_INTERFACES:
            return f"more than {MAX_INTERFACES} interfaces"
        self._described += len(body) + self._section_size
        self._section_size = 0
        if self._described > MAX_DESCRIPTIONS:
            return f"more than {MAX_DESCRIPTIONS} bytes that describe sections and interfaces"
        found = options.Chosen(body[8:], self._order, _IF_OPTIONS)
        clock = Clock()
        if (resolution := found.get(options.IF_TSRESOL)) is not None:
            if len(resolution) != 1:
                return f"an interface's if_tsresol has {len(resolution)} bytes"
            clock = Clock(binary=resolution[0] >= 0x80, exponent=resolution[0] & 0x7F)
        if (seconds := found.get(options.IF_TSOFFSET)) is not None:
            if len(seconds) != 8:
                return f"an interface's if_tsoffset has {len(seconds)} bytes"
            clock = clock._replace(offset=struct.unpack(self._order + "q", seconds)[0])
        filter_ = found.get(options.IF_FILTER) or b""
        first = len(self._interfaces) == self._base
        self._clock = clock if first or clock == self._clock else None
        self._clocks.append(clock)
        self._interfaces.append(
            Interface(
                linktype=linktype,
                snaplen=snaplen,
                name=found.text(options.IF_NAME),
                description=found.text(options.IF_DESCRIPTION),
                # The first byte tells the kind of filter; 0 is a capture filter's text.
                filter=options.text(filter_[1:]) if filter_[:1] == b"\0" else "",
                os=found.text(options.IF_OS),
                comments=found.comments,
                section=self._section,
                nanoseconds=clock.nanoseconds,
            )
        )
        return None

    def _interface_statistics(self, body: bytes) -> str | None:
        (index,) = struct.unpack_from(self._order + "I8x", body)
        index += self._base
        if index >= len(self._interfaces):
            return "statistics of an interface that is not described"
        found = options.Chosen(body[12:], self._order, _ISB_OPTIONS)

        def unpack(code: int, layout: str) -> list[int] | None:
            value = found.get(code)
            if value is None or len(value) != 8:
                return None
            return list(struct.unpack(self._order + layout, value))

        def count(code: int) -> int | None:
            numbers = unpack(code, "Q")
            return numbers[0] if numbers else None

        def time_ns(code: int) -> int | None:
            words = unpack(code, "II")
            return self._clocks[index].time_ns(words[0] << 32 | words[1]) if words else None

        self.statistics[index] = InterfaceStatistics(
            received=count(options.ISB_IFRECV),
            dropped=count(options.ISB_IFDROP),
            start_ns=time_ns(options.ISB_STARTTIME),
            end_ns=time_ns(options.ISB_ENDTIME),
        )
        return None

    def _simple_packet(
        self, buf: Bytes, at: int, body: bytes, pieces: list[FrameBatch]
    ) -> str | None:
        (origlen,) = struct.unpack_from(self._order + "I", body)
        if self._base == len(self._interfaces):
            return "a simple packet, but no interface is described"
        caplen = min(origlen, self._interfaces[self._base].snaplen or origlen)
        if _padded(caplen) > len(body) - 4:
            return _claims(len(body) + _FRAMING, caplen)
        self._one(pieces, buf, at + _SPB_DATA, caplen, origlen, 0, self._base, ())
        return None

    def _obsolete_packet(
        self, buf: Bytes, at: int, body: bytes, pieces: list[FrameBatch]
    ) -> str | None:
        layout = struct.Struct(self._order + "HHIIII")
        index, _, high, low, caplen, origlen = layout.unpack_from(body)
        index += self._base
        if index >= len(self._interfaces):
            return "a packet names an interface that is not described"
        behind = layout.size + _padded(caplen)
        if behind > len(body):
            return _claims(len(body) + _FRAMING, caplen)
        found = options.of_packet(body[behind:], self._order)
        if found is None:
            return _CROWDED
        time_ns = self._clocks[index].time_ns(high << 32 | low)
        self._one(pieces, buf, at + 8 + layout.size, caplen, origlen, time_ns, index, found)
        return None

    def _one(
        self,
        pieces: list[FrameBatch],
        buf: Bytes,
        offset: int,
        caplen: int,
        origlen: int,
        time_ns: int,
        index: int,
        found: tuple[Option, ...],
    ) -> None:
        column = [
            np.array([value], np.int64) for value in (offset, caplen, origlen, time_ns, index)
        ]
        pieces.append(
            FrameBatch(
                buf=buf,
                offset=column[0],
                caplen=column[1],
                origlen=column[2],
                time_ns=column[3],
                interface=column[4],
                number=self._take_numbers(1),
                interfaces=self._interfaces,
                options={0: found} if found else {},
            )
        )

    def _cut(self, buf: Bytes, at: int, end: int) -> Damage:
        needed = _FRAMING
        # A section header has a byte order of its own, and tells it in what would be missing.
        known = self._order and buf[at : at + 4].tobytes() != MAGIC
        if end - at >= (8 if known else _FRAMING):
            needed = max(needed, struct.unpack_from(self._order + "4xI", buf.data, at)[0])
        return cut_short(at, "block", needed, end - at)


def _padded(length: int) -> int:
    return length + 3 & ~3


def _claims(length: int, caplen: int) -> str:
    return f"a block of {length} bytes claims {caplen} captured bytes"


def _join(pieces: list[FrameBatch]) -> FrameBatch | None:
    """One batch of pieces over the same buffer."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    options: dict[int, tuple[Option, ...]] = {}
    row = 0
    for piece in pieces:
        options.update({row + at: found for at, found in piece.options.items()})
        row += len(piece)
    names = ("offset", "caplen", "origlen", "time_ns", "interface", "number")
    columns = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    first = pieces[0]
    return FrameBatch(buf=first.buf, interfaces=first.interfaces, options=options, **columns)
