"""Read savefiles: pcap and pcapng, compressed or not, from a path or a pipe still being written.

Strategy: one buffer is filled, parsed and its unparsed rest carried over, so memory does not grow
with the file. Where packets are long a file is mapped instead, window after window: who looks at
headers alone then touches nothing else. What was read before damage is always delivered before the
damage is raised.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from vsockdump.errors import SavefileError
from vsockdump.frames import (
    SLACK,
    FrameBatch,
    Interface,
    InterfaceStatistics,
    keep_freed_memory,
)
from vsockdump.sources import pcap, pcapng
from vsockdump.sources.bytestream import ByteStream
from vsockdump.sources.chain import SPARSE, Damage
from vsockdump.sources.parser import Parser, cut_short

if TYPE_CHECKING:
    from pathlib import Path

CHUNK: Final = 1 << 21
"""Bytes read at a time: some 14,000 small packets, so that a batch outweighs its fixed cost."""
LARGE_CHUNK: Final = 1 << 22
"""The same for who does so much with a batch that its fixed cost is higher."""
LARGEST_CHUNK: Final = 1 << 23
"""The most that is read at a time when somebody asks for more packets in a batch."""
WINDOW: Final = 1 << 23
"""Bytes of a mapped file looked at at a time."""
_LEAST: Final = 64
"""Fewer bytes at a time would not hold a file header."""
_MAGIC_LEN: Final = 4


def _long(batch: FrameBatch) -> bool:
    """Whether frames are so long that most of them need not be looked at."""
    return int(batch.caplen.sum()) >= SPARSE * len(batch)


class Savefile:
    """A Source over one savefile; ``name``, ``interfaces`` and ``format`` describe it.

    ``format`` is ``"pcap"`` or ``"pcapng"``. Raises SavefileError when the file is neither.
    """

    def __init__(self, target: str | Path | int, *, chunk: int = CHUNK) -> None:
        """Open a path, ``-`` (standard input) or a descriptor; read ``chunk`` bytes at a time."""
        keep_freed_memory()
        self._stream = ByteStream(target)
        self.name = self._stream.name
        self.identity = self._stream.identity
        self.size = self._stream.size
        self.interfaces: list[Interface] = []
        self._chunk = max(chunk, _LEAST)
        self._mapping = True
        self._buffer = np.zeros(self._chunk + SLACK, np.uint8)
        self._end = 0
        self._position = 0
        self._mean = 0
        """Bytes a packet took in the batch before the last."""
        try:
            self.format, self._parser = self._recognize()
        except BaseException:
            self.close()
            raise

    def _recognize(self) -> tuple[str, Parser]:
        while self._end < _MAGIC_LEN and (count := self._read()):
            self._end += count
        magic = self._buffer[: min(self._end, _MAGIC_LEN)].tobytes()
        if magic in pcap.MAGICS:
            return "pcap", pcap.PcapParser(self.interfaces)
        if magic == pcapng.MAGIC:
            return "pcapng", pcapng.PcapngParser(self.interfaces)
        reason = "neither pcap nor pcapng" if magic else "the file is empty"
        raise SavefileError(self.name, 0, reason)

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far (compressed ones, if it is compressed)."""
        return self._stream.consumed

    def enlarge(self, packets: int) -> None:
        """Have batches of about so many packets or more, as far as LARGEST_CHUNK goes."""
        self._chunk = max(self._chunk, min(self._mean * packets, LARGEST_CHUNK))

    def statistics(self) -> Mapping[int, InterfaceStatistics]:
        """What the file's interface statistics blocks say, as far as they have been read."""
        return self._parser.statistics

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def batches(self) -> Iterator[FrameBatch]:
        """Yield all frames; raise SavefileError behind the last whole one of a damaged file."""
        error: SavefileError | None = None
        last = False
        while not last:
            parsed = self._parser.parse(self._buffer, 0, self._end, last=False)
            if parsed.batch is not None:
                yield parsed.batch
                self._mean = parsed.consumed // len(parsed.batch)
            if parsed.damage is not None:
                raise self._error(parsed.damage)
            if self._mapping and parsed.batch is not None and _long(parsed.batch):
                yield from self._mapped(self._position + parsed.consumed)
            else:
                self._carry(parsed.consumed)
            try:
                if parsed.skip:
                    self._skip(parsed.skip)
                count = self._read()
            except SavefileError as damage:
                error, count = damage, 0
            last = not count
            self._end += count
        if error is not None:
            raise error
        parsed = self._parser.parse(self._buffer, 0, self._end, last=True)
        if parsed.damage is not None:
            raise self._error(parsed.damage)

    def _mapped(self, begin: int) -> Iterator[FrameBatch]:
        """The frames from ``begin`` on, for as long as they are long; reading goes on behind."""
        mapped = self._stream.mapped()
        self._mapping = False
        if mapped is None:
            self._carry(begin - self._position)
            return
        buffer = np.frombuffer(mapped, np.uint8)
        window, last = WINDOW, buffer.size - SLACK
        self._position = self._end = 0
        while begin < last and not self._stream.shrunk():
            end = min(begin + window, last)
            parsed = self._parser.parse(buffer, begin, end, last=False)
            if parsed.batch is not None:
                yield parsed.batch
            if parsed.damage is not None:
                raise self._error(parsed.damage)
            following = parsed.consumed + parsed.skip
            if following > last or (following == begin and end == last):
                break
            # One long block is no reason to go on in long strides.
            window = 2 * window if following == begin else WINDOW
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, page, following - page)
            begin = following
            self._stream.consumed = begin
            if parsed.batch is not None and not _long(parsed.batch):
                self._mapping = True
                break
        self._stream.seek(begin)
        self._position = begin

    def _error(self, damage: Damage) -> SavefileError:
        return SavefileError(self.name, self._position + damage.at, damage.reason)

    def _read(self) -> int:
        room = self._buffer.data[self._end : self._buffer.size - SLACK]
        return self._stream.readinto(room, self._position + self._end)

    def _carry(self, consumed: int) -> None:
        """Keep what is not parsed yet at the buffer's start; make room when it fills the buffer."""
        rest = self._end - consumed
        kept = self._buffer[consumed : self._end]
        capacity = self._buffer.size - SLACK
        if rest == capacity:
            self._buffer = np.zeros(2 * capacity + SLACK, np.uint8)
        elif rest < self._chunk != capacity:
            # One long block is no reason to go on in long strides; a wish for large batches is.
            self._buffer = np.zeros(self._chunk + SLACK, np.uint8)
        self._buffer[:rest] = kept
        self._position += consumed
        self._end = rest

    def _skip(self, length: int) -> None:
        """Read over the block at the buffer's start, which goes on past the buffer."""
        start, left = self._position, length - self._end
        self._position += self._end
        self._end = 0
        while left:
            room = self._buffer.data[: min(left, self._chunk)]
            if not (count := self._stream.readinto(room, self._position)):
                cut = cut_short(start, "block", length, length - left)
                raise SavefileError(self.name, cut.at, cut.reason)
            self._position += count
            left -= count
