"""Which connection each packet belongs to: keys, generations, late RSTs.

Strategy: keys are looked up for the whole batch, most of them in a cache; rows are sorted by key
once; within a key's rows a generation begins at every REQUEST. docs/credit-model.md says the
rules. A late RST, which belongs to the generation before, is rare and costs a second sort.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import Bools, Ints
from vsockdump.packets import PacketBatch
from vsockdump.tracking import cache
from vsockdump.tracking.segments import Runs, argsort
from vsockdump.tracking.states import BOTH_SHUT, State
from vsockdump.tracking.store import Store
from vsockdump.tracking.table import EMPTY, KEY_WORDS, Keys
from vsockdump.wire import Op, ShutdownFlag, Type

_PORT_BITS: Final = np.uint64(32)
_PORTS: Final = np.uint64(0xFFFF_FFFF)


_END: Final = np.dtype(
    {
        "names": ["len", "type", "op", "flags", "buf_alloc", "fwd_cnt"],
        "formats": ["<u4", "<u2", "<u2", "<u4", "<u4", "<u4"],
        "itemsize": 24,
    }
)
"""The end of a record of ``wire.HEADERS``, from ``len`` on: all that credit depends on."""


@dataclass(kw_only=True, eq=False)
class Rows:
    """The followed packets of a batch, sorted by connection and then by time of arrival.

    All columns (n,): ``row`` in the batch; ``slot``; ``server`` whether the server sent it;
    ``counts`` whether it came on the interface its key is followed on; ``headers`` the end of the
    virtio header. ``runs`` are the connections' rows and ``slots`` (r,) the slot of each run.
    """

    batch: PacketBatch
    row: Ints
    runs: Runs
    slots: Ints
    slot: Ints
    server: Bools
    counts: Bools
    headers: NDArray[Any]
    op: NDArray[Any]
    flags: NDArray[Any]
    length: Ints

    def are(self, op: Op) -> Bools:
        """Which packets have this op. numpy compares with a plain number several times faster."""
        same: Bools = self.op == int(op)
        return same

    @cached_property
    def time_ns(self) -> Ints:
        """When each packet was captured."""
        return self.batch.frames.time_ns[self.row]

    @cached_property
    def number(self) -> Ints:
        """Each packet's number."""
        return self.batch.frames.number[self.row]


def canonical(headers: NDArray[Any]) -> tuple[Keys, Bools]:
    """Each packet's key, and whether its sender is the key's lower endpoint.

    CID 1 never leaves the machine, so the other CID names the same machine: both count as 1.
    """
    src, dst = headers["src_cid"], headers["dst_cid"]
    local = (src == wire.CID_LOCAL) | (dst == wire.CID_LOCAL)
    if local.any():
        src = np.where(local, wire.CID_LOCAL, src)
        dst = np.where(local, wire.CID_LOCAL, dst)
    src_port, dst_port = headers["src_port"], headers["dst_port"]
    low = (src < dst) | ((src == dst) & (src_port <= dst_port))
    keys = np.empty((len(headers), KEY_WORDS), np.uint64)
    keys[:, 0] = np.where(low, src, dst)
    keys[:, 1] = np.where(low, dst, src)
    ports = np.where(low, src_port, dst_port).astype(np.uint64) << _PORT_BITS
    keys[:, 2] = ports | np.where(low, dst_port, src_port)
    keys[:, 3] = headers["type"]
    return keys, low


class Assigner:
    """Gives packets their connections; numbers new ones in order of their first packet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 1

    def assign(self, batch: PacketBatch) -> Rows | None:
        """The followed packets of the batch in their connections; None if there are none."""
        entries = self._store.cache.find(batch.headers)
        unknown = np.flatnonzero(entries == EMPTY)
        row = None
        if unknown.size:
            self._look_up(batch, entries, unknown)
            row = np.flatnonzero(entries != EMPTY)
            entries = entries[row]
        if not entries.size:
            return None
        slot = self._store.table.slots(cache.key(entries))
        order = argsort(slot)
        low = cache.low(entries)[order]
        return self._generations(batch, order if row is None else row[order], slot[order], low)

    def _look_up(self, batch: PacketBatch, entries: Ints, row: Ints) -> None:
        """Fill in the entries of the packets at ``row`` that are followed, with new keys too."""
        types = batch.headers["type"][row]
        row = row[batch.has_virtio[row] & ((types == Type.STREAM) | (types == Type.SEQPACKET))]
        headers = batch.headers.take(row)
        keys, low = canonical(headers)
        alone = (keys[:, 0] == keys[:, 1]) & (keys[:, 2] >> _PORT_BITS == keys[:, 2] & _PORTS)
        if alone.any():
            row, keys, low, headers = row[~alone], keys[~alone], low[~alone], headers[~alone]
        if not row.size:
            return
        numbers = self._numbers(batch, keys, row)
        entries[row] = self._store.cache.store(headers, numbers, low)

    def _numbers(self, batch: PacketBatch, keys: Keys, row: Ints) -> Ints:
        """The number of each key; new keys get one, and a blank slot (its number is 0)."""
        store = self._store
        numbers, hashes = store.table.find(keys)
        unknown = np.flatnonzero(numbers == EMPTY)
        if not unknown.size:
            return numbers
        # Each one's first row; those that share a drawer with another key are looked at again.
        first, left = np.empty_like(numbers), unknown
        while left.size:
            first[left] = left[_first_alike(hashes[left])]
            left = left[(keys[left] != keys[first[left]]).any(axis=1)]
        chosen = unknown[first[unknown] == unknown]
        slots = store.take(chosen.size)
        numbers[chosen] = store.insert(keys[chosen], hashes[chosen], slots)
        store.conn["interface"][slots] = batch.frames.interface[row[chosen]]
        numbers[unknown] = numbers[first[unknown]]
        return numbers

    def _generations(self, batch: PacketBatch, row: Ints, slot: Ints, low: Bools) -> Rows:
        store = self._store
        frames = batch.frames
        headers = _ends(batch.headers).take(row).view(_END)
        op, flags = headers["op"].copy(), headers["flags"]
        if len(frames.interfaces) == 1:
            interface, counts = np.zeros(row.size, np.int64), np.ones(row.size, np.bool_)
        else:
            interface = frames.interface[row]
            counts = interface == store.conn["interface"][slot]
        starts = np.ones(row.size, np.bool_)
        starts[1:] = slot[1:] != slot[:-1]
        keys = Runs.of(starts)
        fresh = store.conn["number"][slot[keys.begins]] == 0
        begins = (op == int(Op.REQUEST)) & counts
        begins[keys.begins[fresh]] = False
        self._leave_stray(keys, fresh, slot, op, counts, begins)
        previous = np.full(len(keys), EMPTY)
        runs, new = keys, fresh
        if begins.any():
            slot, runs, previous = self._open(keys, slot, begins, interface, frames.time_ns[row])
            new = store.conn["number"][slot[runs.begins]] == 0
        slots = slot[runs.begins]
        if new.any():
            self._describe(batch, runs, row, slots, low, op, new)
        server = low != store.conn["client_low"][slot]
        late = self._late(runs, slots, previous, op, flags, server, counts)
        if late:
            slot = slot.copy()
            for at, owner in late.items():
                slot[at] = owner
            order = argsort(slot)
            row, slot, low, counts = row[order], slot[order], low[order], counts[order]
            headers, op, flags = headers[order], op[order], flags[order]
            starts[1:] = slot[1:] != slot[:-1]
            runs = Runs.of(starts)
            slots = slot[runs.begins]
            server = low != store.conn["client_low"][slot]
        return Rows(
            batch=batch,
            row=row,
            runs=runs,
            slots=slots,
            slot=slot,
            server=server,
            counts=counts,
            headers=headers,
            op=op,
            flags=flags,
            length=headers["len"].astype(np.int64),
        )

    def _leave_stray(
        self, keys: Runs, fresh: Bools, slot: Ints, op: NDArray[Any], counts: Bools, begins: Bools
    ) -> None:
        """Begin a generation where a stray key is first spoken on by something else than an RST."""
        stray = np.zeros(len(keys), np.bool_)
        if self._store.strays:
            stray = self._store.conn["state"][slot[keys.begins]] == State.STRAY
        stray[fresh] = op[keys.begins[fresh]] == int(Op.RST)
        if not stray.any():
            return
        other = keys.earliest((op != Op.RST) & counts)
        begins[other[stray & (other >= 0)]] = True

    def _open(
        self, keys: Runs, slot: Ints, begins: Bools, interface: Ints, time_ns: Ints
    ) -> tuple[Ints, Runs, Ints]:
        """Slots of their own for the generations that begin, which replace the keys' latest.

        Returns every row's slot, the runs, and for each run that such a generation began the slot
        of its predecessor (EMPTY for the others).
        """
        store = self._store
        starts = begins.copy()
        starts[keys.begins] = True
        runs = Runs.of(starts)
        opening = begins[runs.begins]
        taken = store.take(int(opening.sum()))
        latest = slot[runs.begins]
        slots = latest.copy()
        slots[opening] = taken
        store.conn["interface"][taken] = interface[runs.begins[opening]]
        # A run's predecessor is the run before it, or what its key's latest generation was.
        key = keys.run[runs.begins]
        same = np.append(False, key[1:] == key[:-1])
        previous = np.where(same, np.append(EMPTY, slots[:-1]), latest)
        previous[~opening] = EMPTY
        store.conn["until_ns"][previous[opening]] = time_ns[runs.begins[opening]]
        # The last generation of each key is the one it maps to from now on.
        changed = opening & np.append(~same[1:], True)
        numbers = store.conn["key"][latest[changed]]
        store.conn["key"][latest[changed]] = EMPTY
        store.conn["key"][slots[changed]] = numbers
        store.table.assign(numbers, slots[changed])
        return slots[runs.run], runs, previous

    def _describe(
        self,
        batch: PacketBatch,
        runs: Runs,
        row: Ints,
        slots: Ints,
        low: Bools,
        op: NDArray[Any],
        new: Bools,
    ) -> None:
        """Fill in what the first packet of each new generation tells."""
        first = runs.begins[new]
        order = np.argsort(row[first], kind="stable")
        first, slots = first[order], slots[new][order]
        headers = batch.headers.take(row[first])
        conn = self._store.conn
        request = op[first] == Op.REQUEST
        src_port, dst_port = headers["src_port"], headers["dst_port"]
        # Who is the client when nobody was seen to ask: the model's guess.
        guessed = np.where(op[first] == Op.RESPONSE, False, src_port >= dst_port)
        sender = request | guessed
        for field in ("cid", "port"):
            src, dst = headers[f"src_{field}"], headers[f"dst_{field}"]
            conn[f"client_{field}"][slots] = np.where(sender, src, dst)
            conn[f"server_{field}"][slots] = np.where(sender, dst, src)
        stray = op[first] == Op.RST
        self._store.strays |= bool(stray.any())
        conn["client_low"][slots] = low[first] == sender
        conn["type"][slots] = headers["type"]
        conn["opened"][slots] = request
        conn["estimated"][slots] = ~request & ~stray
        conn["spoken"][slots] = ~request
        conn["state"][slots] = np.where(
            request, State.CONNECTING, np.where(stray, State.STRAY, State.ESTABLISHED)
        )
        for side in (0, 1):
            self._store.side["base"][slots[request], side] = 0
        conn["number"][slots] = np.arange(self._next, self._next + slots.size)
        self._next += slots.size
        frames = batch.frames
        conn["start_ns"][slots] = conn["last_ns"][slots] = frames.time_ns[row[first]]
        conn["first_number"][slots] = conn["last_number"][slots] = frames.number[row[first]]

    def _late(
        self,
        runs: Runs,
        slots: Ints,
        previous: Ints,
        op: NDArray[Any],
        flags: NDArray[Any],
        server: Bools,
        counts: Bools,
    ) -> dict[int, int]:
        """Rows that are RSTs owed to a generation before, and that generation's slot.

        Runs are looked at one by one, in order, because whether one is still owed an RST depends
        on what the one before kept; only those where the question arises.
        """
        conn = self._store.conn
        asked = (previous != EMPTY) & conn["opened"][slots]
        owing = conn["owed"][slots] != EMPTY if "owed" in conn else np.zeros(len(slots), np.bool_)
        if not asked.any() and not owing.any():
            return {}
        bits = np.bitwise_or.reduceat(shut_bits(op, flags, server) * counts, runs.begins)
        resets = np.flatnonzero((op == Op.RST) & counts)
        first = runs.earliest(server & counts)
        late: dict[int, int] = {}
        taken: set[int] = set()
        place_of = {int(slot): place for place, slot in enumerate(slots.tolist())}
        for place in np.flatnonzero(asked | owing).tolist():
            slot = int(slots[place])
            if asked[place]:
                before = int(previous[place])
                shut, kept = int(conn["shut"][before]), 0
                if (at := place_of.get(before)) is not None:
                    shut |= int(bits[at])
                    ends = (runs.begins[at], runs.lasts[at] + 1)
                    kept = int(np.subtract(*np.searchsorted(resets, ends[::-1]))) - (at in taken)
                if shut != BOTH_SHUT or kept or self._store.over(np.array([before]))[0]:
                    continue
                conn["owed"][slot] = before
            if first[place] < 0:
                continue
            # Once the new server has spoken nothing is owed any more.
            owner, conn["owed"][slot] = int(conn["owed"][slot]), EMPTY
            if op[first[place]] == Op.RST:
                late[int(first[place])] = owner
                taken.add(place)
        return late


def _first_alike(hashes: NDArray[np.uint64]) -> Ints:
    """For every value the place of the first one that is like it, or is in its drawer."""
    bits = (2 * hashes.size).bit_length()
    drawers = (hashes >> np.uint64(64 - bits)).view(np.int64)
    first = np.empty(1 << bits, np.int64)
    # Of those in one drawer the last one written stays.
    first[drawers[::-1]] = np.arange(hashes.size)[::-1]
    return first[drawers]


def _ends(headers: NDArray[Any]) -> NDArray[np.void]:
    """The end of each header record, opaque, as it lies in memory."""
    size = wire.HEADERS.itemsize
    shape, form = headers.shape, f"V{_END.itemsize}"
    return np.ndarray(shape, form, headers, size - _END.itemsize, (size,))


def shut_bits(op: NDArray[Any], flags: NDArray[Any], server: Bools) -> NDArray[np.uint8]:
    """The directions each packet shuts: bit 0 client to server, bit 1 server to client."""
    shutdown = op == Op.SHUTDOWN
    send = shutdown & (flags & ShutdownFlag.SEND != 0)
    receive = shutdown & (flags & ShutdownFlag.RCV != 0)
    to_server = np.where(server, receive, send)
    to_client = np.where(server, send, receive)
    bits: NDArray[np.uint8] = to_server.astype(np.uint8) | to_client.astype(np.uint8) << np.uint8(1)
    return bits
