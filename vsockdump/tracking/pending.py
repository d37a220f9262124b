"""Packets that wait to be read: how many, and how long each waited.

A data packet waits until an advertisement of its receiver covers its end offset; covered once, it
stays covered. Both directions of all connections are fed at once: a direction of one of a batch's
connections is a lane, and lanes share one ascending axis, where what was sent is merged with what
was read: that finds for each packet the advertisement that covers it.

What still waits lies in a pool, each way's packets side by side and in order; a way is
``2 * slot + sender``. Where packets of a way come or go, those left are written anew at the pool's
end, and when it is full it is rid of what is no longer used.

Drain latencies are kept as counts in buckets, sixteen for each doubling, so that quantiles are
within 4 % and memory does not grow with traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account
from vsockdump.tracking.segments import places
from vsockdump.tracking.store import HEADROOM, Store

MOST_WAITING: Final = 1 << 19
"""Packets of all clients remembered as waiting, and as many of all servers; beyond it the oldest
are given up."""
_SAMPLES: Final = 1 << 19
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
_NARROW: Final = 32
"""Bits of the numbers for a way and a bucket, as long as they are enough."""
_FIRST_SIZE: Final = 4096
_ENDED: Final = -1

Keys = NDArray[Any]
"""Ways and buckets in one number, of 32 bits or 64."""
Outstanding = Callable[[], tuple[Ints, Ints]]
"""Makes the outstanding packets of both directions after each row, (n,)."""


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


def _tally(counted: Keys, counts: Ints, samples: Keys) -> tuple[Keys, Ints]:
    """Count ``samples`` beside what is counted: all distinct keys, ascending, and their counts.

    Where few ways and buckets are possible each gets a counter of its own, which is much cheaper
    than to sort.
    """
    both = [keys for keys in (counted, samples) if keys.size]
    first = min(int(keys.min()) for keys in both) >> _BUCKET_BITS
    last = max(int(keys.max()) for keys in both) >> _BUCKET_BITS
    buckets = [keys & _BUCKETS - 1 for keys in both]
    lowest = min(int(some.min()) for some in buckets)
    bits = (max(int(some.max()) for some in buckets) - lowest).bit_length()
    del buckets
    if last - first + 1 << bits > _SPACIOUS * sum(keys.size for keys in both):
        samples.sort()
        fresh, number = _summed(samples)
        if not counted.size:
            return fresh, number
        keys = np.concatenate([counted, fresh])
        # Both ascend, and a stable sort merges them.
        order = np.argsort(keys, kind="stable")
        return _summed(keys[order], np.concatenate([counts, number])[order])

    def place(keys: Keys) -> Keys:
        at = keys >> _BUCKET_BITS
        at -= first
        at <<= bits
        at += keys & _BUCKETS - 1
        at -= lowest
        return at

    sums = np.bincount(place(samples), minlength=last - first + 1 << bits)
    sums[place(counted)] += counts
    filled = np.flatnonzero(sums != 0)
    keys = filled >> bits
    keys += first
    keys <<= _BUCKET_BITS
    keys += filled & (1 << bits) - 1
    keys += lowest
    return keys.astype(samples.dtype), sums[filled]


def _summed(keys: Keys, weights: Ints | None = None) -> tuple[Keys, Ints]:
    """Distinct keys of ascending ones, and how often each is there, or the sum of its weights."""
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    if weights is None:
        return keys[begins], np.diff(begins, append=keys.size)
    return keys[begins], np.add.reduceat(weights, begins)


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
        self._samples: list[Keys] = []
        self._collected = 0
        self._counted: Keys = np.zeros(0, np.uint32)
        """Ascending; and how often each came."""
        self._counts = np.zeros(0, np.int64)
        self._narrow = True
        """Whether _NARROW bits hold a way and a bucket."""

    def feed(self, rows: Rows, accounts: tuple[Account, Account]) -> Outstanding:
        """Follow what is sent and read; collects drain latencies."""
        run, runs, lanes = rows.runs.run, len(rows.runs), 2 * len(rows.runs)
        self._reach(2 * self._store.size)
        ways = np.concatenate([2 * rows.slots, 2 * rows.slots + 1])
        begins, waited = self._begin.take(ways), self._count.take(ways)
        ended = begins == _ENDED
        stock = np.where(ended, 0, waited)
        old = _blocks(begins, stock)

        payload = rows.length > 0
        sends = [np.flatnonzero(a.data & payload & (a.tx_cnt != NULL)) for a in accounts]
        reads = [np.flatnonzero(a.advert & (a.in_flight != NULL)) for a in accounts]
        sent, read = np.concatenate(sends), np.concatenate(reads)
        lane = np.concatenate([np.repeat(np.arange(lanes), stock), run.take(sent)])
        lane[old.size + sends[0].size :] += runs
        ends = [a.tx_cnt.take(at) for a, at in zip(accounts, sends, strict=True)]
        end = np.concatenate([self._end.take(old), *ends])
        time_ns = np.concatenate([self._time_ns.take(old), rows.time_ns.take(sent)])
        reader = run.take(read)
        reader[reads[0].size :] += runs
        covers = [(a.tx_cnt - a.in_flight).take(at) for a, at in zip(accounts, reads, strict=True)]
        covered = np.concatenate(covers)

        # A lane's part of the axis ends with what was sent last.
        part = np.int64(1) << (_AXIS_BITS - lanes.bit_length())
        shift = np.arange(1, lanes + 1) * part - 1
        shift -= np.concatenate([a.tx_cnt.take(rows.runs.lasts) for a in accounts])
        axis = end + shift.take(lane)
        np.maximum(axis, lane * part + 1, out=axis)
        covered += shift.take(reader)
        np.maximum(covered, reader * part, out=covered)
        if (covered[1:] < covered[:-1]).any():
            # Taken back, but what is covered stays covered.
            np.maximum.accumulate(covered, out=covered)
        at = places(covered, axis)
        found = np.append(reader, lanes).take(at) == lane
        done, left = np.flatnonzero(found), np.flatnonzero(~found)
        by, drained = read.take(at.take(done)), lane.take(done)
        if done.size:
            latency = rows.time_ns.take(by) - time_ns.take(done)
            self._sample(ways.take(drained), np.maximum(latency, 0, out=latency))

        lane = lane.take(left)
        count = np.bincount(lane, minlength=lanes)
        count[ended] = waited[ended]
        self._count[ways] = count
        # An ended connection's packets are never covered any more.
        over = self._store.over(rows.slots)
        gone = np.concatenate([over, over])
        if gone.any():
            left = left[~gone.take(lane)]
            lane = lane[~gone.take(lane)]
            count[gone] = 0
        # What waited before, then clients', then servers': a stable sort merges the three.
        order = np.argsort(lane, kind="stable")
        left = left.take(order)
        self._keep(ways, count, end.take(left), time_ns.take(left))
        self._begin[ways[gone]] = _ENDED
        for sender, more in enumerate(np.add.reduceat(count - stock, (0, runs)).tolist()):
            self._waiting[sender] += more
            if self._waiting[sender] > MOST_WAITING:
                self._give_up(sender)

        def outstanding() -> tuple[Ints, Ints]:
            figures = []
            for sender, account in enumerate(accounts):
                change = np.bincount(sends[sender], minlength=run.size)
                change -= np.bincount(by[drained // runs == sender], minlength=run.size)
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
            self._narrow = ways << _BUCKET_BITS < 1 << _NARROW

    def _keep(self, ways: Ints, counts: Ints, end: Ints, time_ns: Ints) -> None:
        """Write at the pool's end what waits of these ways: so many of each, way by way."""
        if self._used + end.size > self._end.size:
            # What these ways have there so far is not used any more.
            self._begin[ways] = _ENDED
            here = self._here()
            self._rewrite(here, _blocks(self._begin[here], self._count[here]), end.size)
        begins = np.cumsum(counts)
        begins += self._used - counts
        self._begin[ways] = begins
        fresh = slice(self._used, self._used + end.size)
        self._end[fresh], self._time_ns[fresh] = end, time_ns
        self._used += end.size

    def _here(self) -> Ints:
        """The ways with packets in the pool."""
        return np.flatnonzero((self._begin != _ENDED) & (self._count > 0))

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
        keys = way << _BUCKET_BITS
        keys |= bucket(waited)
        self._samples.append(keys.astype(np.uint32) if self._narrow else keys)
        self._collected += waited.size

    def count(self) -> None:
        """Count what was collected, when it is much: between batches, when memory is free."""
        # As many as are counted already, or merging with those would cost too much.
        if self._collected >= max(_SAMPLES, self._counted.size):
            self._fold()

    def _fold(self) -> None:
        """Count what was collected; say of ended connections what their counts come to."""
        if not self._collected:
            return
        samples = np.concatenate(self._samples)
        self._samples, self._collected = [], 0
        counted, counts = _tally(self._counted, self._counts, samples)
        over = self._store.over(counted >> _BUCKET_BITS + 1)
        if over.any():
            self._settle(counted[over], counts[over])
            counted, counts = counted[~over], counts[~over]
        self._counted, self._counts = counted, counts

    def _settle(self, counted: Keys, counts: Ints) -> None:
        """Put into the store how many latencies these ways have in all, and their quantiles."""
        side = self._store.side
        way = counted >> _BUCKET_BITS
        begins = np.flatnonzero(np.append(True, way[1:] != way[:-1]))
        lasts = np.append(begins[1:], way.size) - 1
        ways = way[begins]
        total = np.cumsum(counts)
        before = total[begins] - counts[begins]
        number = total[lasts] - before
        side["drains"].reshape(-1)[ways] = number
        least, most = (side[name].reshape(-1)[ways] for name in ("drain_min", "drain_max"))
        for name, share in (("drain_median", 0.5), ("drain_p99", 0.99)):
            rank = np.ceil(number * share).astype(np.int64)
            # Where a way has few latencies its first or its last bucket has this one.
            at = np.where(rank <= counts[begins], begins, lasts)
            inner = np.flatnonzero((at == lasts) & (rank <= number - counts[lasts]))
            at[inner] = np.searchsorted(total, before[inner] + rank[inner])
            value = middle((counted[at] & _BUCKETS - 1).astype(np.int64))
            side[name].reshape(-1)[ways] = np.clip(value, least, most)

    def quantiles(self, slots: Ints, sender: int) -> Quantiles:
        """Drain latencies of one direction of each of these connections, in nanoseconds."""
        self._fold()
        if self._counted.size:
            self._settle(self._counted, self._counts)
        side = self._store.side
        most = side["drain_max"][slots, sender]
        return Quantiles(
            side["drains"][slots, sender],
            np.where(most == NULL, NULL, side["drain_min"][slots, sender]),
            side["drain_median"][slots, sender],
            side["drain_p99"][slots, sender],
            most,
        )
