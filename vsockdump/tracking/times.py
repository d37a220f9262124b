"""When things happened: stalls, connect latency, and where each connection's time went.

Transitions are found a column at a time; only stalls that last long enough to count become
objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account, Life
from vsockdump.tracking.states import State
from vsockdump.tracking.store import Store
from vsockdump.wire import Op, RwFlag, Type

# Plain integers: numpy compares a column with an enumeration's member as 64-bit numbers.
_EOM: Final = int(RwFlag.EOM)
_SEQPACKET: Final = int(Type.SEQPACKET)
_STRAY: Final = int(State.STRAY)


class Flow(IntEnum):
    """What a connection does between two packets."""

    IDLE = 0
    IN_FLIGHT = 1
    LIMITED = 2


_FLOWS: Final = len(Flow)
_LIMITED: Final = int(Flow.LIMITED)


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


def spend(rows: Rows, life: Life, accounts: tuple[Account, Account], store: Store) -> bool:
    """Say where the time went, and note when connections were last heard of.

    Returns whether any connection was or is limited; if none, there is no stall either.
    """
    conn = store.conn
    there, back = accounts
    flow = ((there.in_flight > 0) | (back.in_flight > 0)).astype(np.uint8)
    limited = there.stalled | back.stalled
    if limited.any():
        flow[limited] = _LIMITED
    heard, strays = life.active, life.carried == _STRAY
    if strays.any():
        heard = heard | (rows.counts & strays[rows.runs.run])
    slot, time_ns, begins, lasts = rows.slot, rows.time_ns, rows.runs.begins, rows.runs.lasts
    if not heard.all():
        # The others change nothing: what is left is in runs just so.
        at = np.flatnonzero(heard)
        if not at.size:
            return False
        slot, time_ns, flow = slot[at], time_ns[at], flow[at]
        edges = np.flatnonzero(slot[1:] != slot[:-1])
        begins, lasts = np.append(0, edges + 1), np.append(edges, slot.size - 1)
    slots = slot[begins]
    spent, during = np.empty_like(time_ns), np.empty_like(flow)
    np.subtract(time_ns[1:], time_ns[:-1], out=spent[1:])
    spent[begins] = time_ns[begins] - conn["last_ns"][slots]
    during[1:] = flow[:-1]
    during[begins] = conn["flow"][slots]
    np.maximum(spent, 0, out=spent)
    if strays.any():
        # One that never began spends no time.
        spent[conn["state"][slot] == _STRAY] = 0
    np.add.at(conn["flows_ns"].reshape(-1), _FLOWS * slot + during, spent)
    conn["last_ns"][slots], conn["flow"][slots] = time_ns[lasts], flow[lasts]
    _connects(rows, life, store)
    return bool((during == _LIMITED).any() or (flow == _LIMITED).any())


def _connects(rows: Rows, life: Life, store: Store) -> None:
    answers = np.flatnonzero(life.active & rows.are(Op.RESPONSE))
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


def messages(rows: Rows, accounts: tuple[Account, Account], store: Store) -> None:
    """Count whole messages and their sizes."""
    runs, slots, side = rows.runs, rows.slots, store.side
    eom = rows.flags & _EOM != 0
    if not eom.any():
        return
    eom &= rows.are(Op.RW)
    eom &= store.conn["type"][rows.slot] == _SEQPACKET
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
