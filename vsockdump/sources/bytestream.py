"""Bytes of a savefile, uncompressed: a path, a descriptor or a pipe, plain, gzip or zstandard.

The stream looks at the first bytes to see what it has, so it works on pipes. A read gives what is
there as soon as something is: a capture that is still being written arrives packet by packet. What
can be read before damage, or before an error of the system, is given before that is reported.
"""

from __future__ import annotations

import io
import mmap
import os
import select
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vsockdump.errors import SavefileError, VsockdumpError
from vsockdump.sources import compressed
from vsockdump.sources.compressed import Damaged, Unfolded

if TYPE_CHECKING:
    from pathlib import Path

_T = TypeVar("_T")


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
        self._named = not isinstance(target, int)
        self.consumed = 0
        self._prefix = b""
        try:
            self._file = io.FileIO(target, "r", closefd=not isinstance(target, int))
            try:
                status = os.fstat(self._file.fileno())
                self._poll = select.poll()
                self._poll.register(self._file, select.POLLIN)
                while len(self._prefix) < compressed.MAGIC_LEN and (
                    more := self._read(compressed.MAGIC_LEN - len(self._prefix))
                ):
                    self._prefix += more
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise VsockdumpError(f"{self.name}: {error.strerror}") from error
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self.identity = (status.st_dev, status.st_ino)
        self.compression = compressed.compression(self._prefix)
        self._unfolded = Unfolded(self.compression, self._prefixed) if self.compression else None

    def _patiently(self, read: Callable[[], _T | None]) -> _T:
        """Wait where a descriptor that does not block has nothing yet."""
        while (outcome := read()) is None:
            self._poll.poll()
        return outcome

    def _read(self, size: int) -> bytes:
        data: bytes = self._patiently(lambda: self._file.read(size))
        self.consumed += len(data)
        return data

    def _prefixed(self, size: int) -> bytes:
        if not self._prefix:
            return self._read(size)
        taken, self._prefix = self._prefix[:size], self._prefix[size:]
        return taken

    def _ready(self) -> bool:
        """Whether there is more without waiting for it."""
        return self.size is not None or bool(self._poll.poll(0))

    def readinto(self, buffer: memoryview, position: int) -> int:
        """Read at least one byte and as many as are there; 0 at the end.

        ``position`` is the offset of the buffer's first byte in the uncompressed stream, for
        messages. Raises SavefileError on damaged compression and on a read error.
        """
        filled = 0
        try:
            while filled < len(buffer) and (not filled or self._ready()):
                count = self._fill(buffer[filled:])
                if count is None:
                    break
                filled += count
        except (Damaged, OSError) as error:
            # What has been read comes first; asked again, the error is still there.
            if not filled:
                reason = error.strerror if isinstance(error, OSError) else None
                raise SavefileError(self.name, position, reason or str(error)) from error
        return filled

    def _fill(self, buffer: memoryview) -> int | None:
        """Read once; None at the end. Compressed data may be read and give 0 bytes yet."""
        if self._unfolded is not None:
            return self._unfolded.readinto(buffer)
        if self._prefix:
            data = self._prefixed(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        count = self._patiently(lambda: self._file.readinto(buffer))
        self.consumed += count
        return count or None

    def mapped(self) -> mmap.mmap | None:
        """The whole file in memory, read-only; None where bytes are not those of a file's path.

        It is as long as the file was when it was opened. Whoever shortens the file meanwhile ends
        a process that looks behind the new end, so look at ``shrunk`` before.
        """
        if not self._named or not self.size or self.compression:
            return None
        try:
            return mmap.mmap(self._file.fileno(), self.size, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            # Not every file system can; reading goes on as before.
            return None

    def shrunk(self) -> bool:
        """Whether the file is shorter than it was when it was opened."""
        return os.fstat(self._file.fileno()).st_size < (self.size or 0)

    def seek(self, position: int) -> None:
        """Go on at this offset of a file that is mapped."""
        self.consumed = self._file.seek(position)

    def close(self) -> None:
        """Close the file, unless it was passed as a descriptor."""
        self._file.close()
