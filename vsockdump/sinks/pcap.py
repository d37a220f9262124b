"""Encode pcap: a little-endian file header, then records. One link type a file, nothing else kept.

Sans I/O, vectorised. The file header is due before the link type is known where interfaces differ:
then it waits for the first frame.

Source: draft-ietf-opsawg-pcap; sizes and limits are those of ``sources.pcap``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics
from vsockdump.sinks.assemble import Assembler, records
from vsockdump.sinks.encoder import Blocks, Misfit, before_epoch, first_misfit
from vsockdump.sources.pcap import MAGICS, MAX_CAPLEN, RECORD_LEN

_VERSION: Final = (2, 4)
_SECOND: Final = 10**9
_SECONDS: Final = 1 << 32
"""The seconds of a record wrap here, in the year 2106."""


class PcapEncoder:
    """One pcap file after another, all of the same link type: ``begin`` starts each."""

    def __init__(self, *, microseconds: bool = False) -> None:
        self._tick = 1000 if microseconds else 1
        self._magic = next(
            magic for magic, (order, tick) in MAGICS.items() if (order, tick) == ("<", self._tick)
        )
        self._assembler = Assembler()
        self._linktype: int | None = None
        self._snaplen = MAX_CAPLEN
        self._pending = True

    def begin(self, interfaces: Sequence[Interface]) -> bytes:
        """The file header; nothing yet while interfaces of different link types leave it open."""
        self._pending = True
        types = {interface.linktype for interface in interfaces}
        if self._linktype is None and len(types) == 1:
            self._linktype = types.pop()
        return self._header(interfaces)

    def _header(self, interfaces: Sequence[Interface]) -> bytes:
        if self._linktype is None or not self._pending:
            return b""
        self._pending = False
        lengths = [interface.snaplen or MAX_CAPLEN for interface in interfaces]
        self._snaplen = min(max(lengths, default=MAX_CAPLEN), MAX_CAPLEN)
        fields = struct.pack("<HHiIII", *_VERSION, 0, 0, self._snaplen, self._linktype)
        return self._magic + fields

    def ahead(self, frames: FrameBatch) -> bytes:
        """The file header, if it is missing and the first of these frames decides it."""
        if self._linktype is None and len(frames):
            self._linktype = frames.interfaces[int(frames.interface[0])].linktype
        return self._header(frames.interfaces)

    def misfit(self, frames: FrameBatch) -> Misfit | None:
        """The first frame of another link type, of a time or length that a record cannot hold."""
        found = before_epoch(frames)
        for index, interface in enumerate(frames.interfaces):
            if interface.linktype != self._linktype:
                found += first_misfit(
                    frames.interface == index,
                    f"its link type is {interface.linktype}, that of the file {self._linktype}; "
                    "pcap holds one link type, pcapng several",
                )
        found += first_misfit(
            frames.time_ns >= _SECONDS * _SECOND, "its time is past 2106, where pcap ends"
        )
        found += first_misfit(
            frames.caplen > self._snaplen,
            f"it is longer than the {self._snaplen} bytes that the file header promised",
        )
        return min(found, default=None)

    def blocks(self, frames: FrameBatch) -> Blocks:
        """How long each frame's record will be."""
        return Blocks(size=frames.caplen + RECORD_LEN)

    def encode(self, frames: FrameBatch, blocks: Blocks) -> list[memoryview]:
        """The records of these frames in order, valid until the next call."""
        placed = self._assembler.start(frames, blocks.size)
        heads = np.empty((len(frames), RECORD_LEN // 4), "<u4")
        seconds = frames.time_ns // _SECOND
        heads[:, 0] = seconds
        heads[:, 1] = (frames.time_ns - seconds * _SECOND) // self._tick
        heads[:, 2] = frames.caplen
        heads[:, 3] = frames.origlen
        records(placed.buf, RECORD_LEN)[placed.start] = heads.reshape(-1).view(f"V{RECORD_LEN}")
        return self._assembler.finish(frames, placed, RECORD_LEN)

    def end(
        self, interfaces: Sequence[Interface], statistics: Mapping[int, InterfaceStatistics]
    ) -> bytes:
        """The file header, if no frame ever decided the link type; pcap keeps no statistics."""
        if self._linktype is None:
            self._linktype = interfaces[0].linktype if interfaces else wire.LINKTYPE_VSOCK
        return self._header(interfaces)
