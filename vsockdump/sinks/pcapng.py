"""Encode pcapng: one little-endian section, its interfaces, enhanced packet blocks, statistics.

Sans I/O, vectorised. Times are nanoseconds (if_tsresol 9). Sections that were flattened on reading
stay flat: the section header tells where the first one was captured, an interface that comes from
elsewhere says so in its own if_os.

Source: draft-ietf-opsawg-pcapng; block types are those of ``sources.pcapng``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from vsockdump.errors import VsockdumpError
from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics, Section
from vsockdump.sinks.assemble import Assembler, records
from vsockdump.sinks.encoder import Blocks, Misfit, before_epoch
from vsockdump.sources.options import COMMENT
from vsockdump.sources.pcapng import EPB, IDB, ISB, SHB

_BYTE_ORDER: Final = 0x1A2B3C4D
_UNKNOWN_LENGTH: Final = 0xFFFF_FFFF_FFFF_FFFF
_HEAD: Final = 28
"""Block type, length, interface, time (high, low), captured length, original length."""
_FRAMING: Final = 32
"""What an enhanced packet block needs beside the frame: its head, and its length again."""
_TAIL: Final = 8
"""The length at a block's end, and the word before it, which holds padding."""
_NANOSECONDS: Final = 9
_TEXT_FILTER: Final = b"\0"
_MAX_OPTION: Final = 0xFFFF


_END: Final = 0
_SHB_HARDWARE: Final = 2
_SHB_OS: Final = 3
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_IF_FILTER: Final = 11
_IF_OS: Final = 12
_ISB_STARTTIME: Final = 2
_ISB_ENDTIME: Final = 3
_ISB_IFRECV: Final = 4
_ISB_IFDROP: Final = 5


class PcapngEncoder:
    """One pcapng file after another: ``begin`` starts each."""

    def __init__(self, *, application: str, comment: str | None = None) -> None:
        self._application = application
        self._comment = comment
        self._assembler = Assembler()
        self._described = 0
        self._os = ""
        self._sections: set[Section] = set()
        # Whatever is wrong with the texts of the caller is wrong now.
        self.begin(())

    def begin(self, interfaces: Sequence[Interface]) -> bytes:
        """A section header, and a block for each interface there is so far."""
        sections = list(dict.fromkeys(interface.section for interface in interfaces))
        systems = [section.os for section in sections] + [each.os for each in interfaces]
        self._os = next(filter(None, systems), "")
        hardware = next(filter(None, (section.hardware for section in sections)), "")
        comments = [comment for section in sections for comment in section.comments]
        if self._comment is not None:
            comments.append(self._comment)
        self._sections = set(sections)
        self._described = 0
        options = [(COMMENT, text) for text in comments]
        options += [
            (_SHB_HARDWARE, hardware),
            (_SHB_OS, self._os),
            (_SHB_USERAPPL, self._application),
        ]
        fixed = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        return _block(SHB, fixed + _options(options)) + self._describe(interfaces)

    def _describe(self, interfaces: Sequence[Interface]) -> bytes:
        blocks = [self._interface(each) for each in interfaces[self._described :]]
        self._described += len(blocks)
        return b"".join(blocks)

    def _interface(self, interface: Interface) -> bytes:
        comments = list(interface.comments)
        if interface.section not in self._sections:
            # The section header is written; its interface is what is left to take the comments.
            self._sections.add(interface.section)
            comments = [*interface.section.comments, *comments]
        own_os = interface.os or (interface.kernel if interface.kernel != self._os else "")
        options: list[tuple[int, str | bytes]] = [(COMMENT, text) for text in comments]
        options += [
            (_IF_NAME, interface.name),
            (_IF_DESCRIPTION, interface.description),
            (_IF_TSRESOL, bytes([_NANOSECONDS])),
            (_IF_OS, own_os),
        ]
        if interface.filter:
            options.append((_IF_FILTER, _TEXT_FILTER + _utf8(interface.filter)))
        fixed = struct.pack("<HxxI", interface.linktype, interface.snaplen)
        return _block(IDB, fixed + _options(options))

    def ahead(self, frames: FrameBatch) -> bytes:
        """Blocks for the interfaces that came since the last call."""
        return self._describe(frames.interfaces)

    def misfit(self, frames: FrameBatch) -> Misfit | None:
        """The first frame that the format cannot hold."""
        return min(before_epoch(frames), default=None)

    def blocks(self, frames: FrameBatch) -> Blocks:
        """How long each frame's block will be, and the options that go into it."""
        size = (frames.caplen + (_FRAMING + 3)) & ~np.int64(3)
        if not frames.options:
            return Blocks(size=size)
        rows = sorted(frames.options)
        options = [
            _options([(option.code, option.value) for option in frames.options[row]])
            for row in rows
        ]
        size[rows] += np.fromiter(map(len, options), np.int64, len(rows))
        return Blocks(size=size, rows=rows, options=options)

    def encode(self, frames: FrameBatch, blocks: Blocks) -> list[memoryview]:
        """The blocks of all these frames, valid until the next call."""
        placed = self._assembler.start(frames, blocks.size)
        # Tails first: for a large frame without padding the word before reaches into the head.
        tails = blocks.size.astype("<u8") << np.uint64(32)
        records(placed.buf, _TAIL)[placed.end - _TAIL] = tails.view(f"V{_TAIL}")
        for row, data in zip(blocks.rows, blocks.options, strict=True):
            end = int(placed.end[row]) - 4
            placed.buf[end - len(data) - 4 : end - len(data)] = 0
            placed.buf[end - len(data) : end] = np.frombuffer(data, np.uint8)
        heads = np.empty((len(frames), _HEAD // 4), "<u4")
        heads[:, 0] = EPB
        heads[:, 1] = blocks.size
        heads[:, 2] = frames.interface
        heads[:, 3] = frames.time_ns >> 32
        heads[:, 4] = frames.time_ns  # its low half: assignment keeps no more
        heads[:, 5] = frames.caplen
        heads[:, 6] = frames.origlen
        records(placed.buf, _HEAD)[placed.start] = heads.reshape(-1).view(f"V{_HEAD}")
        return self._assembler.finish(frames, placed, _HEAD)

    def end(
        self, interfaces: Sequence[Interface], statistics: Mapping[int, InterfaceStatistics]
    ) -> bytes:
        """The last interfaces, and a statistics block for each one that was counted."""
        return self._describe(interfaces) + b"".join(
            _statistics(index, statistics[index])
            for index in sorted(statistics)
            if index < self._described
        )


def _statistics(index: int, counted: InterfaceStatistics) -> bytes:
    values: list[tuple[int, bytes]] = []
    for code, time_ns in (
        (_ISB_STARTTIME, counted.start_ns),
        (_ISB_ENDTIME, counted.end_ns),
    ):
        if time_ns is not None:
            values.append((code, _time(time_ns)))
    for code, count in ((_ISB_IFRECV, counted.received), (_ISB_IFDROP, counted.dropped)):
        if count is not None:
            values.append((code, struct.pack("<Q", count)))
    # Always there, so a counter nobody dated has the time the format calls none.
    taken = _time(counted.end_ns or 0)
    return _block(ISB, struct.pack("<I", index) + taken + _options(values))


def _time(time_ns: int) -> bytes:
    return struct.pack("<II", time_ns >> 32 & 0xFFFF_FFFF, time_ns & 0xFFFF_FFFF)


def _options(values: Sequence[tuple[int, str | bytes]]) -> bytes:
    """Options with their end mark; those with an empty text are left out."""
    parts = []
    for code, value in values:
        data = value
        if isinstance(data, str):
            if not data and code != COMMENT:
                continue
            data = _utf8(data)
        if len(data) > _MAX_OPTION:
            raise VsockdumpError(
                f"a comment or name of {len(data)} bytes is too long for pcapng, "
                f"which takes {_MAX_OPTION}"
            )
        parts.append(struct.pack("<HH", code, len(data)) + data + bytes(-len(data) % 4))
    if parts:
        parts.append(struct.pack("<HH", _END, 0))
    return b"".join(parts)


def _utf8(text: str) -> bytes:
    # What a command line has that is no UTF-8 arrives as lone surrogates.
    return text.encode("utf-8", "replace")


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length
