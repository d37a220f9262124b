"""What the savefile encoders have in common: the protocol they follow, and the values they pass.

An encoder makes bytes and does no I/O. One encoder serves all files of a rotation, one after the
other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from vsockdump.frames import Bools, FrameBatch, Interface, InterfaceStatistics, Ints


class Misfit(NamedTuple):
    """The first row of a batch that the format cannot hold, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The blocks of a batch before they are made: ``size`` int64 (n,) in bytes.

    ``options`` has the encoded options of the rows in ``rows`` (ascending).
    """

    size: Ints
    rows: Sequence[int] = ()
    options: Sequence[bytes] = ()

    def take(self, begin: int, end: int) -> Blocks:
        """The blocks of rows ``begin`` to ``end``."""
        first, last = bisect_left(self.rows, begin), bisect_left(self.rows, end)
        return Blocks(
            size=self.size[begin:end],
            rows=[row - begin for row in self.rows[first:last]],
            options=self.options[first:last],
        )


class Encoder(Protocol):
    """A savefile format, without I/O."""

    def begin(self, interfaces: Sequence[Interface]) -> bytes:
        """What a new file starts with, as far as it can be told before there are frames."""
        ...

    def ahead(self, frames: FrameBatch) -> bytes:
        """What the file needs before these frames, of which there may be none."""
        ...

    def misfit(self, frames: FrameBatch) -> Misfit | None:
        """The first frame that the format cannot hold; ask after ``ahead``."""
        ...

    def blocks(self, frames: FrameBatch) -> Blocks:
        """How long each frame's block will be."""
        ...

    def encode(self, frames: FrameBatch, blocks: Blocks) -> list[memoryview]:
        """The blocks of these frames in order, valid until the next call."""
        ...

    def end(
        self, interfaces: Sequence[Interface], statistics: Mapping[int, InterfaceStatistics]
    ) -> bytes:
        """What a file ends with."""
        ...


def first_misfit(wrong: Bools, reason: str) -> list[Misfit]:
    """The first of the rows that are wrong, if any is."""
    return [Misfit(int(np.argmax(wrong)), reason)] if wrong.any() else []


def before_epoch(frames: FrameBatch) -> list[Misfit]:
    """The first frame from before 1970: neither format has negative times."""
    return first_misfit(frames.time_ns < 0, "its time is before 1970")
