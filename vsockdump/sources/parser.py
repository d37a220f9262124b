"""What the savefile parsers have in common: their outcome, and the protocol they follow."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from vsockdump.frames import Bytes, FrameBatch, InterfaceStatistics
from vsockdump.sources.chain import Damage


class Parsed(NamedTuple):
    """The outcome of one call: frames (None if there were none), and where to go on.

    ``damage`` ends the file; the frames before it are in ``batch``. ``skip`` is the length of a
    block at ``consumed`` that nobody needs and that goes on past the buffer; 0 if there is none.
    """

    batch: FrameBatch | None
    consumed: int
    damage: Damage | None
    skip: int = 0


class Parser(Protocol):
    """A savefile format, without I/O."""

    statistics: dict[int, InterfaceStatistics]

    def parse(self, buf: Bytes, begin: int, end: int, *, last: bool) -> Parsed:
        """Every whole record of ``buf[begin:end]``; ``last``: no more bytes will come.

        The buffer has SLACK bytes behind ``end``.
        """
        ...


def cut_short(at: int, what: str, needed: int, had: int) -> Damage:
    """The file ends within a record or block."""
    return Damage(at, f"cut short: the {what} needs {needed} bytes, had {had}")
