"""Sums and extremes of each direction: packets, bytes, least windows, most in flight.

They are folded into the store where they are, row by row: numpy's ``ufunc.at`` on a flat column
costs no more than first summing up each connection's rows, and what cannot change a figure is left
out beforehand.
"""

from __future__ import annotations

import numpy as np

from vsockdump.frames import Ints
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account
from vsockdump.tracking.store import Store
from vsockdump.wire import Op


def volumes(rows: Rows, store: Store) -> None:
    """Count packets and bytes, those after the end too."""
    side, length = store.side, rows.length * rows.are(Op.RW)
    way = 2 * rows.slot + rows.server
    if not rows.counts.all():
        way, length = way[rows.counts], length[rows.counts]
    np.add.at(side["packets"].reshape(-1), way, 1)
    np.add.at(side["bytes"].reshape(-1), way, length)


def extremes(rows: Rows, accounts: tuple[Account, Account], store: Store) -> None:
    """Keep each direction's least windows and most bytes in flight.

    Packets after the end, and of other interfaces, change no figure and so no extreme. Of the
    others, those that only brought bytes in flight down cannot either.
    """
    side = store.side
    one, other = (account.buf_alloc for account in accounts)
    moved = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    for sender, account in enumerate(accounts):
        worse = np.empty(rows.op.size, np.bool_)
        worse[1:] = moved | (account.in_flight[1:] > account.in_flight[:-1])
        worse[rows.runs.begins] = True
        worse &= account.in_flight != NULL
        at = np.flatnonzero(worse)
        way = 2 * rows.slot.take(at) + sender
        in_flight = account.in_flight.take(at)
        np.maximum.at(side["max_in_flight"].reshape(-1), way, in_flight)
        room = _room(account.buf_alloc.take(at), in_flight)
        np.minimum.at(_unsigned(side["min_window"]), way, _unsigned(room))
        if (account.least != account.buf_alloc).any():
            room = _room(account.least.take(at), in_flight)
        np.minimum.at(_unsigned(side["min_effective"]), way, _unsigned(room))


def _room(buffer: Ints, in_flight: Ints) -> Ints:
    room: Ints = np.maximum(buffer - in_flight, 0)
    room[buffer == NULL] = NULL
    return room


def _unsigned(figures: Ints) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The same memory, flat, where NULL is more than any figure."""
    return figures.reshape(-1).view(np.uint64)
