"""Which file a frame goes into: tcpdump's -C, -G and -W, by packet time and without a clock.

Pure arithmetic. Time is cut into windows of ``seconds`` that count from the first frame (or the
first tick), its time rounded down to a second; a frame goes into the window of its own time, so
the same input makes the same files, however it came in batches. No file is gone back to: a frame
older than the window of the file that is open goes into that file.

Names are tcpdump's: with -G the name is a format for strftime, filled with the local time at which
the window starts; with -C a number follows from the second file on (with -W from the first, with
leading zeros). A window without a frame makes no file.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from vsockdump.errors import VsockdumpError
from vsockdump.frames import Ints

_SECOND: Final = 10**9
_UNITS: Final = {"": 10**6, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes that a -C argument asks for: millions, or with k, m or g KiB, MiB or GiB.

    Raises VsockdumpError.
    """
    match = re.fullmatch(r"([0-9]+)([kmg]?)", text, re.IGNORECASE | re.ASCII)
    if match is None or not int(match[1]):
        raise VsockdumpError(
            f"not a file size: {text!r}; needed a number of millions of bytes, or one with k, m, g"
        )
    return int(match[1]) * _UNITS[match[2].lower()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When to take another file: ``size`` in bytes (-C), ``seconds`` (-G), ``count`` files (-W).

    None where nobody asked. Raises VsockdumpError on a number below 1.
    """

    size: int | None = None
    seconds: int | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        for name, option in (("size", "-C"), ("seconds", "-G"), ("count", "-W")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise VsockdumpError(f"{option} needs a number above 0, had {value}")

    @property
    def rotates(self) -> bool:
        """Whether there is ever another file: a count alone asks for none."""
        return self.size is not None or self.seconds is not None


class Rotator:
    """The files of one capture, one after the other.

    ``name`` is that of the file now due; ``finished`` tells that -W with -G had its files.
    """

    def __init__(self, name: str, rotation: Rotation) -> None:
        self.finished = False
        self._format = name
        self._size = rotation.size
        self._count = rotation.count
        self._seconds = rotation.seconds
        self._period = (rotation.seconds or 0) * _SECOND
        self._digits = len(str(rotation.count - 1)) if rotation.count and rotation.count > 1 else 0
        self._window: int | None = None
        """Where the window starts, in nanoseconds."""
        self._next: int | None = None
        """Where the next one starts, once the window was left."""
        self._windows = 0
        self._number = 0

    @property
    def by_time(self) -> bool:
        """Whether a name needs a time, so that there is no file before the first frame."""
        return bool(self._period)

    @property
    def started(self) -> bool:
        """Whether the first window was entered."""
        return self._window is not None

    @property
    def name(self) -> str:
        """The file to write; valid once ``enter`` was called."""
        name = self._format
        if self._window is not None and self._period:
            name = _filled(name, self._window // _SECOND)
        if self._size is not None and (self._number or self._digits):
            name += f"{self._number:0{self._digits}d}"
        return name

    def enter(self, time_ns: int) -> None:
        """Start the window that this time is in: its first file is due."""
        if self._period and self._next is not None:
            skipped = max(time_ns - self._next, 0) // self._period
            self._window = self._next + skipped * self._period
        else:
            self._window = time_ns // _SECOND * _SECOND
        self._number = 0

    def over(self, time_ns: int) -> bool:
        """Whether this time is behind the window."""
        return (
            bool(self._period)
            and self._window is not None
            and (time_ns >= self._window + self._period)
        )

    def leave(self) -> None:
        """The window is over, its last file complete."""
        assert self._window is not None
        self._next = self._window + self._period
        self._windows += 1
        self.finished = self._size is None and self._windows == self._count

    def full(self, size: int) -> bool:
        """Whether a file of this size takes no further frame."""
        return self._size is not None and size > self._size

    def another(self) -> None:
        """The file is full: the next number is due, after the last one the first again."""
        self._number += 1
        if self._number == self._count:
            self._number = 0

    def stop(self, time_ns: Ints, ends: Ints, row: int, size: int) -> int:
        """The first row behind ``row`` that goes into another file; the row itself fits.

        ``time_ns`` and ``ends`` int64 (n,): times, and where blocks end counted from the batch's
        start. ``size``: of the file, without the row.
        """
        stop = time_ns.size
        if self._size is not None:
            before = int(ends[row - 1]) if row else 0
            # A file may grow past its size by one block: the one that is checked for is the next.
            stop = min(stop, int(np.searchsorted(ends, self._size - size + before, "right")) + 1)
        if self._period:
            assert self._window is not None
            later = time_ns[row + 1 : stop] >= self._window + self._period
            if later.any():
                stop = row + 1 + int(np.argmax(later))
        return max(stop, row + 1)


def _filled(name: str, seconds: int) -> str:
    try:
        return time.strftime(name, time.localtime(seconds))
    except (OverflowError, ValueError, OSError) as error:
        raise VsockdumpError(f"{name}: cannot be filled with a time: {error}") from error
