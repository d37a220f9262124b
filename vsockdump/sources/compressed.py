"""Unfold compressed savefiles: gzip members and zstandard frames, one after the other.

Strategy: every step is small in what it unfolds to, whatever a hostile file says: some compressed
bytes of gzip, one block of zstandard.

Invariants:

- all that comes before damage is unfolded before Damaged is raised, and after that nothing is;
- nothing is read from the source while there is something unfolded to take.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

MAGIC_LEN: Final = 4
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""Behind a first byte 0x50 to 0x5f: a frame without data, as parallel compressors write them."""
_GZIP_WINDOW: Final = 31
"""zlib's way to ask for a gzip member of any window size."""
_GZIP_STEP: Final = 4096
"""Compressed bytes a step; deflate unfolds at most 1,032 times, so a step is at most 4 MiB."""
_ZSTD_STEP: Final = 1 << 16
"""Compressed bytes read at a time; a step ends with a block, which is at most 128 KiB unfolded."""
_RLE: Final = 1


class Damaged(Exception):
    """Compressed data ends too early or makes no sense; the text says which.

    ``salvaged`` is what was unfolded before the damage and is not delivered yet.
    """

    def __init__(self, reason: str, salvaged: bytes = b"") -> None:
        super().__init__(reason)
        self.salvaged = salvaged

    @classmethod
    def corrupt(cls, error: Exception, salvaged: bytes = b"") -> Damaged:
        """What a decompression library complains of."""
        return cls(f"the compressed data is corrupt: {error}", salvaged)


class _Member(Protocol):
    """One gzip member or zstandard frame; ``ended`` when all of it was unfolded."""

    ended: bool

    def unfold(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Unfold some of ``data``: the outcome, and what was not looked at. Raises Damaged."""
        ...


class _GzipMember:
    """A member of a gzip file.

    zlib and not isal, which is twice as fast: only zlib's state can be copied, to unfold again what
    comes before damage, and isal keeps the last bytes of a member that is cut short to itself.
    """

    def __init__(self) -> None:
        self.ended = False
        self._decoder = zlib.decompressobj(_GZIP_WINDOW)

    def unfold(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Unfold all of ``data`` that belongs to this member."""
        before = self._decoder.copy()
        try:
            unfolded = self._decoder.decompress(data)
        except zlib.error as error:
            raise Damaged.corrupt(error, _salvage(before, data)) from error
        self.ended = self._decoder.eof
        return unfolded, memoryview(self._decoder.unused_data)


def _salvage(decoder: zlib._Decompress, data: memoryview) -> bytes:
    """What the longest piece of ``data`` without damage unfolds to, found by halving."""
    unfolded = b""
    while len(data) > 1:
        half = len(data) // 2
        attempt = decoder.copy()
        try:
            unfolded += attempt.decompress(data[:half])
        except zlib.error:
            data = data[:half]
        else:
            decoder, data = attempt, data[half:]
    return unfolded


class _ZstdFrame:
    """A frame of a zstandard file, fed to the decoder in the pieces it is made of."""

    def __init__(self, decompressor: ZstdDecompressor, error: type[Exception]) -> None:
        self.ended = False
        self._decoder = decompressor.decompressobj()
        self._error = error
        self._pieces = _pieces()
        self._wanted = next(self._pieces)
        self._piece = bytearray()

    def unfold(self, data: memoryview) -> tuple[bytes, memoryview]:
        """Unfold what is there of the piece that has begun."""
        missing = self._wanted - len(self._piece)
        part, rest = data[:missing], data[missing:]
        try:
            unfolded = self._decoder.decompress(part)
        except self._error as error:
            raise Damaged.corrupt(error) from error
        self._piece += part
        if len(self._piece) == self._wanted:
            try:
                self._wanted = self._pieces.send(bytes(self._piece))
            except StopIteration:
                self.ended = True
            self._piece.clear()
        return unfolded, rest


def _pieces() -> Generator[int, bytes, None]:
    """The length of each piece of a zstandard frame; takes each piece. Source: RFC 8878, 3.1."""
    magic = yield MAGIC_LEN
    if _skippable(magic):
        left = int.from_bytes((yield 4), "little")
        while left:
            left -= len((yield min(left, _ZSTD_STEP)))
        return
    (descriptor,) = yield 1
    single = descriptor >> 5 & 1
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    yield (1 - single) + dictionary + (single, 2, 4, 8)[descriptor >> 6]
    last = 0
    while not last:
        block = int.from_bytes((yield 3), "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if length := 1 if kind == _RLE else size:
            yield length
    if descriptor >> 2 & 1:
        yield 4


def _skippable(magic: bytes) -> bool:
    return magic[0] >> 4 == 5 and magic[1:] == _ZSTD_SKIPPABLE


def compression(magic: bytes) -> str:
    """How a file that starts with these MAGIC_LEN bytes is compressed: gzip, zstd or not ("")."""
    if magic.startswith(_GZIP_MAGIC):
        return "gzip"
    if magic == _ZSTD_MAGIC or (len(magic) == MAGIC_LEN and _skippable(magic)):
        return "zstd"
    return ""


class Unfolded:
    """The uncompressed bytes of a file of one or more members."""

    def __init__(self, kind: str, read: Callable[[int], bytes]) -> None:
        """``read`` gives at most so many bytes of the file, none at its end."""
        self._read = read
        self._new: Callable[[], _Member] = _GzipMember
        self._step = _GZIP_STEP
        if kind == "zstd":
            import zstandard

            self._new = partial(_ZstdFrame, zstandard.ZstdDecompressor(), zstandard.ZstdError)
            self._step = _ZSTD_STEP
        self._member: _Member | None = None
        self._input = memoryview(b"")
        self._output = memoryview(b"")
        self._damage: Damaged | None = None

    def readinto(self, buffer: memoryview) -> int | None:
        """Take what is unfolded, or unfold one step more; None at the end, else a count.

        The count is 0 when the step unfolds to nothing. Raises Damaged.
        """
        if not self._output and not self._unfold():
            return None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _unfold(self) -> bool:
        if self._damage is not None:
            raise self._damage
        if not self._input:
            self._input = memoryview(self._read(self._step))
            if not self._input:
                if self._member is not None:
                    raise Damaged("the compressed data is cut short")
                return False
        if self._member is None:
            if not self._input[0]:
                # Some writers pad the last member with zeros; none starts with one.
                self._input = memoryview(self._input.tobytes().lstrip(b"\0"))
                return True
            self._member = self._new()
        try:
            unfolded, self._input = self._member.unfold(self._input)
        except Damaged as damage:
            self._damage = damage
            unfolded = damage.salvaged
        else:
            if self._member.ended:
                self._member = None
        self._output = memoryview(unfolded)
        return True
