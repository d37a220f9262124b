"""Bytes of a savefile to where they go: a path, standard output, a pipe; plain or compressed.

Invariants:

- what is left behind is readable: when a write fails half-way, a regular file is cut back to its
  last whole block (and a compressed one to its last whole member);
- a file is opened without being emptied first, so that an input is recognised while it still has
  its bytes;
- ``size`` counts bytes before compression, ``taken`` the frames in them; ``frames`` are those that
  are on their way for good. A compressed file has taken frames that wait for their member to fill.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vsockdump.errors import VsockdumpError
from vsockdump.frames import Ints

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_MEMBER: Final = 1 << 20
"""Uncompressed bytes of a member of a compressed file: longer ones compress hardly better."""
_NOTHING: Final = np.zeros(0, np.int64)

Piece = bytes | memoryview


class WriteError(VsockdumpError):
    """A savefile that cannot be written on: names file, reason, and what of it is there.

    ``size`` bytes with ``frames`` packets are whole and readable; ``torn`` bytes of one more packet
    follow them where they could not be removed.
    """

    def __init__(self, file: str, reason: str, size: int, frames: int, torn: int = 0) -> None:
        if frames:
            there = f"the {frames} packets before ({size} bytes) are readable"
        elif size:
            there = f"{size} bytes without a packet were written"
        else:
            there = "nothing was written"
        rest = f"; {torn} bytes of an incomplete block follow" if torn else ""
        super().__init__(f"{file}: {reason}; {there}{rest}")
        self.file = file
        self.size = size
        self.frames = frames
        self.torn = torn


class PipeClosedError(VsockdumpError, BrokenPipeError):
    """Whoever read our pipe has gone, which ends a capture and is nobody's fault.

    It is a BrokenPipeError too, so one handler serves text and savefiles.
    """


class Output:
    """One savefile, open for writing. ``name`` is for messages."""

    def __init__(
        self, target: str | Path | int, *, inputs: Collection[tuple[int, int]] = ()
    ) -> None:
        """Open a path, ``-`` (standard output), or a descriptor (which stays open).

        ``inputs`` are (device, inode) of files that are being read: they are refused. Raises
        VsockdumpError.
        """
        if target == "-":
            target = 1
        self.name = "standard output" if target == 1 else str(target)
        self.size = 0
        self.frames = 0
        self._written = 0
        self._failure: VsockdumpError | None = None
        try:
            self._file = _open(target)
            self._fd = self._file.fileno()
            status = os.fstat(self._fd)
        except OSError as error:
            raise VsockdumpError(f"{self.name}: {error.strerror}") from error
        self._regular = stat.S_ISREG(status.st_mode)
        if self._regular and (status.st_dev, status.st_ino) in inputs:
            self._file.close()
            raise VsockdumpError(f"{self.name}: is being read, so it cannot be written")
        self._shared = isinstance(target, int)
        self._start = 0
        if self._regular and self._shared:
            # What a shell appends to has bytes before ours.
            appends = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND
            self._start = status.st_size if appends else os.lseek(self._fd, 0, os.SEEK_CUR)
        elif self._regular:
            os.ftruncate(self._fd, 0)

    def put(self, pieces: Sequence[Piece], ends: Ints = _NOTHING) -> None:
        """Write the pieces, in which each of ``ends`` (int64, bytes) is where a frame is whole.

        Raises PipeClosedError and WriteError; then, of what a regular file got, the last whole
        frame is the last thing in it.
        """
        try:
            self._send([memoryview(piece) for piece in pieces], ends)
        finally:
            self.size = self._written

    def flush(self) -> None:
        """Write what waits to be written; nothing does in a plain file."""

    def close(self) -> None:
        """Write what waits and close the file; may be called twice. Raises WriteError."""
        if self._file.closed:
            return
        try:
            self.flush()
        finally:
            try:
                self._file.close()
            except OSError as error:
                raise WriteError(
                    self.name, error.strerror or str(error), self._written, self.frames
                ) from error

    @property
    def taken(self) -> int:
        """Frames that were put here and not lost."""
        return self.frames

    @property
    def broken(self) -> bool:
        """Whether a write failed: nothing more can be written, ``put`` raises the same again."""
        return self._failure is not None

    def _send(self, queue: list[memoryview], ends: Ints) -> None:
        """Write everything; count it, or cut back what is not whole."""
        if self._failure is not None:
            raise self._failure
        sent = at = 0
        try:
            while at < len(queue):
                count = self._writev(queue[at : at + _IOV_MAX])
                sent += count
                while at < len(queue) and count >= len(queue[at]):
                    count -= len(queue[at])
                    at += 1
                if count:
                    queue[at] = queue[at][count:]
        except BrokenPipeError as error:
            self._failure = PipeClosedError(f"{self.name}: whoever read it has gone")
            raise self._failure from error
        except OSError as error:
            self._failure = self._give_up(error.strerror or str(error), sent, ends)
            raise self._failure from error
        except BaseException:
            # A signal's handler raised. What is whole can be written on, anything else cannot.
            failure = self._give_up("interrupted", sent, ends)
            self._failure = failure if failure.torn else None
            raise
        self._written += sent
        self.frames += ends.size

    def _give_up(self, reason: str, sent: int, ends: Ints) -> WriteError:
        """Count the whole frames of what was sent, and remove the rest where that can be done."""
        frames = int(np.searchsorted(ends, sent, "right"))
        kept = int(ends[frames - 1]) if frames else 0
        self.frames += frames
        self._written += kept
        torn = 0 if self._cut_back(sent - kept) else sent - kept
        return WriteError(self.name, reason, self._written, self.frames, torn)

    def _writev(self, pieces: list[memoryview]) -> int:
        while True:
            try:
                count = os.writev(self._fd, pieces)
            except BlockingIOError:
                # Somebody we share the pipe with made it non-blocking.
                select.select([], [self._fd], [])
                continue
            if not count and any(pieces):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return count

    def _cut_back(self, torn: int) -> bool:
        """Remove ``torn`` bytes behind what is whole; False if that cannot be done."""
        if not self._regular:
            return False
        end = self._start + self._written
        try:
            if self._shared and os.fstat(self._fd).st_size != end + torn:
                # Somebody else wrote behind us: what is there is not ours to remove.
                return False
            os.ftruncate(self._fd, end)
            os.lseek(self._fd, end, os.SEEK_SET)
        except OSError:
            return False
        return True


class CompressedOutput(Output):
    """A compressed savefile: members of about a MiB, each compressed by itself.

    Members are whole for themselves, so that a file is readable up to the last one whatever
    happens. What has not made a member yet is in memory: ``flush`` makes it one.
    """

    def __init__(
        self,
        target: str | Path | int,
        compress: Callable[[bytes], bytes],
        *,
        inputs: Collection[tuple[int, int]] = (),
    ) -> None:
        """Open as Output does; ``compress`` makes one member."""
        super().__init__(target, inputs=inputs)
        self._compress = compress
        self._waiting = bytearray()
        self._waiting_frames = 0

    @property
    def taken(self) -> int:
        """Frames that were put here and not lost."""
        return self.frames + self._waiting_frames

    def put(self, pieces: Sequence[Piece], ends: Ints = _NOTHING) -> None:
        """Take the pieces, and write a member when there is enough for one."""
        for piece in pieces:
            self._waiting += piece
            self.size += len(piece)
        self._waiting_frames += ends.size
        if len(self._waiting) >= _MEMBER:
            self.flush()

    def flush(self) -> None:
        """Write a member of what waits. Raises as ``put`` does."""
        if not self._waiting or self.broken:
            return
        member = memoryview(self._compress(bytes(self._waiting)))
        self._waiting.clear()
        # Every frame of the member is whole when its last byte is written, and not before.
        ends = np.full(self._waiting_frames, len(member), np.int64)
        self._waiting_frames = 0
        self._send([member], ends)


def _open(target: str | Path | int) -> io.FileIO:
    if isinstance(target, int):
        return io.FileIO(target, "w", closefd=False)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    return io.FileIO(os.open(target, flags, 0o666), "w")


def _gzip(data: bytes) -> bytes:
    from isal import igzip

    # Without a time of its own the same capture makes the same file.
    return bytes(igzip.compress(data, mtime=0))


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


_COMPRESSIONS: Final = {".gz": _gzip, ".zst": _zstd}


def compressor(name: str) -> Callable[[bytes], bytes] | None:
    """How a file of this name is compressed: ``.gz`` by gzip, ``.zst`` by zstandard, else not."""
    return _COMPRESSIONS.get(Path(name).suffix)
