"""The road from a source to whoever asks: read, decode, track, filter, count.

Every command walks it; they differ in what they do with the batches. Where packets are only counted
or written it is a short one. Interrupts end it between batches, so that a sink always gets whole
ones and can finish its file.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

from vsockdump.frames import FrameBatch
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources import Source
from vsockdump.tracking.columns import TrackedBatch

if TYPE_CHECKING:
    from vsockdump.filters import Filter


_PATIENCE: Final = 1.0
"""Seconds after which a second signal means it; before that it may be one that came twice."""


class Tracks(Protocol):
    """A tracker: takes every batch in order."""

    def feed(self, batch: PacketBatch) -> TrackedBatch:
        """The tracked columns of a batch."""
        ...

    @property
    def remembered(self) -> int:
        """Connections that are remembered now."""
        ...


class _Interrupted(Exception):
    """A signal came while waiting for input."""


class Interrupt:
    """SIGINT, SIGTERM and SIGHUP as a wish to end, granted where nothing is half done."""

    def __init__(self, source: Source) -> None:
        self._stop = getattr(source, "stop", None)
        self._waiting = False
        self._since = 0.0
        self.wanted = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.wanted and now - self._since > _PATIENCE:
            # The wish is not being granted: something waits for good, perhaps whoever reads us.
            raise KeyboardInterrupt
        if not self.wanted:
            self.wanted, self._since = True, now
        if self._stop is not None:
            self._stop()
        elif self._waiting:
            raise _Interrupted

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle signals for as long as the block runs; a second one, a while later, ends it."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Under nohup it is ignored, and stays so.
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def batches(self, source: Source) -> Iterator[FrameBatch]:
        """The source's batches, until it ends or a signal came."""
        iterator = source.batches()
        try:
            while not (self.wanted and self._stop is None):
                self._waiting = True
                try:
                    batch = next(iterator, None)
                finally:
                    self._waiting = False
                if batch is None:
                    return
                yield batch
        except _Interrupted:
            # Wherever it was raised, around the call too: what was read before has been passed on.
            return


def travel(
    source: Source,
    interrupt: Interrupt,
    *,
    tracker: Tracks | None = None,
    selects: Filter | None = None,
    limit: int | None = None,
) -> Iterator[tuple[PacketBatch, TrackedBatch | None]]:
    """Decoded batches that pass ``selects``, at most ``limit`` packets of them in all.

    Tracking sees every packet; selecting comes after it, so figures stay right whatever is shown.
    A live source's empty batches are passed on. A file is read in the larger pieces the more
    connections there are, for a batch costs what it has of them, however few packets each has.
    """
    enlarge = getattr(source, "enlarge", None)
    for frames in interrupt.batches(source):
        batch = decode(frames)
        tracked = None
        if tracker is not None:
            tracked = tracker.feed(batch)
            if enlarge is not None:
                enlarge(tracker.remembered)
        if selects is not None and len(batch):
            mask = selects.mask(batch, tracked)
            batch = batch.take(mask)
            tracked = tracked.take(mask) if tracked is not None else None
        if limit is not None:
            batch = batch.take(slice(limit))
            tracked = tracked.take(slice(limit)) if tracked is not None else None
            limit -= len(batch)
        yield batch, tracked
        if limit == 0:
            return


def forward(
    source: Source, interrupt: Interrupt, *, limit: int | None = None
) -> Iterator[FrameBatch]:
    """Batches as they come, at most ``limit`` packets in all, for whoever looks into none."""
    for frames in interrupt.batches(source):
        part = frames if limit is None else frames.take(slice(limit))
        yield part
        if limit is not None:
            limit -= len(part)
            if limit == 0:
                return
