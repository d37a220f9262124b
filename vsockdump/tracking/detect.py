"""Find what is wrong in a batch, from the columns the tracker has made.

Each rule is a mask over the sorted rows; only rows that raise something become objects. A code is
raised once for each direction of a connection, stalls each time, so that a hostile guest cannot
make a report of unbounded length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from vsockdump import kernels, wire
from vsockdump.frames import Bools, Ints
from vsockdump.packets import Layer, PacketBatch, Status
from vsockdump.tracking.assign import Rows
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.credit import Account, Life, signed
from vsockdump.tracking.findings import BITS, Finding, Raised
from vsockdump.tracking.states import ENDED, State
from vsockdump.tracking.store import Store
from vsockdump.tracking.times import Stall
from vsockdump.wire import Op, ShutdownFlag, Type

SKB_TRUESIZE: Final = 576
"""What Linux accounts for a queued packet besides its bytes: SKB_TRUESIZE(0) on 64 bits."""
MERGED: Final = 128
"""GOOD_COPY_LEN: payload up to this size may be merged into the packet queued before it."""
_NEAR: Final = 0.9
"""Share of the receiver's packet limit from which it is worth a word."""

_UNDECODED: Final = {
    Status.MALFORMED: "malformed",
    Status.TRUNCATED: "truncated-headers",
    Status.UNSUPPORTED: "unsupported",
}

Facts = dict[str, int | str | bool]


def names(store: Store, slot: int) -> tuple[str, str]:
    """Client and server of a connection as ``CID.PORT``."""
    conn = store.conn
    return (
        f"{conn['client_cid'][slot]}.{conn['client_port'][slot]}",
        f"{conn['server_cid'][slot]}.{conn['server_port'][slot]}",
    )


class Detector:
    """Raises findings batch by batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[tuple[str, int]] = set()
        """Findings that are made once a run: code and layer, or kernel release and bug."""
        self._interfaces = 0
        """Interfaces looked at so far."""

    def feed(
        self,
        rows: Rows,
        life: Life,
        accounts: tuple[Account, Account],
        outstanding: tuple[Ints, Ints],
    ) -> list[Raised]:
        """What the followed packets of a batch show."""
        found: list[Raised] = []
        found += self._lives(rows, life)
        for sender, account in enumerate(accounts):
            found += self._credit(rows, account, sender)
            found += self._receiver(rows, life, account, outstanding[sender], sender)
        found += self._requests(rows, life)
        found += self._headers(rows)
        return found

    # -- one finding a direction --------------------------------------------------------------

    def _raise(
        self,
        rows: Rows,
        mask: Bools,
        code: str,
        sender: int | None,
        tell: Callable[[int, str, str], tuple[str, Facts]],
    ) -> list[Raised]:
        """Raise ``code`` at the first row of each direction where ``mask`` is set.

        ``sender`` names the direction; None: that of the row's sender. ``tell`` is given the
        (sorted) row and the direction's sender and receiver, and gives the sentence and its facts.
        """
        hits = np.flatnonzero(mask)
        if not hits.size:
            return []
        told, bit = self._store.side["told"], np.uint64(BITS[code])
        senders = (
            rows.server[hits].astype(np.intp) if sender is None else np.full(hits.size, sender)
        )
        slots = rows.slot[hits]
        fresh = told[slots, senders] & bit == 0
        hits, senders, slots = hits[fresh], senders[fresh], slots[fresh]
        _, first = np.unique(2 * slots + senders, return_index=True)
        told[slots[first], senders[first]] |= bit
        found = []
        for place in first.tolist():
            at, pair = int(hits[place]), names(self._store, int(slots[place]))
            if senders[place]:
                pair = pair[::-1]
            message, facts = tell(at, *pair)
            found.append((int(rows.row[at]), self._finding(rows, at, code, message, facts)))
        return found

    def _finding(self, rows: Rows, at: int, code: str, message: str, facts: Facts) -> Finding:
        return Finding(
            code=code,
            number=int(rows.number[at]),
            time_ns=int(rows.time_ns[at]),
            conn=int(self._store.conn["number"][rows.slot[at]]),
            message=message,
            facts=facts,
        )

    # -- the life of a connection -------------------------------------------------------------

    def _lives(self, rows: Rows, life: Life) -> list[Raised]:
        found: list[Raised] = []
        data = (rows.op == Op.RW) & (rows.length > 0)
        rst = (rows.op == Op.RST) & rows.counts
        active_data = data & life.active

        def plain(sentence: str) -> Callable[[int, str, str], tuple[str, Facts]]:
            return lambda at, sender, receiver: (
                sentence.format(sender=sender, receiver=receiver),
                {"length": int(rows.length[at])} if data[at] else {},
            )

        early = active_data & (life.before == State.CONNECTING)
        for server, sentence in (
            (0, "{sender} sent data before {receiver} answered the request"),
            (1, "{sender} sent data to {receiver} instead of an answer to its request"),
        ):
            mask = early & (rows.server == bool(server))
            found += self._raise(rows, mask, "data-before-response", server, plain(sentence))
        bit = np.where(rows.server, 2, 1)
        found += self._raise(
            rows,
            active_data & (life.shut_before & bit != 0),
            "data-after-shutdown",
            None,
            plain("{sender} sent data to {receiver} in a direction that is shut"),
        )
        over = np.isin(life.before, list(ENDED)) & rows.counts
        found += self._raise(
            rows,
            data & over,
            "data-after-rst",
            None,
            plain("{sender} sent data to {receiver} after the connection had ended"),
        )
        # Linux ends an ordinary close with two RSTs.
        found += self._raise(
            rows,
            rst & over & (life.before != State.CLOSED),
            "rst-after-rst",
            None,
            plain("{sender} sent an RST to {receiver} after the connection had ended"),
        )
        ends = rst & life.active
        refused = ends & (life.after == State.REFUSED)
        found += self._raise(
            rows,
            refused & rows.server,
            "refused",
            None,
            plain("{sender} refused the connection from {receiver}"),
        )
        found += self._raise(
            rows,
            refused & ~rows.server,
            "no-answer",
            None,
            plain("{sender} gave up: {receiver} did not answer its request"),
        )
        found += self._raise(
            rows,
            ends & (life.after == State.RESET),
            "reset",
            None,
            plain("{sender} reset the connection with {receiver} without a SHUTDOWN"),
        )
        middle = self._store.conn["estimated"][rows.slots] & ~self._store.conn["opened"][rows.slots]
        if middle.any():
            begins = np.zeros(rows.op.size, np.bool_)
            begins[rows.runs.begins[middle]] = True
            found += self._raise(
                rows,
                begins,
                "mid-stream",
                0,
                plain("the capture began after {sender} and {receiver} had connected"),
            )
        return found

    # -- credit -------------------------------------------------------------------------------

    def _credit(self, rows: Rows, account: Account, sender: int) -> list[Raised]:
        found: list[Raised] = []
        known = account.in_flight != NULL
        room = account.buf_alloc
        # A packet sent while more than the window was out already is no new violation: the
        # receiver shrank it, and the sender may not have heard of that.
        over = account.data & known & (account.in_flight > room)
        over &= account.in_flight - rows.length <= room
        found += self._raise(
            rows,
            over,
            "beyond-window",
            sender,
            lambda at, x, y: (
                f"{x} sent beyond the window of {y}: {account.in_flight[at]} bytes in flight, "
                f"{room[at]} allowed",
                {"in_flight": int(account.in_flight[at]), "buf_alloc": int(room[at])},
            ),
        )
        opened = self._store.conn["opened"][rows.slot]
        if not account.ahead.size:
            return found
        found += self._raise(
            rows,
            (account.ahead > 0) & opened,
            "fwd-ahead",
            sender,
            lambda at, x, y: (
                f"{y} has read at least {account.ahead[at]} bytes more than the capture shows "
                f"{x} sending: packets are missing from the capture, or {y} is broken",
                {"missing": int(account.ahead[at])},
            ),
        )
        return found

    def _receiver(
        self, rows: Rows, life: Life, account: Account, outstanding: Ints, sender: int
    ) -> list[Raised]:
        found: list[Raised] = []
        receives = (rows.server != bool(sender)) & life.active
        shutdown = receives & (rows.op == Op.SHUTDOWN) & (rows.flags & ShutdownFlag.RCV != 0)
        resets = receives & (rows.op == Op.RST) & (life.after == State.RESET)
        if shutdown.any() or resets.any():
            unread = self._unread(rows, account, resets)
            found += self._raise(
                rows,
                (shutdown | resets) & (unread > 0),
                "unread-data",
                sender,
                lambda at, x, y: (
                    f"{y} closed with {unread[at]} bytes from {x} unread",
                    {"unread": int(unread[at])},
                ),
            )
        advert = np.flatnonzero(account.advert)
        if advert.size:
            found += self._adverts(rows, account, sender, advert)
        limit = account.buf_alloc // SKB_TRUESIZE
        crowded = (outstanding > _NEAR * limit) & (account.buf_alloc > 0)
        crowded &= 2 * account.in_flight < account.buf_alloc
        # A STREAM receiver merges packets up to this size, so that they do not count one by one.
        stream = self._store.conn["type"][rows.slot] == Type.STREAM
        crowded &= ~stream | (account.in_flight > MERGED * outstanding)
        if not crowded.any():
            return found

        def tell(at: int, x: str, y: str) -> tuple[str, Facts]:
            return (
                f"{outstanding[at]} packets from {x} wait unread at {y}, which holds about "
                f"{limit[at]} however small they are",
                {
                    "outstanding": int(outstanding[at]),
                    "limit": int(limit[at]),
                    "in_flight": int(account.in_flight[at]),
                    "buf_alloc": int(account.buf_alloc[at]),
                },
            )

        found += self._raise(rows, crowded & life.alive, "packet-limit-near", sender, tell)
        # An RST changes no figure: they are those the receiver reset the connection with.
        found += self._raise(rows, crowded & resets, "packet-limit-reset", sender, tell)
        return found

    def _unread(self, rows: Rows, account: Account, resets: Bools) -> Ints:
        """What the receiver leaves unread when it closes or resets.

        Credit is never taken from an RST, because one for an unknown socket has 0 in all fields;
        one with a buffer, though, knows better than the advertisement before it what was read.
        """
        headers = rows.batch.headers[rows.row]
        told = resets & (headers["buf_alloc"] > 0) & (account.tx_cnt != NULL)
        left = signed(account.tx_cnt - headers["fwd_cnt"].astype(np.int64))
        return np.where(told, left, account.in_flight)

    def _adverts(self, rows: Rows, account: Account, sender: int, advert: Ints) -> list[Raised]:
        """What an advertisement says against the one before it."""
        headers, side = rows.batch.headers, self._store.side
        fwd = headers["fwd_cnt"][rows.row[advert]].astype(np.int64)
        room = headers["buf_alloc"][rows.row[advert]].astype(np.int64)
        same = np.append(False, rows.runs.run[advert][1:] == rows.runs.run[advert][:-1])
        place = (rows.slot[advert], 1 - sender)
        known = same | side["heard"][place]
        before_fwd = np.where(same, np.append(0, fwd[:-1]), side["heard_fwd"][place])
        before_room = np.where(same, np.append(0, room[:-1]), side["heard_buf"][place])
        back = np.zeros(rows.op.size, np.bool_)
        back[advert] = known & (signed(fwd - before_fwd) < 0)
        shrunk = np.zeros(rows.op.size, np.bool_)
        in_flight = account.in_flight[advert]
        shrunk[advert] = known & (room < before_room) & (room < in_flight)
        last = np.append(~same[1:], True)
        place = (rows.slot[advert][last], 1 - sender)
        side["heard"][place] = True
        side["heard_fwd"][place], side["heard_buf"][place] = fwd[last], room[last]
        found = self._raise(
            rows,
            back,
            "fwd-backwards",
            sender,
            lambda at, x, y: (
                f"{y} took back what it had told {x} it had read",
                {"fwd_cnt": int(headers["fwd_cnt"][rows.row[at]])},
            ),
        )
        return found + self._raise(
            rows,
            shrunk,
            "buf-shrunk",
            sender,
            lambda at, x, y: (
                f"{y} shrank its buffer to {headers['buf_alloc'][rows.row[at]]} bytes while "
                f"{account.in_flight[at]} from {x} were in flight",
                {
                    "buf_alloc": int(headers["buf_alloc"][rows.row[at]]),
                    "in_flight": int(account.in_flight[at]),
                },
            ),
        )

    def _requests(self, rows: Rows, life: Life) -> list[Raised]:
        """CREDIT_REQUESTs, and whether they are answered."""
        side, runs = self._store.side, rows.runs
        asks = life.active & (rows.op == Op.CREDIT_REQUEST)
        asked = side["asked"][rows.slots]
        if not asks.any() and (asked == NULL).all():
            return []
        for sender in (0, 1):
            mine = runs.latest(asks & (rows.server == bool(sender)))[runs.lasts]
            speaks = life.active & (rows.op != Op.RST) & (rows.server != bool(sender))
            answer = runs.latest(speaks)[runs.lasts]
            kept = np.where(answer >= 0, NULL, asked[:, sender])
            asks_on = mine > answer
            side["asked"][rows.slots, sender] = np.where(asks_on, rows.number[mine], kept)
            side["asked_ns"][rows.slots[asks_on], sender] = rows.time_ns[mine[asks_on]]
        return self._raise(
            rows,
            asks,
            "credit-request",
            None,
            lambda at, x, y: (
                f"{x} asked {y} for credit, which Linux never does: a userspace device or "
                "another system",
                {},
            ),
        )

    # -- headers ------------------------------------------------------------------------------

    def _headers(self, rows: Rows) -> list[Raised]:
        headers = rows.batch.headers
        differ = np.zeros(len(rows.batch), np.bool_)
        for name in ("src_cid", "dst_cid", "src_port", "dst_port"):
            differ |= headers[name] != headers[f"virtio_{name}"]
        meanings = np.zeros(max(Op) + 2, np.uint16)
        for op, meaning in wire.MON_OP_OF.items():
            meanings[op] = meaning
        differ |= headers["mon_op"] != meanings[np.minimum(headers["op"], max(Op) + 1)]
        found = self._raise(
            rows,
            differ[rows.row],
            "headers-differ",
            None,
            lambda at, x, y: (f"the two headers of a packet from {x} to {y} disagree", {}),
        )
        src = headers["src_cid"][rows.row]
        spoofed = (src == wire.CID_ANY) | (src == wire.CID_HYPERVISOR)
        found += self._raise(
            rows,
            spoofed,
            "spoofed-cid",
            None,
            lambda at, x, y: (
                f"a packet claims to come from CID {int(src[at])}, which sends none",
                {"src_cid": int(src[at])},
            ),
        )
        excess = rows.batch.excess[rows.row] > 0
        found += self._raise(
            rows,
            excess,
            "excess-payload",
            None,
            lambda at, x, y: (
                f"a packet from {x} to {y} was captured with more payload than it carried",
                {
                    "length": int(rows.length[at]),
                    "excess": int(rows.batch.excess[rows.row[at]]),
                },
            ),
        )
        return found + self._raise(
            rows,
            ~rows.counts,
            "duplicate",
            None,
            lambda at, x, y: (
                f"packets from {x} to {y} were captured on a second device too, and count once",
                {"interface": int(rows.batch.frames.interface[rows.row[at]])},
            ),
        )

    # -- packets without a connection ----------------------------------------------------------

    def undecoded(self, batch: PacketBatch) -> list[Raised]:
        """Packets whose headers were not decoded: once for each code and layer."""
        found: list[Raised] = []
        stops = batch.stops
        kinds = stops["status"].astype(np.uint16) << 8 | stops["layer"]
        for kind, at in zip(*np.unique(kinds, return_index=True), strict=True):
            code, layer = _UNDECODED[Status(kind >> 8)], Layer(kind & 0xFF)
            if (layer is Layer.PAYLOAD and code != "malformed") or (code, layer) in self._seen:
                continue
            self._seen.add((code, layer))
            row = int(batch.stop_rows[at])
            finding = Finding(
                code=code,
                number=int(batch.frames.number[row]),
                time_ns=int(batch.frames.time_ns[row]),
                message=f"a packet could not be decoded: {batch.stop(row)}",
                facts={"layer": layer.name.lower()},
            )
            found.append((row, finding))
        return found

    def interfaces(self, batch: PacketBatch) -> list[Raised]:
        """What kernels of interfaces are known to garble, once each release."""
        found: list[Raised] = []
        fresh = batch.frames.interfaces[self._interfaces :]
        self._interfaces += len(fresh)
        for interface in fresh:
            version = kernels.parse(interface.kernel)
            if version is None:
                continue
            release = ".".join(map(str, version))
            for place, bug in enumerate(kernels.TAP_BUGS):
                if bug.affects(version) and (release, place) not in self._seen:
                    self._seen.add((release, place))
                    message = f"on Linux {release} {bug.effect}: {bug.advice}"
                    facts: Facts = {"kernel": release, "bug": bug.name}
                    finding = Finding(code="kernel-tap-bug", message=message, facts=facts)
                    found.append((NULL, finding))
        return found

    def repaired(self, rows: Rows, repaired: Ints) -> list[Raised]:
        """Pieces whose payload was put right."""
        mask = np.zeros(rows.op.size, np.bool_)
        mask[repaired] = True
        return self._raise(
            rows,
            mask,
            "payload-repaired",
            None,
            lambda at, x, y: (
                f"payload from {x} to {y} was put right: the kernel repeats a split buffer "
                "from its start",
                {"length": int(rows.length[at])},
            ),
        )

    def stalls(self, rows: Rows, stalls: list[tuple[int, Stall]]) -> list[Raised]:
        """Stalls that ended in this batch."""
        return [(int(rows.row[at]), self.stall(stall, int(rows.slot[at]))) for at, stall in stalls]

    def stall(self, stall: Stall, slot: int, *, lasts: bool = False) -> Finding:
        """A stall as a finding; ``lasts``: it goes on, and whether it recovers nobody knows yet."""
        sender, receiver = names(self._store, slot)[:: -1 if stall.sender else 1]
        lasted = f"{stall.duration_ns / 1e9:.3f} s"
        facts: dict[str, Any] = {
            "start_ns": stall.start_ns,
            "duration_ns": stall.duration_ns,
            "not_reading": receiver,
            "recovered": stall.recovered,
        }
        if lasts:
            message = f"{sender} has been unable to send for {lasted}: {receiver} is not reading"
        else:
            end = "then read on" if stall.recovered else "and never did"
            message = f"{sender} could not send for {lasted}: {receiver} was not reading, {end}"
        return Finding(
            code="stall" if stall.recovered or lasts else "stall-unrecovered",
            number=stall.number,
            time_ns=stall.start_ns,
            conn=stall.conn,
            message=message,
            facts=facts,
        )
