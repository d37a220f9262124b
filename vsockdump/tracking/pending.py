"""Packets that wait to be read: how many, and how long each waited.

A data packet waits until an advertisement of its receiver covers its end offset; covered once, it
stays covered. Ends ascend within a direction, so what is covered is always a prefix, and counting
it is a search in a sorted array: waiting packets of all connections are one array, sorted by
connection and end.

Drain latencies are kept as counts in buckets, sixteen for each doubling, so that quantiles are
within 4 % and memory does not grow with traffic.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account, Life
from vsockdump.tracking.segments import argsort
from vsockdump.tracking.states import ENDED
from vsockdump.tracking.store import HEADROOM, Store

MOST_WAITING: Final = 1 << 19
"""Packets of all clients remembered as waiting, and as many of all servers; beyond it the oldest
are given up."""
_SAMPLES: Final = 1 << 18
"""Latencies collected before they are counted into buckets."""
_SUB_BITS: Final = 4
_BUCKETS: Final = 1 << 10
_AXIS_BITS: Final = 62
"""Offsets of all of a batch's connections share one ascending axis, in equal parts: 2^45 bytes
each, were they 100,000. Only lies move further within a batch, and stay at the end of their part.
"""


def bucket(latency_ns: Ints) -> Ints:
    """The bucket of each latency: exact below 16 ns, then 16 buckets for each doubling."""
    exponent = np.frexp(np.maximum(latency_ns, 1).astype(np.float64))[1] - 1
    shift = np.maximum(exponent - _SUB_BITS, 0)
    return np.where(
        latency_ns < 1 << _SUB_BITS,
        latency_ns,
        (shift + 1 << _SUB_BITS) + (latency_ns >> shift) - (1 << _SUB_BITS),
    )


def middle(buckets: Ints) -> Ints:
    """The latency in the middle of each bucket, in nanoseconds."""
    shift = np.maximum((buckets >> _SUB_BITS) - 1, 0)
    low = (buckets - (shift << _SUB_BITS)) << shift
    halfway: Ints = low + ((np.int64(1) << shift) >> 1)
    return halfway


class Quantiles(NamedTuple):
    """Latencies of many directions, shapes (k,): how many, and NULL where there is none."""

    samples: Ints
    least: Ints
    median: Ints
    p99: Ints
    most: Ints


class _Waiting(NamedTuple):
    """Packets of one direction of all connections that are not covered yet, columns (w,).

    Those of one connection are in order; connections are mixed.
    """

    slot: Ints
    end: Ints
    time_ns: Ints

    def take(self, rows: Ints | Bools) -> _Waiting:
        return _Waiting(self.slot[rows], self.end[rows], self.time_ns[rows])


_NOBODY: Final = _Waiting(*(np.zeros(0, np.int64) for _ in _Waiting._fields))


class Pending:
    """Waiting packets and drain latencies; a direction is ``2 * slot + sender``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.given_up = 0
        """Packets that were forgotten while they waited."""
        self._waiting = [_NOBODY, _NOBODY]
        self._run_of = np.zeros(0, np.int64)
        """The run of each slot while a batch is fed; NULL otherwise."""
        self._samples: list[tuple[Ints, Ints]] = []
        self._collected = 0
        self._counted = np.zeros(0, np.int64)
        """Direction and bucket in one number, ascending; and how often each came."""
        self._counts = np.zeros(0, np.int64)

    def feed(self, rows: Rows, life: Life, accounts: tuple[Account, Account]) -> tuple[Ints, Ints]:
        """Outstanding packets of both directions after each row; collects drain latencies."""
        ended = np.isin(life.before[rows.runs.begins], [*ENDED])
        size = self._store.conn["number"].size
        if self._run_of.size < size:
            self._run_of = np.full(size, NULL)
        self._run_of[rows.slots] = np.arange(rows.slots.size)
        first = self._feed(rows, ended, accounts[0], 0)
        second = self._feed(rows, ended, accounts[1], 1)
        self._run_of[rows.slots] = NULL
        for sender, waiting in enumerate(self._waiting):
            if waiting.end.size > MOST_WAITING:
                # Some more than needed, so that a flood does not come here with every batch.
                excess = waiting.end.size - MOST_WAITING + MOST_WAITING // HEADROOM
                self.given_up += excess
                oldest = np.argpartition(waiting.time_ns, excess)
                self._waiting[sender] = waiting.take(np.sort(oldest[excess:]))
        return first, second

    def _feed(self, rows: Rows, ended: Bools, account: Account, sender: int) -> Ints:
        runs, slots, side = rows.runs, rows.slots, self._store.side
        place, waiting = (slots, sender), self._waiting[sender]
        # What already waits on these connections comes first, in order.
        owner = self._run_of[waiting.slot]
        here = owner >= 0
        mine, owner = waiting.take(here), owner[here]
        data = account.data & (rows.length > 0) & (account.tx_cnt != NULL)
        sends = np.flatnonzero(data)
        origin = side["acked"][place]
        wait_run = np.concatenate([owner, runs.run[sends]])
        order = argsort(wait_run)
        wait_run = wait_run[order]
        ends = np.concatenate([mine.end, account.tx_cnt[sends]])[order]
        times = np.concatenate([mine.time_ns, rows.time_ns[sends]])[order]
        part = np.int64(1) << (_AXIS_BITS - slots.size.bit_length())
        axis = wait_run * part + np.minimum(ends - origin[wait_run], part - 1)
        counts = np.bincount(wait_run, minlength=slots.size)
        begins = np.cumsum(counts) - counts

        # How far each run is covered after each row, on the same axis; never back.
        floor = np.arange(slots.size) * part
        lift = floor[runs.run]
        covered = np.where(account.acked != NULL, account.acked - origin[runs.run], 0)
        covered = np.maximum.accumulate(lift + np.clip(covered, 0, part - 2))
        steps = np.flatnonzero(covered > runs.before(covered, floor))
        reached = covered[steps]
        done = np.zeros(rows.op.size, np.int64)
        done[steps] = np.searchsorted(axis, reached, "right") - begins[runs.run[steps]]
        done = np.maximum.accumulate(done + lift) - lift
        # Nothing waits on a connection that ended before; its figure stays what it was.
        old = np.bincount(owner, minlength=slots.size)
        old = np.where(ended, side["outstanding"][place], old)
        outstanding: Ints = old[runs.run] + runs.cumsum(data) - done
        outstanding[account.in_flight == NULL] = NULL

        # Each packet's wait ends with the first step that covers it.
        at = np.searchsorted(reached, axis, "left")
        over = at < steps.size
        if steps.size:
            row = steps[np.minimum(at, steps.size - 1)]
            over &= runs.run[row] == wait_run
            waited = np.maximum(rows.time_ns[row[over]] - times[over], 0)
            self._sample(2 * slots[wait_run[over]] + sender, waited)
        side["acked"][place] = origin + covered[runs.lasts] - floor
        side["outstanding"][place] = outstanding[runs.lasts]
        # Waiting on are the old ones of other connections, and what is not covered here. An ended
        # connection's are never covered any more.
        still = ~over & ~self._store.over(slots)[wait_run]
        fresh = _Waiting(slots[wait_run[still]], ends[still], times[still])
        kept = waiting.take(~here) if mine.end.size else waiting
        self._waiting[sender] = _Waiting(*map(np.concatenate, zip(kept, fresh, strict=True)))
        return outstanding

    def forget(self, slots: Ints) -> None:
        """Drop everything of these slots, which others will use."""
        if not slots.size:
            return
        self._count()
        gone = np.zeros(self._store.conn["number"].size, np.bool_)
        gone[slots] = True
        self._waiting = [waiting.take(~gone[waiting.slot]) for waiting in self._waiting]
        kept = ~gone[self._counted // _BUCKETS >> 1]
        self._counted, self._counts = self._counted[kept], self._counts[kept]

    # -- latencies --------------------------------------------------------------------------

    def _sample(self, direction: Ints, waited: Ints) -> None:
        side = self._store.side
        np.minimum.at(side["drain_min"].reshape(-1), direction, waited)
        np.maximum.at(side["drain_max"].reshape(-1), direction, waited)
        self._samples.append((direction, bucket(waited)))
        self._collected += waited.size
        if self._collected >= _SAMPLES:
            self._count()

    def _count(self) -> None:
        if not self._samples:
            return
        fresh = np.concatenate([d * _BUCKETS + b for d, b in self._samples])
        self._samples, self._collected = [], 0
        keys, counts = np.unique(fresh, return_counts=True)
        both = np.concatenate([self._counted, keys])
        self._counted, inverse = np.unique(both, return_inverse=True)
        weights = np.concatenate([self._counts, counts])
        self._counts = np.zeros(self._counted.size, np.int64)
        np.add.at(self._counts, inverse, weights)

    def quantiles(self, slots: Ints, sender: int) -> Quantiles:
        """Drain latencies of one direction of each of these connections, in nanoseconds."""
        self._count()
        side = self._store.side
        most = side["drain_max"][slots, sender]
        least = np.where(most == NULL, NULL, side["drain_min"][slots, sender])
        wanted = 2 * slots + sender
        begins = np.searchsorted(self._counted, wanted * _BUCKETS)
        ends = np.searchsorted(self._counted, (wanted + 1) * _BUCKETS)
        total = np.append(0, np.cumsum(self._counts))
        results: list[NDArray[np.int64]] = []
        for share in (0.5, 0.99):
            rank = np.ceil((total[ends] - total[begins]) * share).astype(np.int64)
            at = np.searchsorted(total, total[begins] + rank, "left") - 1
            at = np.clip(at, 0, max(self._counted.size - 1, 0))
            value = middle(self._counted[at] % _BUCKETS) if self._counted.size else 0 * wanted
            value = np.clip(value, least, most)
            results.append(np.where(most == NULL, NULL, value))
        return Quantiles(total[ends] - total[begins], least, results[0], results[1], most)
