"""A line on the terminal that says how far long work has come; nothing where there is none."""

from __future__ import annotations

import sys
import time
from typing import Final

from vsockdump.sources import Source

_EVERY: Final = 0.5
_CLEAR: Final = "\r\x1b[K"


class Meter:
    """Shows a count, and a share of the file where its size is known, twice a second."""

    def __init__(self, source: Source, *, shown: bool = True) -> None:
        """``shown`` False keeps it silent, as does standard error not being a terminal."""
        self._source = source
        self._shown = shown and sys.stderr.isatty()
        self._next = time.monotonic() + _EVERY
        self._dirty = False

    def show(self, packets: int) -> None:
        """Tell of ``packets`` so far, if it is time to."""
        if not self._shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        size, consumed = (getattr(self._source, name, None) for name in ("size", "consumed"))
        share = f", {100 * consumed // size} % read" if size and consumed else ""
        sys.stderr.write(f"{_CLEAR}{packets} packets{share}")
        sys.stderr.flush()
        self._dirty = True

    def clear(self) -> None:
        """Take the line away."""
        if self._dirty:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._dirty = False
