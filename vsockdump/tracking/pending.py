"""Packets that wait to be read: how many, and how long each waited.

A data packet waits until an advertisement of its receiver covers its end offset; covered once, it
stays covered. Both directions of all connections are fed at once: a direction of one of a batch's
connections is a lane, and lanes share one ascending axis, so that one search in what was read finds
for each packet the advertisement that covers it.

What still waits lies in a pool, each way's packets side by side and in order; a way is
``2 * slot + sender``. Where packets of a way come or go, those left are written anew at the pool's
end, and when it is full it is rid of what is no longer used.

Drain latencies are kept as counts in buckets, sixteen for each doubling, so that quantiles are
within 4 % and memory does not grow with traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account
from vsockdump.tracking.segments import argsort
from vsockdump.tracking.store import HEADROOM, Store

MOST_WAITING: Final = 1 << 19
"""Packets of all clients remembered as waiting, and as many of all servers; beyond it the oldest
are given up."""
_SAMPLES: Final = 1 << 18
"""Latencies collected, at least, before they are counted into buckets."""
_SUB_BITS: Final = 4
_BUCKET_BITS: Final = 10
_BUCKETS: Final = 1 << _BUCKET_BITS
_FIRST_EXPONENT: Final = 1023 + _SUB_BITS
"""Of the first doubling with buckets, as a double has it."""
_AXIS_BITS: Final = 62
"""Offsets of all of a batch's lanes share one ascending axis, in equal parts: 2^44 bytes each,
were they 200,000. Only lies reach further back, and stay at the beginning of their part.
"""
_SPACIOUS: Final = 4
"""Counters that may be had for each number that is counted."""
_FIRST_SIZE: Final = 4096
_ENDED: Final = -1

Outstanding = Callable[[], tuple[Ints, Ints]]
"""Outstanding packets of both directions after each row, (n,); made when first asked for."""


def bucket(latency_ns: Ints) -> Ints:
    """The bucket of each latency: exact below 16 ns, then 16 buckets for each doubling."""
    # A double's exponent and first bits number the buckets. Without the seventh bit after its
    # first, no number is rounded up into the next bucket.
    double = (latency_ns & ~(latency_ns >> 6)).astype(np.float64)
    buckets = (double.view(np.int64) >> 52 - _SUB_BITS) - (_FIRST_EXPONENT - 1 << _SUB_BITS)
    exact: Ints = np.maximum(buckets, np.minimum(latency_ns, (1 << _SUB_BITS) - 1))
    return exact


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


def _tally(keys: Ints, weights: Ints) -> tuple[Ints, Ints]:
    """The distinct keys (way and bucket in one number), ascending, and the sum of each's weights.

    ``keys`` are not empty. Where few ways and buckets are possible each gets a counter of its own,
    which is much cheaper than to sort.
    """
    way, place = keys >> _BUCKET_BITS, keys & _BUCKETS - 1
    first, lowest = int(way.min()), int(place.min())
    width = int(place.max()) - lowest + 1
    if (int(way.max()) - first + 1) * width <= _SPACIOUS * keys.size:
        sums = np.bincount((way - first) * width + (place - lowest), weights)
        filled = np.flatnonzero(sums)
        way, place = np.divmod(filled, width)
        return way + first << _BUCKET_BITS | place + lowest, sums[filled].astype(np.int64)
    order = argsort(keys)
    keys = keys[order]
    begins = np.append(0, np.flatnonzero(keys[1:] != keys[:-1]) + 1)
    return keys[begins], np.add.reduceat(weights[order], begins)


def _blocks(begins: Ints, counts: Ints) -> Ints:
    """The indices of all of these blocks, one block after the other."""
    skipped = begins - (np.cumsum(counts) - counts)
    indices: Ints = np.repeat(skipped, counts)
    indices += np.arange(indices.size)
    return indices


class Pending:
    """Waiting packets and drain latencies."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.given_up = 0
        """Packets that were forgotten while they waited."""
        self._begin = np.zeros(0, np.int64)
        """Where in the pool each way's packets begin; _ENDED if they are not there any more."""
        self._count = np.zeros(0, np.int64)
        """How many of each way wait, or waited when its connection ended."""
        self._end = np.zeros(_FIRST_SIZE, np.int64)
        """The pool: end offsets of packets, and when they were sent."""
        self._time_ns = np.zeros(_FIRST_SIZE, np.int64)
        self._used = 0
        """How much of the pool was written."""
        self._waiting = [0, 0]
        """How many packets of clients and of servers the pool has."""
        self._samples: list[Ints] = []
        self._collected = 0
        self._counted = np.zeros(0, np.int64)
        """Way and bucket in one number, ascending; and how often each came."""
        self._counts = np.zeros(0, np.int64)

    def feed(self, rows: Rows, accounts: tuple[Account, Account]) -> Outstanding:
        """Follow what is sent and read; collects drain latencies."""
        run, lasts, runs, lanes = rows.runs.run, rows.runs.lasts, len(rows.runs), 2 * len(rows.runs)
        self._reach(2 * self._store.size)
        ways = np.concatenate([2 * rows.slots, 2 * rows.slots + 1])
        begins, waited = self._begin[ways], self._count[ways]
        stock = np.where(begins == _ENDED, 0, waited)
        old = _blocks(begins, stock)

        payload = rows.length > 0
        sends = [np.flatnonzero(a.data & payload & (a.tx_cnt != NULL)) for a in accounts]
        reads = [np.flatnonzero(a.advert & (a.in_flight != NULL)) for a in accounts]
        sent, read = np.concatenate(sends), np.concatenate(reads)
        lane = np.concatenate([np.repeat(np.arange(lanes), stock), run[sent]])
        lane[old.size + sends[0].size :] += runs
        ends = [a.tx_cnt[at] for a, at in zip(accounts, sends, strict=True)]
        end = np.concatenate([self._end[old], *ends])
        time_ns = np.concatenate([self._time_ns[old], rows.time_ns[sent]])
        reader = run[read]
        reader[reads[0].size :] += runs
        covers = [(a.tx_cnt - a.in_flight)[at] for a, at in zip(accounts, reads, strict=True)]
        covered = np.concatenate(covers)

        # A lane's part of the axis ends with what was sent last.
        part = np.int64(1) << (_AXIS_BITS - lanes.bit_length())
        shift = np.arange(1, lanes + 1) * part - 1
        shift -= np.concatenate([a.tx_cnt[lasts] for a in accounts])
        axis = end + shift[lane]
        np.maximum(axis, lane * part + 1, out=axis)
        covered += shift[reader]
        np.maximum(covered, reader * part, out=covered)
        if (covered[1:] < covered[:-1]).any():
            # Taken back, but what is covered stays covered.
            np.maximum.accumulate(covered, out=covered)
        at = np.searchsorted(covered, axis)
        over = np.append(reader, lanes)[at] == lane
        done, left = np.flatnonzero(over), np.flatnonzero(~over)
        by = read[at[done]]
        drained = lane[done]
        if done.size:
            self._sample(ways[drained], np.maximum(rows.time_ns[by] - time_ns[done], 0))
        self._keep(ways, stock, lane[left], end[left], time_ns[left])

        @cache
        def outstanding() -> tuple[Ints, Ints]:
            figures = []
            for sender, account in enumerate(accounts):
                mine = by[drained >= runs if sender else drained < runs]
                change = np.bincount(sends[sender], minlength=run.size)
                change -= np.bincount(mine, minlength=run.size)
                figure = waited[sender * runs :][run] + rows.runs.cumsum(change)
                figure[account.in_flight == NULL] = NULL
                figures.append(figure)
            return figures[0], figures[1]

        return outstanding

    def outstanding(self, slots: Ints, sender: int) -> Ints:
        """Packets of one direction of each of these connections that wait to be read."""
        self._reach(2 * self._store.size)
        return self._count[2 * slots + sender]

    # -- the pool -----------------------------------------------------------------------------

    def _reach(self, ways: int) -> None:
        """Have room for so many ways."""
        more = ways - self._count.size
        if more > 0:
            self._begin = np.append(self._begin, np.zeros(more, np.int64))
            self._count = np.append(self._count, np.zeros(more, np.int64))

    def _keep(self, ways: Ints, stock: Ints, lane: Ints, end: Ints, time_ns: Ints) -> None:
        """Remember what is left of the lanes' packets, which are in order within each lane.

        ``stock`` (lanes,) is how many of each were there before.
        """
        order = argsort(lane)
        kept = np.bincount(lane, minlength=ways.size)
        self._count[ways] = np.where(self._begin[ways] == _ENDED, self._count[ways], kept)
        # An ended connection's are never covered any more.
        over = np.tile(self._store.over(ways[: ways.size // 2] >> 1), 2)
        if over.any():
            order = order[~over[lane[order]]]
            kept[over] = 0
        self._begin[ways] = _ENDED
        self._make_room(order.size)
        self._begin[ways] = np.where(over, _ENDED, self._used + np.cumsum(kept) - kept)
        fresh = slice(self._used, self._used + order.size)
        self._end[fresh], self._time_ns[fresh] = end[order], time_ns[order]
        self._used += order.size
        for sender, change in enumerate((kept - stock).reshape(2, -1).sum(1).tolist()):
            self._waiting[sender] += change
            if self._waiting[sender] > MOST_WAITING:
                self._give_up(sender)

    def _here(self) -> Ints:
        """The ways with packets in the pool."""
        return np.flatnonzero((self._begin != _ENDED) & (self._count > 0))

    def _make_room(self, more: int) -> None:
        """Make room for ``more`` packets at the pool's end."""
        if self._used + more <= self._end.size:
            return
        ways = self._here()
        self._rewrite(ways, _blocks(self._begin[ways], self._count[ways]), more)

    def _rewrite(self, ways: Ints, places: Ints, more: int = 0) -> None:
        """Keep only these places, of these ways and in their order, and room for ``more``."""
        size = self._end.size
        while 2 * (places.size + more) > size:
            size *= 2
        end, time_ns = self._end[places], self._time_ns[places]
        if size > self._end.size:
            self._end, self._time_ns = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._used = places.size
        self._end[: self._used], self._time_ns[: self._used] = end, time_ns
        counts = self._count[ways]
        self._begin[ways] = np.cumsum(counts) - counts

    def _give_up(self, sender: int) -> None:
        """Forget the oldest packets of clients, or servers."""
        ways = self._here()
        counts = self._count[ways]
        places = _blocks(self._begin[ways], counts)
        owner = np.repeat(ways, counts)
        mine = np.flatnonzero(owner & 1 == sender)
        # Some more than needed, so that a flood does not come here with every batch.
        excess = mine.size - MOST_WAITING + MOST_WAITING // HEADROOM
        gone = mine[np.argpartition(self._time_ns[places[mine]], excess)[:excess]]
        np.subtract.at(self._count, owner[gone], 1)
        self.given_up += excess
        self._waiting[sender] -= excess
        self._rewrite(ways, np.delete(places, gone))

    def forget(self, slots: Ints) -> None:
        """Drop everything of these slots, which others will use."""
        if not slots.size:
            return
        self._fold()
        self._reach(2 * self._store.size)
        gone = np.zeros(self._store.size, np.bool_)
        gone[slots] = True
        ways = np.concatenate([2 * slots, 2 * slots + 1])
        counts = np.where(self._begin[ways] == _ENDED, 0, self._count[ways])
        for sender, lost in enumerate(counts.reshape(2, -1).sum(1).tolist()):
            self._waiting[sender] -= lost
        self._begin[ways] = self._count[ways] = 0
        kept = ~gone[self._counted >> _BUCKET_BITS + 1]
        self._counted, self._counts = self._counted[kept], self._counts[kept]

    # -- latencies --------------------------------------------------------------------------

    def _sample(self, way: Ints, waited: Ints) -> None:
        side = self._store.side
        np.minimum.at(side["drain_min"].reshape(-1), way, waited)
        np.maximum.at(side["drain_max"].reshape(-1), way, waited)
        self._samples.append(way << _BUCKET_BITS | bucket(waited))
        self._collected += waited.size
        # As many as are counted already, or merging with those would cost too much.
        if self._collected >= max(_SAMPLES, self._counted.size):
            self._fold()

    def _fold(self) -> None:
        """Count what was collected."""
        if not self._collected:
            return
        keys = np.concatenate([self._counted, *self._samples])
        weights = np.concatenate([self._counts, np.ones(self._collected, np.int64)])
        self._samples, self._collected = [], 0
        self._counted, self._counts = _tally(keys, weights)

    def quantiles(self, slots: Ints, sender: int) -> Quantiles:
        """Drain latencies of one direction of each of these connections, in nanoseconds."""
        self._fold()
        side = self._store.side
        most = side["drain_max"][slots, sender]
        least = np.where(most == NULL, NULL, side["drain_min"][slots, sender])
        wanted = 2 * slots + sender
        begins = np.searchsorted(self._counted, wanted << _BUCKET_BITS)
        ends = np.searchsorted(self._counted, wanted + 1 << _BUCKET_BITS)
        total = np.append(0, np.cumsum(self._counts))
        results: list[NDArray[np.int64]] = []
        for share in (0.5, 0.99):
            rank = np.ceil((total[ends] - total[begins]) * share).astype(np.int64)
            at = np.searchsorted(total, total[begins] + rank, "left") - 1
            at = np.clip(at, 0, max(self._counted.size - 1, 0))
            value = middle(self._counted[at] & _BUCKETS - 1) if self._counted.size else 0 * wanted
            value = np.clip(value, least, most)
            results.append(np.where(most == NULL, NULL, value))
        return Quantiles(total[ends] - total[begins], least, results[0], results[1], most)
