"""Parse classic pcap: a file header, then records, in either byte order and resolution.

Sans I/O. Records have no alignment and no magic, but the upper half of their seconds changes only
every 18 hours: two bytes at a known place mark the candidates of a chain (see chain.py).
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np

from vsockdump.frames import Bytes, FrameBatch, Interface, InterfaceStatistics, Ints, gather
from vsockdump.sources.chain import Damage, Walk, follow
from vsockdump.sources.parser import Parsed, cut_short

MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""File magic to byte order and nanoseconds a tick."""
FILE_HDR_LEN: Final = 24
RECORD_LEN: Final = 16
MAX_CAPLEN: Final = 262_144
"""What tcpdump and Wireshark accept at most; more means that the file is damaged."""
_VERSION: Final = 2
_SLICE: Final = 1 << 16
"""Bytes looked at in one go: a crowd of false marks is noticed before it costs much memory."""
_CROWDED: Final = RECORD_LEN // 2
"""Bytes from mark to mark, on average, below which there are more marks than records have room."""


class PcapParser:
    """Turns the bytes of one pcap file into FrameBatches; appends to ``interfaces``."""

    def __init__(self, interfaces: list[Interface]) -> None:
        self.statistics: dict[int, InterfaceStatistics] = {}
        self._interfaces = interfaces
        self._order = ""
        self._tick = 1
        self._number = 1
        self._record: np.dtype[Any] = np.dtype([])

    def parse(self, buf: Bytes, begin: int, end: int, *, last: bool) -> Parsed:
        """Every whole record of ``buf[begin:end]``; ``last``: no more bytes will come."""
        at = begin
        if not self._order:
            at += FILE_HDR_LEN
            if at > end:
                cut = cut_short(begin, "file header", FILE_HDR_LEN, end - begin)
                return Parsed(None, begin, cut if last else None)
            damage = self._file_header(buf[begin:at].tobytes(), begin)
            if damage is not None:
                return Parsed(None, begin, damage)
        walk = Walk(
            lambda start: self._chain(buf, start, end),
            lambda start, most: self._hops(buf, start, end, most),
        )
        offsets, stopped, damage = walk.run(at)
        if last and stopped < end and damage is None:
            damage = self._cut(buf, stopped, end)
        return Parsed(self._batch(buf, offsets) if offsets.size else None, stopped, damage)

    def _file_header(self, data: bytes, at: int) -> Damage | None:
        self._order, self._tick = MAGICS[data[:4]]
        major, minor, _, _, snaplen, linktype = struct.unpack(self._order + "HHiIII", data[4:])
        if major != _VERSION:
            return Damage(at, f"pcap version {major}.{minor} is not known")
        names = ["sec", "frac", "caplen", "origlen"]
        self._record = np.dtype([(name, self._order + "u4") for name in names])
        self._interfaces.append(
            # The upper bits tell of a frame check sequence, which no vsockmon frame has.
            Interface(linktype=linktype & 0xFFFF, snaplen=snaplen, nanoseconds=self._tick == 1)
        )
        return None

    def _chain(self, buf: Bytes, begin: int, end: int) -> tuple[Ints, int]:
        starts = end - begin - RECORD_LEN + 1
        if starts < 1:
            return np.zeros(0, np.int64), begin
        high, low = (3, 2) if self._order == "<" else (0, 1)
        data = buf[begin:end]
        found = []
        for first in range(0, starts, _SLICE):
            stop = min(first + _SLICE, starts)
            mark = data[first + high : stop + high] == data[high]
            mark &= data[first + low : stop + low] == data[low]
            marked = np.flatnonzero(mark) + (begin + first)
            if marked.size * _CROWDED > _SLICE:
                # Times near 1970 and payload full of zeros, say: nothing there but false ones.
                break
            found.append(marked)
        candidates = np.concatenate(found) if found else np.zeros(0, np.int64)
        caplen = gather(buf, candidates + 8, np.dtype(self._order + "u4")).astype(np.int64)
        successors = candidates + (RECORD_LEN + caplen)
        plausible = (caplen <= MAX_CAPLEN) & (successors <= end)
        return follow(candidates[plausible], successors[plausible], begin)

    def _hops(
        self, buf: Bytes, begin: int, end: int, most: int | None
    ) -> tuple[Ints, int, Damage | None]:
        offsets: list[int] = []
        unpack, data = struct.Struct(self._order + "8xI4x").unpack_from, buf.data
        while begin + RECORD_LEN <= end and len(offsets) != most:
            (caplen,) = unpack(data, begin)
            if caplen > MAX_CAPLEN:
                damage = Damage(begin, f"a record claims {caplen} captured bytes")
                return np.array(offsets, np.int64), begin, damage
            following = begin + RECORD_LEN + caplen
            if following > end:
                break
            offsets.append(begin)
            begin = following
        return np.array(offsets, np.int64), begin, None

    def _cut(self, buf: Bytes, at: int, end: int) -> Damage:
        needed = RECORD_LEN
        if end - at >= RECORD_LEN:
            needed += struct.unpack_from(self._order + "I", buf.data, at + 8)[0]
        return cut_short(at, "record", needed, end - at)

    def _batch(self, buf: Bytes, offsets: Ints) -> FrameBatch:
        records = gather(buf, offsets, self._record)
        first, self._number = self._number, self._number + offsets.size
        return FrameBatch(
            buf=buf,
            offset=offsets + RECORD_LEN,
            caplen=records["caplen"].astype(np.int64),
            origlen=records["origlen"].astype(np.int64),
            time_ns=records["sec"].astype(np.int64) * 10**9
            + records["frac"].astype(np.int64) * self._tick,
            interface=np.zeros(offsets.size, np.int64),
            number=np.arange(first, self._number, dtype=np.int64),
            interfaces=self._interfaces,
        )
