"""The account of credit: what each side sent, advertised, and may still send.

Works on one batch's Rows, both directions at once, and carries each connection's account in the
store. docs/credit-model.md says what every figure means; ``Account`` holds them after each packet.

Strategy: running sums and "latest advertisement so far" within runs. The one thing that is not a
plain scan, a receiver whose fwd_cnt is ahead of what was seen, is rare (packets are missing from
the capture, or the guest lies); only connections where it happens are walked packet by packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bools, Ints
from vsockdump.tracking.assign import Rows, shut_bits
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.states import ENDED, State, state_of
from vsockdump.tracking.store import NO_BASE, Store
from vsockdump.wire import Op

_MODULO: Final = 1 << 32
_MASK: Final = _MODULO - 1
_FAR: Final = np.iinfo(np.int64).max
"""Stands for "never known" where the least is sought."""


def signed(difference: Ints) -> Ints:
    """A difference of 32-bit counters as the signed number it is nearest to."""
    return (difference + (_MODULO >> 1) & _MASK) - (_MODULO >> 1)


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


@dataclass(slots=True, kw_only=True, eq=False)
class Account:
    """One direction's figures after each packet of its connection, columns (n,); NULL: not known.

    ``data`` marks the RW packets that count, ``advert`` the receiver's advertisements that do;
    ``buf_alloc`` is the receiver's latest (NULL before the first); ``ahead`` by how much an
    advertisement passed what was seen sent; ``acked`` the end offset that is covered.
    """

    data: Bools
    advert: Bools
    tx_cnt: Ints
    in_flight: Ints
    buf_alloc: Ints
    window: Ints
    effective: Ints
    ahead: Ints
    acked: Ints
    stalled: Bools


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
    runs, slots, side = rows.runs, rows.slots, store.side
    headers = rows.batch.headers
    speaks = life.active & (rows.op != Op.RST)
    buf_alloc = headers["buf_alloc"][rows.row].astype(np.int64)
    fwd_cnt = headers["fwd_cnt"][rows.row].astype(np.int64)
    adverts, buffers, forwards = [], [], []
    for sender in (0, 1):
        advert = speaks & (rows.server == bool(sender))
        latest = runs.latest(advert)
        known, at = latest >= 0, np.maximum(latest, 0)
        advertised = side["advertised"][slots, sender]
        buffer = np.where(advertised, side["buf_alloc"][slots, sender], NULL)[runs.run]
        forward = side["fwd_cnt"][slots, sender][runs.run]
        adverts.append(advert)
        buffers.append(np.where(known, buf_alloc[at], buffer))
        forwards.append(np.where(known, fwd_cnt[at], forward))
    accounts = []
    for sender in (0, 1):
        peer = 1 - sender
        data = adverts[sender] & (rows.op == Op.RW)
        sent = runs.cumsum(np.where(data, rows.length, 0)) + side["sent"][slots, sender][runs.run]
        base, ahead = _base(rows, store, sender, sent, adverts[peer], fwd_cnt)
        unknown = base == NO_BASE
        tx_cnt = np.where(unknown, NULL, base + sent)
        quiet = unknown | (buffers[peer] == NULL)
        in_flight = np.where(quiet, NULL, tx_cnt - forwards[peer] & _MASK)
        window = np.where(quiet, NULL, np.maximum(buffers[peer] - in_flight, 0))
        least = np.minimum(buffers[0], buffers[1])
        effective = np.where(quiet | (least == NULL), NULL, np.maximum(least - in_flight, 0))
        open_ = life.alive & (life.shut & (1 << sender) == 0)
        covered = np.where(adverts[peer] & ~quiet, tx_cnt - in_flight, NULL)
        accounts.append(
            Account(
                data=data,
                advert=adverts[peer],
                tx_cnt=tx_cnt,
                in_flight=in_flight,
                buf_alloc=buffers[peer],
                window=window,
                effective=effective,
                ahead=ahead,
                acked=covered,
                stalled=(effective == 0) & open_,
            )
        )
        last, place = runs.lasts, (slots, sender)
        side["sent"][place], side["base"][place] = sent[last], base[last]
        side["in_flight"][place] = in_flight[last]
        side["advertised"][place] = buffers[sender][last] != NULL
        side["buf_alloc"][place] = np.maximum(buffers[sender][last], 0)
        side["fwd_cnt"][place] = forwards[sender][last]
        if ahead.any():
            side["estimated"][place] |= runs.sum(ahead) > 0
    if any(item.ahead.any() for item in accounts):
        store.conn["estimated"][slots] |= side["estimated"][slots].any(axis=1)
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


def _base(
    rows: Rows, store: Store, sender: int, sent: Ints, advert: Bools, fwd_cnt: Ints
) -> tuple[Ints, Ints]:
    """The base of tx_cnt after each packet (NO_BASE: not known), and each jump of it.

    ``advert`` marks the receiver's advertisements.
    """
    runs = rows.runs
    carried = store.side["base"][rows.slots, sender]
    base = carried[runs.run]
    ahead = np.zeros(base.size, np.int64)
    unknown = carried == NO_BASE
    if unknown.any():
        # Mid-stream: the receiver's first advertisement is where counting begins.
        first = runs.earliest(advert)
        begins = np.where(unknown & (first >= 0), first, 0)
        anchor = fwd_cnt[begins] - sent[begins]
        known = (first[runs.run] >= 0) & (np.arange(base.size) >= first[runs.run])
        late = unknown[runs.run]
        base = np.where(late & known, anchor[runs.run], base)
    beyond = advert & (base != NO_BASE) & (signed(fwd_cnt - (base + sent)) > 0)
    if beyond.any():
        for run in np.unique(runs.run[beyond]).tolist():
            _walk(runs.begins[run], runs.lasts[run] + 1, base, ahead, sent, advert, fwd_cnt)
    return base, ahead


def _walk(
    begin: int, end: int, base: Ints, ahead: Ints, sent: Ints, advert: Bools, fwd_cnt: Ints
) -> None:
    """Follow one connection packet by packet where the receiver is ahead of what was seen."""
    grown = 0
    half = _MODULO >> 1
    for row in range(begin, end):
        if base[row] == NO_BASE:
            continue
        if advert[row]:
            difference = int(fwd_cnt[row]) - int(base[row]) - grown - int(sent[row])
            jump = (difference + half & _MASK) - half
            if jump > 0:
                grown += jump
                ahead[row] = jump
        base[row] += grown
