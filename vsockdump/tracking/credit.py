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
from vsockdump.tracking.states import ENDED, State, state_of
from vsockdump.tracking.store import NO_BASE, Store
from vsockdump.wire import Op

_MODULO: Final = 1 << 32
_MASK: Final = _MODULO - 1
_HALF: Final = _MODULO >> 1
_FAR: Final = np.iinfo(np.int64).max
"""Stands for "never known" where the least is sought."""


def signed(difference: Ints) -> Ints:
    """A difference of 32-bit counters as the signed number it is nearest to."""
    return (difference + _HALF & _MASK) - _HALF


@dataclass(slots=True, kw_only=True, eq=False)
class Life:
    """Each connection's state around each packet, columns (n,).

    ``active``: the packet counts and came before the end (the RST that ends is active);
    ``before`` and ``after`` are states; ``shut_before`` and ``shut`` the bits of shut directions;
    ``alive``: the connection has not ended after it.
    """

    active: Bools
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    shut_before: NDArray[np.uint8]
    shut: NDArray[np.uint8]
    alive: Bools


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
        zero: Bools = (self.effective == 0) & self.open
        return zero

    @cached_property
    def acked(self) -> Ints:
        """The end offset that an advertisement covers; NULL where there is none."""
        known = self.advert & (self.in_flight != NULL)
        return np.where(known, self.tx_cnt - self.in_flight, NULL)

    def _room(self, buffer: Ints) -> Ints:
        room: Ints = np.maximum(buffer - self.in_flight, 0)
        room[(self.in_flight == NULL) | (buffer == NULL)] = NULL
        return room


def live(rows: Rows, store: Store) -> Life:
    """States of the batch's connections; carries them in the store."""
    runs, slots = rows.runs, rows.slots
    conn = store.conn
    carried = conn["state"][slots]
    over = np.isin(carried, [*ENDED, State.STRAY])
    rst = (rows.op == Op.RST) & rows.counts
    any_rst = bool(rst.any())
    ended = over[runs.run]
    if any_rst:
        ended = ended | (runs.cumsum(rst) - rst > 0)
    active = rows.counts & ~ended
    bits = shut_bits(rows.op, rows.flags, rows.server)
    bits[~active] = 0
    shut = conn["shut"][slots][runs.run]
    if bits.any():
        for bit in (1, 2):
            shut = shut | np.where(runs.latest(bits & bit != 0) >= 0, bit, 0).astype(np.uint8)
    # A REQUEST is only ever the first packet; any other one but an RST means that both spoke.
    speaks = active & (rows.op != Op.REQUEST) & ~rst
    spoken = (runs.latest(speaks) >= 0) | conn["spoken"][slots][runs.run]
    reset = rst & active
    after = state_of(shut, spoken, np.zeros(rst.size, np.bool_))
    if over.any():
        after = np.where(over[runs.run], carried[runs.run], after)
    if any_rst:
        ending = runs.latest(reset)
        at = np.maximum(ending, 0)
        final = state_of(shut[at], spoken[at], np.ones(rst.size, np.bool_))
        after = np.where(ending >= 0, final, after)
    before = runs.before(after, carried)
    shut_before = runs.before(shut, conn["shut"][slots])
    last = runs.lasts
    conn["last_number"][slots] = np.where(over, conn["last_number"][slots], rows.number[last])
    conn["state"][slots] = after[last]
    conn["shut"][slots] = shut[last]
    conn["spoken"][slots] = spoken[last]
    alive = ~ended & ~reset
    return Life(
        active=active,
        before=before,
        after=after,
        shut_before=shut_before,
        shut=shut,
        alive=alive,
    )


def account(rows: Rows, life: Life, store: Store) -> tuple[Account, Account]:
    """Both directions' figures; carries them in the store. Direction 0 is client to server."""
    runs, slots, side, last = rows.runs, rows.slots, store.side, rows.runs.lasts
    headers = rows.batch.headers
    speaks = life.active & (rows.op != Op.RST)
    write = rows.op == Op.RW
    buf_alloc = headers["buf_alloc"][rows.row].astype(np.int64)
    fwd_cnt = headers["fwd_cnt"][rows.row].astype(np.int64)
    adverts, buffers, forwards = [], [], []
    for sender in (0, 1):
        place = (slots, sender)
        advert = speaks & (rows.server if sender else ~rows.server)
        latest = runs.latest_or_carried(advert)
        buffer = np.concatenate([buf_alloc, side["buf_alloc"][place]])[latest]
        forward = np.concatenate([fwd_cnt, side["fwd_cnt"][place]])[latest]
        side["buf_alloc"][place], side["fwd_cnt"][place] = buffer[last], forward[last]
        adverts.append(advert)
        buffers.append(buffer)
        forwards.append(forward)
    least = np.minimum(buffers[0], buffers[1])
    accounts = []
    for sender in (0, 1):
        peer, place = 1 - sender, (slots, sender)
        data = adverts[sender] & write
        sent = runs.cumsum(np.where(data, rows.length, 0))
        base = side["base"][place]
        carried = side["sent"][place]
        tx_cnt = sent + (base + carried)[runs.run]
        quiet = buffers[peer] == NULL
        unknown = base == NO_BASE
        side["sent"][place] = carried + sent[last]
        if unknown.any():
            base, tx_cnt = _anchor(runs, base, sent + carried[runs.run], adverts[peer], fwd_cnt)
            quiet |= tx_cnt == NULL
        in_flight = tx_cnt - forwards[peer] & _MASK
        in_flight[quiet] = NULL
        ahead = np.zeros(0, np.int64)
        # A receiver that is ahead shows as more in flight than half of what a counter holds.
        if int(in_flight.max()) > _HALF:
            beyond = adverts[peer] & (in_flight > _HALF)
            ahead = np.zeros(in_flight.size, np.int64)
            for run in np.unique(runs.run[beyond]).tolist():
                part = slice(int(runs.begins[run]), int(last[run]) + 1)
                base[run] += _walk(tx_cnt[part], ahead[part], adverts[peer][part], fwd_cnt[part])
            in_flight = tx_cnt - forwards[peer] & _MASK
            in_flight[quiet] = NULL
            grown = runs.sum(ahead) > 0
            side["estimated"][place] |= grown
            store.conn["estimated"][slots] |= grown
        side["base"][place], side["in_flight"][place] = base, in_flight[last]
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
    return accounts[0], accounts[1]


def extremes(rows: Rows, life: Life, accounts: tuple[Account, Account], store: Store) -> None:
    """Keep each direction's least windows and most bytes in flight."""
    runs, side = rows.runs, store.side
    for sender, figures in enumerate(accounts):
        place = (rows.slots, sender)
        for name, values in (("min_window", figures.window), ("min_effective", figures.effective)):
            least = runs.smallest(np.where((values == NULL) | ~life.active, _FAR, values))
            before = side[name][place]
            least = np.minimum(least, np.where(before == NULL, _FAR, before))
            side[name][place] = np.where(least == _FAR, NULL, least)
        most = runs.largest(np.where(life.active, figures.in_flight, NULL))
        side["max_in_flight"][place] = np.maximum(side["max_in_flight"][place], most)


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
