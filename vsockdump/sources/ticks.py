"""Turn the time stamps of a pcapng interface into nanoseconds.

Strategy: what nearly every file has, decimal ticks no finer than a nanosecond and no offset, is one
multiplication of a column. Anything else is rare, and worth plain integers that cannot overflow.

Source: if_tsresol and if_tsoffset in draft-ietf-opsawg-pcapng, section 4.2.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Ints

_SECOND: Final = 10**9
_MOST: Final = int(np.iinfo(np.int64).max)
_LEAST: Final = int(np.iinfo(np.int64).min)


class Clock(NamedTuple):
    """How an interface counts time: ticks a second (a power of 10 or 2), and seconds to add."""

    binary: bool = False
    exponent: int = 6
    offset: int = 0

    @property
    def nanoseconds(self) -> bool:
        """Whether a tick is shorter than a microsecond."""
        return self._per_second > 10**6

    @property
    def _per_second(self) -> int:
        return int((2 if self.binary else 10) ** self.exponent)

    def time_ns(self, ticks: int) -> int:
        """Ticks since the epoch to nanoseconds, rounded down; what int64 cannot hold is clipped."""
        exact = ticks * _SECOND // self._per_second + self.offset * _SECOND
        return max(_LEAST, min(_MOST, exact))

    def times_ns(self, ticks: NDArray[np.uint64]) -> Ints:
        """The same for a column, shape (n,)."""
        if self.binary or self.exponent > 9 or self.offset:
            return np.array([self.time_ns(tick) for tick in ticks.tolist()], np.int64)
        factor = _SECOND // self._per_second
        limit = _MOST // factor
        times = (np.minimum(ticks, limit) * np.uint64(factor)).astype(np.int64)
        times[ticks > limit] = _MOST
        return times
