"""Bytes of a savefile, uncompressed: a path, a descriptor or a pipe, plain, gzip or zstandard.

The stream looks at the first bytes to see what it has, so it works on pipes. A read gives what is
there as soon as something is: a capture that is still being written arrives packet by packet.
Compressed input is fed in small steps, so that what one step unfolds to is bounded whatever a
hostile file says, and everything before damage is delivered before the damage is reported.
"""

from __future__ import annotations

import io
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from vsockdump.errors import SavefileError, VsockdumpError

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_MAGIC_LEN: Final = 4
_GZIP_STEP: Final = 4096
"""Compressed bytes a step; deflate unfolds at most 1,032 times, so a step is at most 4 MiB."""
_ZSTD_STEP: Final = 1024
"""A zstandard block of 4 bytes may unfold to 128 KiB, so a step is at most 32 MiB."""


class _Decoder(Protocol):
    """What the decompression objects of isal and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Damaged(Exception):
    """Compressed data ends too early or makes no sense; the text says which."""


class _Decompressed:
    """Uncompressed bytes of a compressed file of one or more members."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        decoder: Callable[[], _Decoder],
        step: int,
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._read = read
        self._new = decoder
        self._decoder: _Decoder | None = None
        self._step = step
        self._errors = errors
        self._input = b""
        self._output = memoryview(b"")

    def __call__(self, size: int) -> memoryview | bytes:
        """At most ``size`` bytes; none at the end."""
        while not self._output:
            data = self._input or self._read(self._step)
            self._input = b""
            if not data:
                if self._decoder is not None:
                    raise _Damaged("the compressed data is cut short")
                return b""
            if self._decoder is None:
                self._decoder = self._new()
            try:
                self._output = memoryview(self._decoder.decompress(data))
            except self._errors as error:
                raise _Damaged(f"the compressed data is corrupt: {error}") from error
            if self._decoder.eof:
                # Some writers pad the last member with zeros; the next one never starts with one.
                self._input = self._decoder.unused_data.lstrip(b"\0")
                self._decoder = None
        taken, self._output = self._output[:size], self._output[size:]
        return taken


class ByteStream:
    """One savefile as a stream of uncompressed bytes.

    ``name`` is for messages; ``compression`` is ``""``, ``"gzip"`` or ``"zstd"``; ``size`` is the
    length on disk in bytes, None for a pipe; ``consumed`` counts the bytes read of it so far;
    ``identity`` is its (device, inode).
    """

    def __init__(self, target: str | Path | int) -> None:
        """Open ``target``: a path, ``-`` for standard input, or a descriptor (which stays open)."""
        if target == "-":
            target = 0
        self.name = "standard input" if target == 0 else str(target)
        self.consumed = 0
        try:
            self._file = io.FileIO(target, "r", closefd=not isinstance(target, int))
            status = os.fstat(self._file.fileno())
        except OSError as error:
            raise VsockdumpError(f"{self.name}: {error.strerror}") from error
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self.identity = (status.st_dev, status.st_ino)
        self._prefix = b""
        while len(self._prefix) < _MAGIC_LEN and (more := self._raw(_MAGIC_LEN)):
            self._prefix += more
        self.compression = ""
        self._decompressed: _Decompressed | None = None
        if self._prefix.startswith(GZIP_MAGIC):
            from isal import isal_zlib

            self.compression = "gzip"
            self._decompressed = _Decompressed(
                self._plain,
                lambda: isal_zlib.decompressobj(wbits=31),
                _GZIP_STEP,
                (isal_zlib.error,),  # type: ignore[arg-type]  # its stub says instance
            )
        elif self._prefix == ZSTD_MAGIC:
            import zstandard

            self.compression = "zstd"
            self._decompressed = _Decompressed(
                self._plain,
                lambda: zstandard.ZstdDecompressor().decompressobj(),
                _ZSTD_STEP,
                (zstandard.ZstdError,),
            )

    def _raw(self, size: int) -> bytes:
        try:
            data = self._file.read(size) or b""
        except OSError as error:
            raise VsockdumpError(f"{self.name}: {error.strerror}") from error
        self.consumed += len(data)
        return data

    def _plain(self, size: int) -> bytes:
        if self._prefix:
            taken, self._prefix = self._prefix[:size], self._prefix[size:]
            return taken
        return self._raw(size)

    def _waiting(self) -> bool:
        """Whether a read would give something at once."""
        ready, _, _ = select.select([self._file], [], [], 0)
        return bool(ready)

    def readinto(self, buffer: memoryview, position: int) -> int:
        """Read at least one byte and as many as are there; 0 at the end.

        ``position`` is the offset of the buffer's first byte in the uncompressed stream, for
        messages. Raises SavefileError on damaged compression, VsockdumpError on a read error.
        """
        filled = 0
        while filled < len(buffer) and (not filled or self.size is not None or self._waiting()):
            try:
                count = self._fill(buffer[filled:])
            except _Damaged as damage:
                if filled:
                    return filled
                raise SavefileError(self.name, position, str(damage)) from damage
            if not count:
                break
            filled += count
        return filled

    def _fill(self, buffer: memoryview) -> int:
        if self._decompressed is None and not self._prefix:
            try:
                count = self._file.readinto(buffer) or 0
            except OSError as error:
                raise VsockdumpError(f"{self.name}: {error.strerror}") from error
            self.consumed += count
            return count
        data = (self._decompressed or self._plain)(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file, unless it was passed as a descriptor."""
        self._file.close()
