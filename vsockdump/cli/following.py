"""What ``conns``, ``credit`` and ``check`` do alike: the walk, and who is selected.

All three follow every packet and filter afterwards, live too: a filter in the kernel would hide
packets that the account of credit needs. A filter then chooses connections: those that have at
least one packet that passes it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from vsockdump.cli.inputs import Inputs, opened
from vsockdump.cli.meter import Meter
from vsockdump.cli.options import MS
from vsockdump.cli.road import Interrupt, travel
from vsockdump.errors import VsockdumpError
from vsockdump.frames import Bools
from vsockdump.packets import PacketBatch
from vsockdump.tracking.columns import TrackedBatch
from vsockdump.tracking.tracker import Tracker

if TYPE_CHECKING:
    from vsockdump.filters import Filter

HEADERS_ONLY: Final = 128
"""Snapshot length of a live capture that needs no payload: both headers, and room for longer."""


class Follower:
    """One walk over a source with a tracker.

    ``tracker`` is finished when the walk is over; ``chosen`` tells which connections the filter
    selects.
    """

    def __init__(self, given: dict[str, Any], **tracker: Any) -> None:
        """``given`` are the options of ``options.shared``; ``tracker`` goes to Tracker."""
        words: Sequence[str] = given["words"]
        file = given["file"]
        if file is None and not given["interfaces"]:
            if not words:
                raise click.UsageError("name a FILE ('-': standard input), or a device with -i")
            file, *words = words
        self.inputs = Inputs(
            file=file,
            interfaces=given["interfaces"],
            expression=words,
            filter_file=given["filter_file"],
            snaplen=HEADERS_ONLY,
            buffer=given["buffer"],
            create=given["create"],
            in_kernel=False,
            large=True,
        )
        self._limit = given["count"]
        self.tracker = Tracker(
            stall_threshold_ns=given["threshold"] * MS,
            max_connections=given["max_connections"],
            **tracker,
        )
        self.packets = 0
        self._passed: set[int] = set()
        self._selects: Filter | None = None
        self.failure: VsockdumpError | None = None
        """What ended the input early; everything before it has been followed."""

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Interrupt]]:
        with opened(self.inputs) as (source, selects, _):
            self._selects = selects
            interrupt = Interrupt(source)
            with interrupt.watched():
                self.inputs.announce(source)
                yield source, interrupt

    def run(self, each: Callable[[int | None], None] | None = None) -> None:
        """Walk to the end; call ``each`` after every batch, with the time if it is a live one."""
        with self._opened() as (source, interrupt):
            meter = Meter(source, shown=each is None or not sys.stdout.isatty())
            try:
                for batch, tracked in travel(
                    source, interrupt, tracker=self.tracker, limit=self._limit
                ):
                    self.packets += len(batch)
                    self._choose(batch, tracked)
                    if each is not None:
                        each(time.time_ns() if self.inputs.live else None)
                    meter.show(self.packets)
            except VsockdumpError as error:
                self.failure = error
            finally:
                meter.clear()
            end_ns = time.time_ns() if self.inputs.live else None
            self.tracker.finish(end_ns, source.statistics())

    def _choose(self, batch: PacketBatch, tracked: TrackedBatch | None) -> None:
        if self._selects is None or tracked is None or not len(batch):
            return
        passed: Bools = self._selects.mask(batch, tracked)
        self._passed.update(np.unique(tracked.conn[passed]).tolist())

    def chosen(self, conn: int) -> bool:
        """Whether a connection is selected; without a filter all are."""
        return self._selects is None or conn in self._passed

    def mask(self, conn: np.ndarray[Any, np.dtype[np.int64]]) -> Bools:
        """Which of these connection numbers are selected."""
        if self._selects is None:
            return np.ones(conn.size, np.bool_)
        return np.isin(conn, np.fromiter(self._passed, np.int64, len(self._passed)))

    def complain(self) -> None:
        """Raise what ended the input early, once everything before it has been shown."""
        if self.failure is not None:
            raise self.failure
