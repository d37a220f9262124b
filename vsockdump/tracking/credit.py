"""The account of credit: what each side sent, advertised, and may still send.

Works on one batch's Rows, both directions at once, and carries each connection's account in the
store. docs/credit-model.md says what every figure means; ``Account`` holds them after each packet.

Strategy: running sums and "latest advertisement so far" within runs. The one thing that is not a
plain scan, a receiver whose fwd_cnt is ahead of what was seen, is rare (packets are missing from
the capture, or the guest lies); only connections where it happens are walked packet by packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.assign import Rows, shut_bits
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.segments import Runs
from vsockdump.tracking.states import OVER, state_of
from vsockdump.tracking.store import NO_BASE, Store
from vsockdump.tracking.table import EMPTY
from vsockdump.wire import Op

_MODULO: Final = 1 << 32
_MASK: Final = _MODULO - 1
_HALF: Final = _MODULO >> 1


def signed(difference: Ints) -> Ints:
    """A difference of 32-bit counters as the signed number it is nearest to."""
    return (difference + _HALF & _MASK) - _HALF


@dataclass(kw_only=True, eq=False)
class Life:
    """Each connection's state around each packet, columns (n,).

    ``active``: the packet counts and came before the end (the RST that ends is active);
    ``before`` and ``after`` are states; ``shut_before`` and ``shut`` the bits of shut directions;
    ``alive``: the connection has not ended after it. ``carried*`` (r,) is what was before.
    """

    rows: Rows
    active: Bools
    speaks: Bools
    shut: NDArray[np.uint8]
    alive: Bools
    carried: NDArray[np.uint8]
    carried_shut: NDArray[np.uint8]
    carried_spoken: Bools

    @cached_property
    def after(self) -> NDArray[np.uint8]:
        """The state after each packet."""
        runs = self.rows.runs
        spoken = runs.since(_speaks_up(self.rows, self.active)) | self.carried_spoken[runs.run]
        # Behind its end a connection neither speaks nor shuts anything.
        after = state_of(self.shut, spoken, ~self.alive)
        over = OVER[self.carried]
        return np.where(over[runs.run], self.carried[runs.run], after) if over.any() else after

    @cached_property
    def before(self) -> NDArray[np.uint8]:
        """The state before each packet."""
        return self.rows.runs.before(self.after, self.carried)

    @cached_property
    def shut_before(self) -> NDArray[np.uint8]:
        """The directions that were shut before each packet."""
        return self.rows.runs.before(self.shut, self.carried_shut)


@dataclass(kw_only=True, eq=False)
class Account:
    """One direction's figures after each packet of its connection, columns (n,); NULL: not known.

    ``data`` marks the RW packets that count, ``advert`` the receiver's advertisements that do;
    ``buf_alloc`` is the receiver's latest and ``least`` the lesser of both sides' (NULL before the
    first); ``ahead`` by how much an advertisement passed what was seen sent.
    """

    data: Bools
    advert: Bools
    tx_cnt: Ints
    in_flight: Ints
    buf_alloc: Ints
    least: Ints
    ahead: Ints
    open: Bools

    @cached_property
    def window(self) -> Ints:
        """What the specification lets the sender send."""
        return self._room(self.buf_alloc)

    @cached_property
    def effective(self) -> Ints:
        """What Linux lets the sender send."""
        return self._room(self.least)

    @cached_property
    def stalled(self) -> Bools:
        """Where the sender may send nothing, though it is not shut."""
        full: Bools = (self.in_flight >= self.least) & (self.least != NULL) & self.open
        return full

    def _room(self, buffer: Ints) -> Ints:
        room: Ints = np.maximum(buffer - self.in_flight, 0)
        room[(self.in_flight == NULL) | (buffer == NULL)] = NULL
        return room


def _speaks_up(rows: Rows, active: Bools) -> Bools:
    """Packets after which a connection is more than asked for.

    A REQUEST is only ever the first packet; any other one but an RST means that both spoke.
    """
    more: Bools = active & ~rows.are(Op.REQUEST) & ~rows.are(Op.RST)
    return more


def live(rows: Rows, store: Store) -> Life:
    """States of the batch's connections; carries them in the store."""
    runs, slots, conn = rows.runs, rows.slots, store.conn
    carried, carried_shut = conn["state"][slots], conn["shut"][slots]
    spoken = carried_spoken = conn["spoken"][slots]
    over = OVER[carried]
    rst = rows.are(Op.RST)
    resets = np.flatnonzero(rst)
    ended = np.zeros(rst.size, np.bool_)
    reset = over
    if resets.size:
        # What ends a connection is the first RST that counts; the rows behind it are inactive.
        rst &= rows.counts
        since = runs.since(rst)
        ended[1:] = since[:-1]
        ended[runs.begins] = False
        reset = over | since[runs.lasts]
    if over.any():
        ended |= over[runs.run]
    active = rows.counts & ~ended
    shut = np.zeros(rst.size, np.uint8)
    if carried_shut.any():
        shut |= carried_shut[runs.run]
    shuts = np.flatnonzero(rows.are(Op.SHUTDOWN) & active)
    if shuts.size:
        bits = shut_bits(rows.op[shuts], rows.flags[shuts], rows.server[shuts])
        # Most often all of them shut the same.
        for directions in set(bits.tolist()) - {0}:
            behind = np.zeros(rst.size, np.bool_)
            behind[shuts[bits == directions]] = True
            shut |= runs.since(behind).view(np.uint8) * np.uint8(directions)
    if not spoken.all():
        spoken = spoken | runs.any(_speaks_up(rows, active))
    last = runs.lasts
    number = rows.batch.frames.number[rows.row[last]]
    if over.any():
        number = np.where(over, conn["last_number"][slots], number)
    conn["last_number"][slots] = number
    conn["state"][slots] = np.where(over, carried, state_of(shut[last], spoken, reset))
    conn["shut"][slots] = shut[last]
    conn["spoken"][slots] = spoken
    return Life(
        rows=rows,
        active=active,
        speaks=active & ~rst,
        shut=shut,
        alive=~(ended | rst),
        carried=carried,
        carried_shut=carried_shut,
        carried_spoken=carried_spoken,
    )


def _other_side(rows: Rows) -> Ints:
    """For every row the last one of the other side before it; (n + 2r,), see ``_advertised``."""
    runs, server = rows.runs, rows.server
    # Where one side's packets follow each other, the other's last is the one before them all.
    turns = np.flatnonzero(server[1:] != server[:-1])
    last = np.empty(turns.size + 1, np.int64)
    last[0], last[1:] = -1, turns
    count = np.empty_like(last)
    count[:-1], count[-1] = turns, server.size - 1
    count -= last
    place = np.repeat(last, count)
    # That may be another connection's.
    none = np.flatnonzero(place < runs.first)
    place[none] = server.size + 2 * runs.run[none] + ~server[none]
    return place


def _advertised(
    rows: Rows, life: Life, place: Ints, field: str, carried: Ints
) -> tuple[Ints, Ints]:
    """What the client, and what the server, last said in ``field``, after each packet.

    A packet tells its sender's; the other side's is that of its last packet, or what was
    ``carried`` (r, 2), as ``place`` says. A packet that is not active or an RST tells nothing:
    there the sender's last stands.
    """
    runs, server = rows.runs, rows.server
    own = rows.headers[field].astype(np.int64)
    silent = np.flatnonzero(~life.speaks)
    for sender in (0, 1) if silent.size else ():
        mine = silent[server[silent] == bool(sender)]
        speaks = np.flatnonzero(life.speaks & (server == bool(sender)))
        speaks = np.append(EMPTY, speaks)
        before = speaks[np.searchsorted(speaks, mine) - 1]
        told = before >= runs.first[mine]
        own[mine] = np.where(told, own[before], carried[runs.run[mine], sender])
    other = np.concatenate([own, carried.reshape(-1)]).take(place)
    return np.where(server, other, own), np.where(server, own, other)


def account(rows: Rows, life: Life, store: Store) -> tuple[Account, Account]:
    """Both directions' figures; carries them in the store. Direction 0 is client to server."""
    runs, slots, side, last = rows.runs, rows.slots, store.side, rows.runs.lasts
    write = rows.are(Op.RW) & life.speaks
    fwd_cnt = rows.headers["fwd_cnt"].astype(np.int64)
    adverts = (life.speaks & ~rows.server, life.speaks & rows.server)
    others = _other_side(rows)
    carried = {field: store.pairs(field, slots) for field in ("buf_alloc", "fwd_cnt")}
    buffers, forwards = (_advertised(rows, life, others, *known) for known in carried.items())
    client, server = (said[last] for said in buffers)
    # Buffers hardly ever change.
    fresh = (client != carried["buf_alloc"][:, 0]) | (server != carried["buf_alloc"][:, 1])
    if fresh.any():
        store.put_pairs("buf_alloc", slots[fresh], client[fresh], server[fresh])
    store.put_pairs("fwd_cnt", slots, *(said[last] for said in forwards))
    bases, sums = store.pairs("base", slots), store.pairs("sent", slots)
    least = np.minimum(buffers[0], buffers[1])
    accounts = []
    moved_bases = False
    for sender in (0, 1):
        peer = 1 - sender
        data = write & adverts[sender]
        moved = rows.length * data
        total = np.cumsum(moved)
        before = total[runs.begins] - moved[runs.begins]
        base, earlier = bases[:, sender], sums[:, sender] - before
        sums[:, sender] = earlier + total[last]
        quiet = buffers[peer] == NULL
        if (base == NO_BASE).any():
            sent = total + earlier[runs.run]
            base, tx_cnt = _anchor(runs, base, sent, adverts[peer], fwd_cnt)
            moved_bases = True
            quiet |= tx_cnt == NULL
        else:
            tx_cnt = total + (base + earlier)[runs.run]
        in_flight = tx_cnt - forwards[peer] & _MASK
        if quiet.any():
            in_flight[quiet] = NULL
        ahead = np.zeros(0, np.int64)
        # A receiver that is ahead shows as more in flight than half of what a counter holds.
        if int(in_flight.max()) > _HALF:
            beyond = adverts[peer] & (in_flight > _HALF)
            ahead = np.zeros(in_flight.size, np.int64)
            moved_bases = True
            for run in np.unique(runs.run[beyond]).tolist():
                part = slice(int(runs.begins[run]), int(last[run]) + 1)
                base[run] += _walk(tx_cnt[part], ahead[part], adverts[peer][part], fwd_cnt[part])
            in_flight = tx_cnt - forwards[peer] & _MASK
            in_flight[quiet] = NULL
            grown = runs.sum(ahead) > 0
            side["estimated"][slots, sender] |= grown
            store.conn["estimated"][slots] |= grown
        bases[:, sender] = base
        accounts.append(
            Account(
                data=data,
                advert=adverts[peer],
                tx_cnt=tx_cnt,
                in_flight=in_flight,
                buf_alloc=buffers[peer],
                least=least,
                ahead=ahead,
                open=life.alive & (life.shut & (1 << sender) == 0),
            )
        )
    if moved_bases:
        store.put_pairs("base", slots, *bases.T)
    store.put_pairs("sent", slots, *sums.T)
    store.put_pairs("in_flight", slots, *(figures.in_flight[last] for figures in accounts))
    return accounts[0], accounts[1]


def _anchor(runs: Runs, base: Ints, sent: Ints, advert: Bools, fwd_cnt: Ints) -> tuple[Ints, Ints]:
    """Bases (r,) and tx_cnt (n,) where some bases were not known before this batch.

    In mid-stream the receiver's first advertisement is where counting begins. ``sent`` is all
    that was seen sent up to each row.
    """
    first = runs.earliest(advert)
    unknown = base == NO_BASE
    found = unknown & (first >= 0)
    base = np.where(found, fwd_cnt[first] - sent[first], base)
    begins = np.where(unknown, np.where(first >= 0, first, sent.size), 0)
    known = np.arange(sent.size) >= begins[runs.run]
    return base, np.where(known, base[runs.run] + sent, NULL)


def _walk(tx_cnt: Ints, ahead: Ints, advert: Bools, fwd_cnt: Ints) -> int:
    """Follow one connection packet by packet where the receiver is ahead of what was seen.

    Mends its part of ``tx_cnt``, notes each jump in ``ahead``, and returns how far the base grew.
    """
    grown = 0
    for row in range(tx_cnt.size):
        if tx_cnt[row] == NULL:
            continue
        if advert[row]:
            difference = int(fwd_cnt[row]) - int(tx_cnt[row]) - grown
            jump = (difference + _HALF & _MASK) - _HALF
            if jump > 0:
                grown += jump
                ahead[row] = jump
        tx_cnt[row] += grown
    return grown
