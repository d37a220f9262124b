"""When things happened: stalls, connect latency, and where each connection's time went.

Transitions are found a column at a time; only stalls that last long enough to count become
objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account, Life
from vsockdump.tracking.states import State
from vsockdump.tracking.store import Store
from vsockdump.wire import Op


class Flow(IntEnum):
    """What a connection does between two packets."""

    IDLE = 0
    IN_FLIGHT = 1
    LIMITED = 2


FLOW_COLUMNS = {Flow.IDLE: "idle_ns", Flow.IN_FLIGHT: "in_flight_ns", Flow.LIMITED: "limited_ns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A direction whose effective window was 0, from packet ``number`` at ``start_ns`` on.

    ``sender`` is the direction, 0 the client's; it is the other side that does not read.
    ``end_number`` is the packet that ended it, None at the end of the capture.
    """

    conn: int
    sender: int
    number: int
    start_ns: int
    duration_ns: int
    recovered: bool
    end_number: int | None = None


def spend(rows: Rows, life: Life, accounts: tuple[Account, Account], store: Store) -> None:
    """Count packets, bytes and time; note when connections were last heard of."""
    runs, slots, conn, side = rows.runs, rows.slots, store.conn, store.side
    data = rows.counts & (rows.op == Op.RW)
    for sender in (0, 1):
        sends = rows.server == bool(sender)
        side["packets"][slots, sender] += runs.sum((rows.counts & sends).astype(np.int64))
        side["bytes"][slots, sender] += runs.sum(np.where(data & sends, rows.length, 0))
    flow = np.zeros(rows.op.size, np.uint8)
    for account in accounts:
        flow[account.in_flight > 0] = Flow.IN_FLIGHT
    for account in accounts:
        flow[account.stalled] = Flow.LIMITED
    latest = runs.latest(rows.counts)
    before = runs.before(latest, np.full(len(runs), NULL))
    since = np.where(before >= 0, rows.time_ns[np.maximum(before, 0)], 0)
    since = np.where(before >= 0, since, conn["last_ns"][slots][runs.run])
    spent = np.where(life.active, np.maximum(rows.time_ns - since, 0), 0)
    during = runs.before(flow, conn["flow"][slots])
    for kind, column in FLOW_COLUMNS.items():
        conn[column][slots] += runs.sum(np.where(during == kind, spent, 0))
    conn["flow"][slots] = flow[runs.lasts]
    stray = conn["state"][slots] == State.STRAY
    heard = runs.latest(life.active | (rows.counts & stray[runs.run]))[runs.lasts]
    conn["last_ns"][slots] = np.where(heard >= 0, rows.time_ns[heard], conn["last_ns"][slots])
    _connects(rows, life, store)


def _connects(rows: Rows, life: Life, store: Store) -> None:
    answers = np.flatnonzero(life.active & (rows.op == Op.RESPONSE))
    if not answers.size:
        return
    conn = store.conn
    # The first answer of each connection: later ones are overwritten by writing backwards.
    answers = answers[::-1]
    slots = rows.slot[answers]
    first = conn["opened"][slots] & (conn["connect_ns"][slots] == NULL)
    answers, slots = answers[first], slots[first]
    conn["connect_ns"][slots] = np.maximum(rows.time_ns[answers] - conn["start_ns"][slots], 0)


def stalls(
    rows: Rows, accounts: tuple[Account, Account], store: Store, threshold_ns: int
) -> list[tuple[int, Stall]]:
    """The stalls that ended in this batch and count, with the row (sorted) that ended each."""
    found: list[tuple[int, Stall]] = []
    runs, slots, side = rows.runs, rows.slots, store.side
    for sender, account in enumerate(accounts):
        carried = side["stall_number"][slots, sender] != NULL
        if not carried.any() and not account.stalled.any():
            continue
        before = runs.before(account.stalled, carried)
        begun = account.stalled & ~before
        ended = np.flatnonzero(before & ~account.stalled)
        latest = runs.latest(begun)
        if ended.size:
            found += _ended(rows, account, store, sender, latest, ended, threshold_ns)
        last = runs.lasts
        still, at = account.stalled[last], latest[last]
        fresh = still & (at >= 0)
        place = (slots[fresh], sender)
        side["stall_ns"][place] = rows.time_ns[at[fresh]]
        side["stall_number"][place] = rows.number[at[fresh]]
        side["stall_number"][slots[~still], sender] = NULL
    return found


def _ended(
    rows: Rows,
    account: Account,
    store: Store,
    sender: int,
    latest: Ints,
    ended: Ints,
    threshold_ns: int,
) -> list[tuple[int, Stall]]:
    side = store.side
    begun = latest[ended]
    slot = rows.slot[ended]
    since = np.where(begun >= 0, rows.time_ns[begun], side["stall_ns"][slot, sender])
    number = np.where(begun >= 0, rows.number[begun], side["stall_number"][slot, sender])
    lasted = np.maximum(rows.time_ns[ended] - since, 0)
    long: Bools = lasted >= threshold_ns
    if not long.any():
        return []
    np.add.at(side["stalls"][:, sender], slot[long], 1)
    np.add.at(side["stalled_ns"][:, sender], slot[long], lasted[long])
    return [
        (
            int(ended[place]),
            Stall(
                conn=int(store.conn["number"][slot[place]]),
                sender=sender,
                number=int(number[place]),
                start_ns=int(since[place]),
                duration_ns=int(lasted[place]),
                recovered=bool(account.effective[ended[place]] > 0),
                end_number=int(rows.number[ended[place]]),
            ),
        )
        for place in np.flatnonzero(long).tolist()
    ]


def messages(rows: Rows, accounts: tuple[Account, Account], store: Store, eom: Bools) -> None:
    """Count whole messages and their sizes; ``eom`` marks packets that end one."""
    runs, slots, side = rows.runs, rows.slots, store.side
    for sender, account in enumerate(accounts):
        ends = eom & account.data
        if not ends.any():
            continue
        # What was sent up to each row; the base does not matter to differences.
        length = np.where(account.data, rows.length, 0)
        final = side["sent"][slots, sender]
        running = runs.cumsum(length)
        sent = running + (final - running[runs.lasts])[runs.run]
        latest = runs.latest(ends)
        before = runs.before(latest, np.full(len(runs), NULL))
        begin = side["message_begin"][slots, sender][runs.run]
        begin = np.where(before >= 0, sent[before], begin)
        size = sent - begin
        count = runs.sum(ends.astype(np.int64))
        side["messages"][slots, sender] += count
        side["message_bytes"][slots, sender] += runs.sum(np.where(ends, size, 0))
        least = runs.smallest(np.where(ends, size, np.iinfo(np.int64).max))
        known = side["message_min"][slots, sender]
        least = np.where(known == NULL, least, np.minimum(least, known))
        side["message_min"][slots, sender] = np.where(count > 0, least, known)
        most = runs.largest(np.where(ends, size, NULL))
        side["message_max"][slots, sender] = np.maximum(side["message_max"][slots, sender], most)
        at = latest[runs.lasts]
        side["message_begin"][slots, sender] = np.where(
            at >= 0, sent[at], side["message_begin"][slots, sender]
        )
