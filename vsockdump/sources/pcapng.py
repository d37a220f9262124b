"""Parse pcapng: sections, interfaces and packets of every resolution, in either byte order.

Sans I/O. Enhanced packet blocks, nearly all of a capture, are located in bulk (chain.py: their
type is a 4-byte word at a 4-byte boundary) and read as records; other blocks are looked at one by
one. Blocks nobody here needs are skipped, however long they are.

Source: draft-ietf-opsawg-pcapng. Sections are flattened: an interface gets an index of its own
that counts on through the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

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
from vsockdump.sources.chain import SPARSE, Damage, Walk, follow
from vsockdump.sources.parser import Parsed

MAGIC: Final = b"\x0a\x0d\x0d\x0a"
SHB: Final = 0x0A0D0D0A
IDB: Final = 1
PB: Final = 2
SPB: Final = 3
ISB: Final = 5
EPB: Final = 6
_BYTE_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_FRAMING: Final = 12
"""Type, length, and the length again at the end."""
_EPB_FIXED: Final = 32
_EPB_DATA: Final = 28
_SPB_FIXED: Final = 16
MAX_BLOCK: Final = 16 * 1024 * 1024
"""Longest block that is read; Wireshark's limit. Longer ones of other types are skipped."""
MAX_INTERFACES: Final = 65_536
"""Interface blocks accepted in a file, so that a file of nothing else costs bounded memory."""

_TIME_MAX: Final = np.iinfo(np.int64).max
_INTEGERS: Final = {2: 4, 4: 8, 5: 8, 6: 4}
"""Packet options that hold one integer (flags, drop count, packet id, queue) and its width."""


class _Clock(NamedTuple):
    """How an interface counts time: ticks a second and an offset in seconds."""

    binary: bool
    exponent: int
    offset: int

    def time_ns(self, ticks: NDArray[np.uint64]) -> Ints:
        """Ticks since the epoch to nanoseconds; a time past the year 2262 reads as that."""
        if self.binary:
            seconds = ticks >> np.uint64(self.exponent) if self.exponent < 64 else ticks * 0
            rest = ticks - (seconds << np.uint64(self.exponent) if self.exponent < 64 else 0)
            # Fewer than 2^34 ticks a second keep the product below 2^64, and lose no nanosecond.
            spare = max(self.exponent - 33, 0)
            rest = rest >> np.uint64(spare) if spare < 64 else rest * 0
            fraction = (rest * np.uint64(10**9)) >> np.uint64(min(self.exponent, 33))
            limit = (_TIME_MAX - 10**9) // 10**9
            ns = np.minimum(seconds, limit) * np.uint64(10**9) + fraction
        elif self.exponent <= 9:
            factor = 10 ** (9 - self.exponent)
            ns = np.minimum(ticks, _TIME_MAX // factor) * np.uint64(factor)
        else:
            ns = ticks // np.uint64(10 ** min(self.exponent - 9, 19))
            ns = np.minimum(ns, _TIME_MAX)
        return ns.astype(np.int64) + np.int64(self.offset * 10**9)


_DEFAULT_CLOCK: Final = _Clock(False, 6, 0)


class PcapngParser:
    """Turns the bytes of a pcapng file into FrameBatches; appends to ``interfaces``."""

    def __init__(self, interfaces: list[Interface]) -> None:
        self.statistics: dict[int, InterfaceStatistics] = {}
        self._interfaces = interfaces
        self._clocks: list[_Clock] = []
        self._base = 0
        self._order = ""
        self._section = Section()
        self._number = 1
        self._sparse = False
        self._epb: np.dtype[Any] = np.dtype([])

    def parse(self, buf: Bytes, begin: int, end: int, *, last: bool) -> Parsed:
        """Every whole block of ``buf[begin:end]``; ``last``: no more bytes will come."""
        walk = Walk(
            lambda start: self._chain(buf, start, end),
            lambda start, most: self._hops(buf, start, end, most),
            sparse=self._sparse,
        )
        pieces: list[FrameBatch] = []
        at, damage = begin, None
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
            at = following
            if at >= end:
                break
        if last and at < end and damage is None:
            damage = self._cut(buf, at, end)
        elif last and at > end and damage is None:
            damage = Damage(end, f"cut short: a block goes on for {at - end} bytes")
        batch = _join(pieces)
        if batch is not None:
            self._sparse = (at - begin) // len(batch) > SPARSE
        return Parsed(batch, at, damage)

    # -- enhanced packet blocks, in bulk ----------------------------------------------------

    def _chain(self, buf: Bytes, begin: int, end: int) -> tuple[Ints, int]:
        whole = begin + (end - begin) // 4 * 4
        if whole - begin < _EPB_FIXED:
            return np.zeros(0, np.int64), begin
        words = np.ndarray(((whole - begin) // 4,), self._order + "u4", buf.data, begin)
        candidates = np.flatnonzero(words[:-2] == EPB)
        length = words[candidates + 1].astype(np.int64)
        successors = candidates + (length >> 2)
        plausible = (length & 3 == 0) & (length >= _EPB_FIXED) & (successors <= words.size)
        candidates, successors = candidates[plausible], successors[plausible]
        offsets, at = follow(candidates, successors, 0)
        return offsets * 4 + begin, at * 4 + begin

    def _hops(
        self, buf: Bytes, begin: int, end: int, most: int | None
    ) -> tuple[Ints, int, Damage | None]:
        offsets: list[int] = []
        unpack, data = struct.Struct(self._order + "II").unpack_from, buf.data
        while begin + _EPB_FIXED <= end and len(offsets) != most:
            kind, length = unpack(data, begin)
            if kind != EPB or length < _EPB_FIXED or length & 3 or begin + length > end:
                break
            offsets.append(begin)
            begin += length
        return np.array(offsets, np.int64), begin, None

    def _packets(self, buf: Bytes, offsets: Ints) -> tuple[FrameBatch | None, Damage | None]:
        """The frames of whole blocks, and what is wrong with the first bad one."""
        records = gather(buf, offsets, self._epb)
        length = records["length"].astype(np.int64)
        caplen = records["caplen"].astype(np.int64)
        interface = records["interface"].astype(np.int64)
        trailer = gather(buf, offsets + length - 4, np.dtype(self._order + "u4"))
        behind = length - _EPB_FIXED - (caplen + 3 & ~np.int64(3))
        known = len(self._interfaces) - self._base
        bad = (behind < 0) | (interface >= known) | (trailer != records["length"])
        damage = None
        if bad.any():
            row = int(np.argmax(bad))
            damage = self._packet_damage(int(offsets[row]), records[row], int(trailer[row]), known)
            offsets, records, caplen = offsets[:row], records[:row], caplen[:row]
            interface, behind = interface[:row], behind[:row]
        if not offsets.size:
            return None, damage
        ticks = records["high"].astype(np.uint64) << np.uint64(32) | records["low"]
        interface += self._base
        return (
            FrameBatch(
                buf=buf,
                offset=offsets + _EPB_DATA,
                caplen=caplen,
                origlen=records["origlen"].astype(np.int64),
                time_ns=self._time_ns(ticks, interface),
                interface=interface,
                number=self._take_numbers(offsets.size),
                interfaces=self._interfaces,
                options=self._packet_options(buf, offsets + length[: offsets.size] - 4, behind),
            ),
            damage,
        )

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
        return Damage(at, f"a block of {length} bytes claims {caplen} captured bytes")

    def _time_ns(self, ticks: NDArray[np.uint64], interface: Ints) -> Ints:
        clocks = set(self._clocks[self._base :])
        if len(clocks) == 1:
            return clocks.pop().time_ns(ticks)
        time_ns = np.zeros(ticks.size, np.int64)
        for index in np.unique(interface).tolist():
            rows = interface == index
            time_ns[rows] = self._clocks[index].time_ns(ticks[rows])
        return time_ns

    def _take_numbers(self, count: int) -> Ints:
        first, self._number = self._number, self._number + count
        return np.arange(first, self._number, dtype=np.int64)

    def _packet_options(
        self, buf: Bytes, ends: Ints, behind: Ints
    ) -> dict[int, tuple[Option, ...]]:
        options = {}
        for row in np.flatnonzero(behind > 0).tolist():
            end = int(ends[row])
            data = buf[end - int(behind[row]) : end].tobytes()
            found = tuple(
                Option(code=code, value=self._little(code, value))
                for code, value in self._options(data)
            )
            if found:
                options[row] = found
        return options

    def _little(self, code: int, value: bytes) -> bytes:
        """An option's value with its integer, if it holds one, little-endian."""
        if self._order == ">" and _INTEGERS.get(code) == len(value):
            return value[::-1]
        return value

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
        needed = kind in (SHB, IDB, PB, SPB, ISB, EPB)
        if length > MAX_BLOCK:
            if needed:
                return at, Damage(at, f"a block of type {kind} claims a length of {length} bytes")
            return at + length, None
        if at + length > end:
            return at, None
        (trailer,) = struct.unpack_from(self._order + "I", buf.data, at + length - 4)
        if trailer != length:
            return at, Damage(at, f"a block's two lengths differ: {length} and {trailer}")
        if not needed:
            return at + length, None
        try:
            wrong = self._block(buf, kind, at, length, pieces)
        except struct.error:
            wrong = f"a block of type {kind} is too short: {length} bytes"
        return at + length, Damage(at, wrong) if wrong else None

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
        return f"a packet block of {length} bytes is too short"

    def _section_header(self, body: bytes) -> str | None:
        major, minor = struct.unpack_from(self._order + "4xHH", body)
        if major != 1:
            return f"pcapng version {major}.{minor} is not known"
        options = _Texts(self._options(body[16:]))
        self._section = Section(
            hardware=options.first(2),
            os=options.first(3),
            application=options.first(4),
            comments=options.all(1),
        )
        self._base = len(self._interfaces)
        names = ["kind", "length", "interface", "high", "low", "caplen", "origlen"]
        self._epb = np.dtype([(name, self._order + "u4") for name in names])
        return None

    def _interface(self, body: bytes) -> str | None:
        if len(self._interfaces) == MAX_INTERFACES:
            return f"more than {MAX_INTERFACES} interfaces"
        linktype, snaplen = struct.unpack_from(self._order + "HxxI", body)
        pairs = list(self._options(body[8:]))
        options = _Texts(pairs)
        clock = _DEFAULT_CLOCK
        for code, value in pairs:
            if code == 9 and len(value) == 1:
                clock = clock._replace(binary=value[0] >= 0x80, exponent=value[0] & 0x7F)
            elif code == 14 and len(value) == 8:
                (offset,) = struct.unpack(self._order + "q", value)
                limit = _TIME_MAX // 10**9 // 2
                clock = clock._replace(offset=max(-limit, min(limit, offset)))
        filters = [value for code, value in pairs if code == 11]
        self._clocks.append(clock)
        self._interfaces.append(
            Interface(
                linktype=linktype,
                snaplen=snaplen,
                name=options.first(2),
                description=options.first(3),
                # The first byte tells the kind of filter; 0 is a capture filter's text.
                filter=_text(filters[0][1:]) if filters and filters[0][:1] == b"\0" else "",
                os=options.first(12),
                comments=options.all(1),
                section=self._section,
                nanoseconds=clock.exponent > (20 if clock.binary else 6),
            )
        )
        return None

    def _interface_statistics(self, body: bytes) -> str | None:
        (index,) = struct.unpack_from(self._order + "I8x", body)
        index += self._base
        if index >= len(self._interfaces):
            return "statistics of an interface that is not described"
        values = {code: value for code, value in self._options(body[12:]) if len(value) == 8}
        counts = {
            code: struct.unpack(self._order + "Q", values[code])[0]
            for code in (4, 5)
            if code in values
        }
        times: dict[int, int] = {}
        for code in (2, 3):
            if code in values:
                high, low = struct.unpack(self._order + "II", values[code])
                ticks = np.array([high << 32 | low], np.uint64)
                times[code] = int(self._clocks[index].time_ns(ticks)[0])
        self.statistics[index] = InterfaceStatistics(
            received=counts.get(4),
            dropped=counts.get(5),
            start_ns=times.get(2),
            end_ns=times.get(3),
        )
        return None

    def _simple_packet(
        self, buf: Bytes, at: int, body: bytes, pieces: list[FrameBatch]
    ) -> str | None:
        (origlen,) = struct.unpack_from(self._order + "I", body)
        if self._base == len(self._interfaces):
            return "a simple packet, but no interface is described"
        snaplen = self._interfaces[self._base].snaplen or origlen
        caplen = min(origlen, snaplen, len(body) - 4)
        self._one(pieces, buf, at + 12, caplen, origlen, 0, self._base, ())
        return None

    def _obsolete_packet(
        self, buf: Bytes, at: int, body: bytes, pieces: list[FrameBatch]
    ) -> str | None:
        layout = struct.Struct(self._order + "HHIIII")
        index, _, high, low, caplen, origlen = layout.unpack_from(body)
        index += self._base
        if index >= len(self._interfaces):
            return "a packet names an interface that is not described"
        padded = layout.size + (caplen + 3 & ~3)
        if padded > len(body):
            return f"a block of {len(body) + _FRAMING} bytes claims {caplen} captured bytes"
        ticks = np.array([high << 32 | low], np.uint64)
        time_ns = int(self._clocks[index].time_ns(ticks)[0])
        found = tuple(
            Option(code=code, value=self._little(code, value))
            for code, value in self._options(body[padded:])
        )
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
        options: tuple[Option, ...],
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
                options={0: options} if options else {},
            )
        )

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Code and value of each option; ends at the end mark, or where one does not fit."""
        at = 0
        while at + 4 <= len(data):
            code, length = struct.unpack_from(self._order + "HH", data, at)
            value = data[at + 4 : at + 4 + length]
            if code == 0 or len(value) < length:
                return
            yield code, value
            at += 4 + (length + 3 & ~3)

    def _cut(self, buf: Bytes, at: int, end: int) -> Damage:
        needed = _FRAMING
        if end - at >= 8 and self._order:
            needed = max(needed, struct.unpack_from(self._order + "4xI", buf.data, at)[0])
        return Damage(at, f"cut short: the block needs {needed} bytes, had {end - at}")


class _Texts:
    """The options of a block that are text."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = list(pairs)

    def first(self, code: int) -> str:
        return next(iter(self.all(code)), "")

    def all(self, code: int) -> tuple[str, ...]:
        return tuple(_text(value) for found, value in self._pairs if found == code)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


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
