"""A small chart of a direction's effective window over its life, in one line of a terminal.

Strategy: each direction keeps a bounded number of points; when it is full, neighbours are merged
by their lesser window and points are taken half as often, so a chart never misses a stall. A
chart is drawn in marks that the output can show: digits where it has no blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vsockdump.frames import Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account

MOST_CONNECTIONS: Final = 1024
"""Connections charted: the first ones; the others have figures alone."""
_POINTS: Final = 2048
_WIDTH: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a chart is drawn with: ``levels`` of the window from little to the largest, ``none``."""

    levels: str
    none: str

    @property
    def legend(self) -> str:
        """What the marks mean, in one line."""
        least, most = self.levels[0], self.levels[-1]
        return (
            f"window: {self.none} is 0, {least} little, {most} the largest; each mark is the least "
            f"in a {_WIDTH}th of the direction's time"
        )


BLOCKS: Final = Marks(levels="▁▂▃▄▅▆▇█", none="\N{MULTIPLICATION SIGN}")
ASCII: Final = Marks(levels="12345678", none="x")


def marks(encoding: str | None) -> Marks:
    """Those that an output of this encoding can show; None: it takes any text."""
    try:
        (BLOCKS.levels + BLOCKS.none).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


class _Points:
    """Times and windows of one direction."""

    def __init__(self) -> None:
        self.time_ns = np.zeros(0, np.int64)
        self.window = np.zeros(0, np.int64)

    def add(self, time_ns: Ints, window: Ints) -> None:
        self.time_ns = np.concatenate([self.time_ns, time_ns])
        self.window = np.concatenate([self.window, window])
        while self.time_ns.size > _POINTS:
            even = self.time_ns.size // 2 * 2
            pairs = self.window[:even].reshape(-1, 2).min(axis=1)
            self.window = np.concatenate([pairs, self.window[even:]])
            self.time_ns = np.concatenate([self.time_ns[:even:2], self.time_ns[even:]])


class Recorder:
    """Watches a tracker and remembers windows."""

    def __init__(self, marks: Marks = BLOCKS) -> None:
        self._marks = marks
        self._points: dict[tuple[int, int], _Points] = {}

    def feed(self, rows: Rows, accounts: tuple[Account, Account], numbers: Ints) -> None:
        """Take note of a batch; ``numbers`` (r,) are the connections of its runs."""
        lasts = rows.runs.lasts.tolist()
        for run, (number, begin) in enumerate(
            zip(numbers.tolist(), rows.runs.begins.tolist(), strict=True)
        ):
            if number > MOST_CONNECTIONS:
                continue
            part = slice(begin, lasts[run] + 1)
            for sender, account in enumerate(accounts):
                window = account.effective[part]
                known = window != NULL
                if known.any():
                    points = self._points.setdefault((number, sender), _Points())
                    points.add(rows.time_ns[part][known], window[known])

    def chart(self, conn: int, sender: int) -> str:
        """The chart of one direction, its width at most _WIDTH; "" if nothing is known of it."""
        points = self._points.get((conn, sender))
        if points is None or not int(points.window.max()):
            return ""
        begin, end = int(points.time_ns.min()), int(points.time_ns.max())
        span = max(end - begin, 1)
        place = (points.time_ns - begin) * _WIDTH // (span + 1)
        least = np.full(_WIDTH, np.iinfo(np.int64).max)
        np.minimum.at(least, place, points.window)
        # A window holds until the next packet; at a column's end the last one of it does.
        top = int(points.window.max())
        current, cells = int(points.window[0]), []
        final = np.full(_WIDTH, NULL)
        final[place] = points.window
        for column in range(_WIDTH):
            value = min(current, int(least[column]))
            current = int(final[column]) if final[column] != NULL else current
            level = value * (len(self._marks.levels) - 1) // top
            cells.append(self._marks.levels[level] if value else self._marks.none)
        return "".join(cells)
