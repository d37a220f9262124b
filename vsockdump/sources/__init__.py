"""Where frames come from: savefiles, pipes and live devices, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics


class Source(Protocol):
    """What the road starts with.

    ``batches()`` yields FrameBatches in order, each valid until the next one is asked for; a live
    source also yields empty ones now and then while nothing arrives, so that a consumer can flush,
    rotate or show progress. It raises a VsockdumpError after the last whole packet when the input
    cannot be read on. ``interfaces`` may grow while reading. ``statistics()`` tells, by index into
    ``interfaces``, the counters known so far; call it before ``close()``.
    """

    name: str

    @property
    def interfaces(self) -> Sequence[Interface]:
        """What frames came from; grows while reading."""
        ...

    def batches(self) -> Iterator[FrameBatch]:
        """Yield everything there is, in batches."""
        ...

    def statistics(self) -> Mapping[int, InterfaceStatistics]:
        """Counters by interface index."""
        ...

    def close(self) -> None:
        """Give back files, sockets and maps; may be called twice."""
        ...
