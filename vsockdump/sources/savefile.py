"""Read savefiles: pcap and pcapng, compressed or not, from a path or a pipe still being written.

Strategy: one buffer is filled, parsed and its unparsed rest carried over, so memory does not grow
with the file. What was read before damage is always delivered before the damage is raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from vsockdump.errors import SavefileError
from vsockdump.frames import SLACK, FrameBatch, Interface, InterfaceStatistics
from vsockdump.sources import pcap, pcapng
from vsockdump.sources.bytestream import ByteStream
from vsockdump.sources.parser import Parser

CHUNK: Final = 1 << 20
"""Bytes read at a time: some 7,000 small packets, a batch that stays in the processor's cache."""


class Savefile:
    """A Source over one savefile; ``name``, ``interfaces`` and ``format`` describe it.

    ``format`` is ``"pcap"`` or ``"pcapng"``. Raises SavefileError when the file is neither.
    """

    def __init__(self, target: str | Path | int, *, chunk: int = CHUNK) -> None:
        """Open a path, ``-`` (standard input) or a descriptor; read ``chunk`` bytes at a time."""
        self._stream = ByteStream(target)
        self.name = self._stream.name
        self.identity = self._stream.identity
        self.size = self._stream.size
        self.interfaces: list[Interface] = []
        self._buffer = np.zeros(max(chunk, 64) + SLACK, np.uint8)
        self._end = 0
        self._position = 0
        self._parser: Parser
        while self._end < 4 and (count := self._read()):
            self._end += count
        magic = self._buffer[: min(self._end, 4)].tobytes()
        if magic in pcap.MAGICS:
            self.format = "pcap"
            self._parser = pcap.PcapParser(self.interfaces)
        elif magic == pcapng.MAGIC:
            self.format = "pcapng"
            self._parser = pcapng.PcapngParser(self.interfaces)
        else:
            self.close()
            reason = "neither pcap nor pcapng" if magic else "the file is empty"
            raise SavefileError(self.name, 0, reason)

    @property
    def consumed(self) -> int:
        """Bytes of the file read so far (compressed ones, if it is compressed)."""
        return self._stream.consumed

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
            consumed = parsed.consumed
            if parsed.damage is not None:
                error = SavefileError(
                    self.name, self._position + parsed.damage.at, parsed.damage.reason
                )
                break
            self._carry(consumed)
            try:
                count = self._read()
            except SavefileError as damage:
                error, count = damage, 0
            last = not count
            self._end += count
        if error is None:
            parsed = self._parser.parse(self._buffer, 0, self._end, last=True)
            if parsed.damage is not None:
                at = self._position + parsed.damage.at
                error = SavefileError(self.name, at, parsed.damage.reason)
        if error is not None:
            raise error

    def _read(self) -> int:
        room = self._buffer.data[self._end : self._buffer.size - SLACK]
        return self._stream.readinto(room, self._position + self._end)

    def _carry(self, consumed: int) -> None:
        """Keep what is not parsed yet at the buffer's start; make room when it fills the buffer."""
        while consumed > self._end:
            # A block nobody needs goes on past the buffer: read over it.
            consumed -= self._end
            self._position += self._end
            self._end = 0
            if not (count := self._read()):
                raise SavefileError(
                    self.name, self._position, f"cut short: a block goes on for {consumed} bytes"
                )
            self._end = count
        rest = self._end - consumed
        self._position += consumed
        if consumed:
            self._buffer[:rest] = self._buffer[consumed : self._end]
        self._end = rest
        capacity = self._buffer.size - SLACK
        if rest == capacity:
            grown = np.zeros(2 * capacity + SLACK, np.uint8)
            grown[:rest] = self._buffer[:rest]
            self._buffer = grown
