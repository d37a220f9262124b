"""docs/credit-model.md once more, one packet at a time and as plainly as can be.

The tests hold the vectorised tracker against this. It is written from the document alone: slow,
without bounds on its memory, and without a thought for anything but being readable beside it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from typing import Final, NamedTuple

from vsockdump.wire import CID_LOCAL, Op, RwFlag, ShutdownFlag, Type

WRAP: Final = 1 << 32
DEFAULT_STALL_THRESHOLD_NS: Final = 100_000_000


class Endpoint(NamedTuple):
    """One end of a connection."""

    cid: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What the model reads of a packet; endpoints are the vsockmon header's.

    ``decoded``: both headers are there whole. If not, the header fields mean nothing.
    """

    number: int
    time_ns: int
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: int
    type: int = Type.STREAM
    len: int = 0
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0
    interface: int = 0
    decoded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the model says after a packet, of its sender's direction; None is null."""

    conn: int | None = None
    tx_cnt: int | None = None
    in_flight: int | None = None
    window: int | None = None
    effective_window: int | None = None
    outstanding: int | None = None
    stalled: bool = False
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A stall that lasted for the threshold or longer.

    ``sender`` is who could not send (0 the client, 1 the server), ``number`` the packet that began
    it, ``end_number`` the one that ended it; None where none did.
    """

    conn: int
    sender: int
    number: int
    start_ns: int
    duration_ns: int
    recovered: bool
    end_number: int | None


class Advertisement(NamedTuple):
    """What one side's latest packet, other than an RST, said."""

    buf_alloc: int
    fwd_cnt: int


@dataclass(slots=True, kw_only=True)
class Direction:
    """The way from ``sender`` to ``receiver``; ``base`` is None while it is not known."""

    sender: Endpoint
    receiver: Endpoint
    base: int | None
    estimated: bool = False
    shut: bool = False
    packets: int = 0
    bytes: int = 0
    sent: int = 0
    receiver_said: Advertisement | None = None
    sender_said: Advertisement | None = None
    min_window: int | None = None
    min_effective_window: int | None = None
    max_in_flight: int | None = None
    stall_start: tuple[int, int] | None = None
    """Number and time of the packet that began the stall which goes on."""
    stalls: list[Stall] = field(default_factory=list)
    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    """End offset and time of each data packet that no fwd_cnt has covered yet."""
    drains: list[int] = field(default_factory=list)
    message: int = 0
    """Bytes so far of the message that goes on."""
    messages: list[int] = field(default_factory=list)

    @property
    def tx_cnt(self) -> int | None:
        return None if self.base is None else self.base + self.sent

    @property
    def in_flight(self) -> int | None:
        if self.tx_cnt is None or self.receiver_said is None:
            return None
        return (self.tx_cnt - self.receiver_said.fwd_cnt) % WRAP

    @property
    def window(self) -> int | None:
        if self.in_flight is None or self.receiver_said is None:
            return None
        return max(0, self.receiver_said.buf_alloc - self.in_flight)

    @property
    def effective_window(self) -> int | None:
        if self.in_flight is None or self.receiver_said is None or self.sender_said is None:
            return None
        allowed = min(self.sender_said.buf_alloc, self.receiver_said.buf_alloc)
        return max(0, allowed - self.in_flight)

    @property
    def outstanding(self) -> int | None:
        return None if self.in_flight is None else len(self.waiting)

    @property
    def unread_bytes(self) -> int | None:
        return self.in_flight

    @property
    def stalled_ns(self) -> int:
        return sum(stall.duration_ns for stall in self.stalls)

    def receiver_advertises(self, said: Advertisement, time_ns: int) -> None:
        self.receiver_said = said
        if self.base is None:
            self.base = said.fwd_cnt - self.sent
        ahead = signed(said.fwd_cnt - self.base - self.sent)
        if ahead > 0:
            self.base += ahead
            self.estimated = True
        assert self.tx_cnt is not None and self.in_flight is not None
        covered = self.tx_cnt - self.in_flight
        while self.waiting and self.waiting[0][0] <= covered:
            self.drains.append(elapsed(self.waiting.popleft()[1], time_ns))

    def send(self, packet: Packet) -> None:
        """Account for an RW packet."""
        self.sent += packet.len
        if packet.len and self.tx_cnt is not None:
            self.waiting.append((self.tx_cnt, packet.time_ns))
        if packet.type == Type.SEQPACKET:
            self.message += packet.len
            if packet.flags & RwFlag.EOM:
                self.messages.append(self.message)
                self.message = 0

    def note_extremes(self) -> None:
        self.min_window = least(self.min_window, self.window)
        self.min_effective_window = least(self.min_effective_window, self.effective_window)
        self.max_in_flight = most(self.max_in_flight, self.in_flight)


@dataclass(slots=True, kw_only=True)
class Connection:
    """One generation of a key."""

    conn: int
    type: int
    client: Endpoint
    server: Endpoint
    opened: bool
    state: str
    directions: list[Direction]
    """Client to server, then server to client."""
    start_ns: int
    last_ns: int
    estimated_from_start: bool
    ended_ns: int | None = None
    succeeded_ns: int | None = None
    """When a REQUEST opened the key's next generation."""
    connect_ns: int | None = None
    limited_ns: int = 0
    in_flight_ns: int = 0
    idle_ns: int = 0

    @property
    def estimated(self) -> bool:
        return self.estimated_from_start or any(way.estimated for way in self.directions)

    @property
    def end_ns(self) -> int:
        return self.last_ns if self.ended_ns is None else self.ended_ns

    @property
    def client_to_server(self) -> Direction:
        return self.directions[0]

    @property
    def server_to_client(self) -> Direction:
        return self.directions[1]

    @property
    def stalls(self) -> list[Stall]:
        """Of both directions, in order of their first packet."""
        both = [stall for way in self.directions for stall in way.stalls]
        return sorted(both, key=lambda stall: stall.number)


def signed(number: int) -> int:
    """``number`` modulo 2^32, taken as a signed 32-bit number."""
    number %= WRAP
    return number - WRAP if number >= WRAP // 2 else number


def elapsed(start_ns: int, end_ns: int) -> int:
    """The time between; a clock that was set back made none."""
    return max(0, end_ns - start_ns)


def least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def quantile(values: list[int], share: float) -> int | None:
    """The nearest rank: the smallest value that ``share`` of all values do not pass."""
    return sorted(values)[max(ceil(share * len(values)), 1) - 1] if values else None


ENDED: Final = ("refused", "closed", "reset")

ROWS: Final = {
    # state: RESPONSE, SHUTDOWN and one direction shut, SHUTDOWN and both shut, RST, anything else
    "connecting": ("established", "half-closed", "closing", "refused", "established"),
    "established": ("", "half-closed", "closing", "reset", ""),
    "half-closed": ("", "", "closing", "closed", ""),
    "closing": ("", "", "", "closed", ""),
    "refused": ("", "", "", "", ""),
    "closed": ("", "", "", "", ""),
    "reset": ("", "", "", "", ""),
    "stray": ("", "", "", "", ""),
}
"""The document's table. A stray meets nothing but RSTs: the rest opens a new generation."""


@dataclass(slots=True)
class Key:
    """What is remembered of two endpoints and a type."""

    interface: int
    latest: Connection | None = None
    owed: Connection | None = None
    """The closing generation that an RST from the latest one's server still belongs to."""


class Oracle:
    """Feed it every packet in order, then finish once."""

    def __init__(self, *, stall_threshold_ns: int = DEFAULT_STALL_THRESHOLD_NS) -> None:
        self.stall_threshold_ns = stall_threshold_ns
        self.connections: list[Connection] = []
        self._keys: dict[tuple[frozenset[Endpoint], int], Key] = {}
        self._newest_ns: int | None = None

    def feed(self, packet: Packet) -> Figures:
        if self._newest_ns is None or packet.time_ns > self._newest_ns:
            self._newest_ns = packet.time_ns
        if not packet.decoded or packet.type not in (Type.STREAM, Type.SEQPACKET):
            return Figures()
        sender, receiver = endpoints(packet)
        if sender == receiver:
            return Figures()
        identity = (frozenset((sender, receiver)), packet.type)
        key = self._keys.setdefault(identity, Key(packet.interface))
        if packet.interface != key.interface:
            assert key.latest is not None
            return self._figures(key.latest, sender)
        connection = self._belongs(key, packet)
        self._apply(connection, packet)
        return self._figures(connection, sender)

    def finish(self, end_ns: int | None = None) -> list[Connection]:
        """The capture ends, at its newest packet unless told otherwise: all connections."""
        if end_ns is None:
            end_ns = self._newest_ns or 0
        for connection in self.connections:
            if connection.ended_ns is None:
                over_ns = connection.succeeded_ns
                over_ns = end_ns if over_ns is None else over_ns
                self._pass_time(connection, over_ns)
                for sender in (0, 1):
                    self._end_stall(connection, sender, None, over_ns)
        return self.connections

    @property
    def stalls(self) -> list[Stall]:
        """Of all connections, in order of their first packet."""
        every = [stall for connection in self.connections for stall in connection.stalls]
        return sorted(every, key=lambda stall: stall.number)

    # Which connection a packet belongs to.

    def _belongs(self, key: Key, packet: Packet) -> Connection:
        sender, _ = endpoints(packet)
        latest = key.latest
        if packet.op == Op.REQUEST:
            owed = latest if latest is not None and latest.state == "closing" else None
            key.owed = owed
            if latest is not None:
                latest.succeeded_ns = packet.time_ns
            key.latest = self._open(packet, client_sent=True, state="connecting")
            return key.latest
        if latest is None and packet.op == Op.RST:
            key.latest = self._open(packet, client_sent=guess(packet), state="stray")
            return key.latest
        if latest is None or (latest.state == "stray" and packet.op != Op.RST):
            key.latest = self._open(packet, client_sent=guess(packet), state="established")
            return key.latest
        if key.owed is not None and sender == latest.client_to_server.receiver:
            owed, key.owed = key.owed, None
            if packet.op == Op.RST:
                return owed
        return latest

    def _open(self, packet: Packet, *, client_sent: bool, state: str) -> Connection:
        sender, receiver = endpoints(packet)
        requested = packet.op == Op.REQUEST
        base = 0 if requested else None
        there = Direction(sender=sender, receiver=receiver, base=base)
        back = Direction(sender=receiver, receiver=sender, base=base)
        shown = Endpoint(packet.src_cid, packet.src_port), Endpoint(packet.dst_cid, packet.dst_port)
        directions = [there, back]
        if not client_sent:
            shown = shown[::-1]
            directions.reverse()
        connection = Connection(
            conn=len(self.connections) + 1,
            type=packet.type,
            client=shown[0],
            server=shown[1],
            opened=requested,
            state=state,
            directions=directions,
            start_ns=packet.time_ns,
            last_ns=packet.time_ns,
            estimated_from_start=state == "established",
        )
        self.connections.append(connection)
        return connection

    # What a packet does to its connection.

    def _apply(self, connection: Connection, packet: Packet) -> None:
        sender, _ = endpoints(packet)
        for way in connection.directions:
            if way.sender == sender:
                way.packets += 1
                way.bytes += packet.len if packet.op == Op.RW else 0
        if connection.ended_ns is not None:
            return
        self._pass_time(connection, packet.time_ns)
        connection.last_ns = packet.time_ns
        if packet.op == Op.SHUTDOWN:
            self._shut(connection, packet)
        connection.state = self._next_state(connection, packet)
        if connection.state in ENDED:
            connection.ended_ns = packet.time_ns
        if packet.op == Op.RESPONSE and connection.opened and connection.connect_ns is None:
            connection.connect_ns = elapsed(connection.start_ns, packet.time_ns)
        if packet.op != Op.RST:
            said = Advertisement(packet.buf_alloc, packet.fwd_cnt)
            for way in connection.directions:
                if way.sender == sender:
                    way.sender_said = said
                if way.receiver == sender:
                    way.receiver_advertises(said, packet.time_ns)
        if packet.op == Op.RW:
            for way in connection.directions:
                if way.sender == sender:
                    way.send(packet)
        for direction, way in enumerate(connection.directions):
            way.note_extremes()
            if stalled(connection, way):
                way.stall_start = way.stall_start or (packet.number, packet.time_ns)
            else:
                self._end_stall(connection, direction, packet.number, packet.time_ns)

    def _shut(self, connection: Connection, packet: Packet) -> None:
        sender, _ = endpoints(packet)
        for way in connection.directions:
            says_send = way.sender == sender and packet.flags & ShutdownFlag.SEND
            says_rcv = way.receiver == sender and packet.flags & ShutdownFlag.RCV
            way.shut = way.shut or bool(says_send or says_rcv)

    def _next_state(self, connection: Connection, packet: Packet) -> str:
        if connection.state == "connecting" and packet.op == Op.REQUEST:
            return "connecting"
        response, one_shut, both_shut, rst, anything_else = ROWS[connection.state]
        shut = [way.shut for way in connection.directions]
        new = anything_else
        if packet.op == Op.RESPONSE:
            new = response
        elif packet.op == Op.SHUTDOWN and all(shut):
            new = both_shut
        elif packet.op == Op.SHUTDOWN and any(shut):
            new = one_shut
        elif packet.op == Op.RST:
            new = rst
        return new or connection.state

    def _pass_time(self, connection: Connection, now_ns: int) -> None:
        """Say where the time since the connection's last packet went."""
        gone = elapsed(connection.last_ns, now_ns)
        if connection.state == "stray":
            return
        if any(stalled(connection, way) for way in connection.directions):
            connection.limited_ns += gone
        elif any(way.in_flight for way in connection.directions):
            connection.in_flight_ns += gone
        else:
            connection.idle_ns += gone

    def _end_stall(
        self, connection: Connection, sender: int, end_number: int | None, now_ns: int
    ) -> None:
        way = connection.directions[sender]
        if way.stall_start is None:
            return
        number, start_ns = way.stall_start
        way.stall_start = None
        duration_ns = elapsed(start_ns, now_ns)
        if duration_ns >= self.stall_threshold_ns:
            way.stalls.append(
                Stall(
                    conn=connection.conn,
                    sender=sender,
                    number=number,
                    start_ns=start_ns,
                    duration_ns=duration_ns,
                    recovered=bool(way.effective_window),
                    end_number=end_number,
                )
            )

    def _figures(self, connection: Connection, sender: Endpoint) -> Figures:
        way = next(way for way in connection.directions if way.sender == sender)
        return Figures(
            conn=connection.conn,
            tx_cnt=way.tx_cnt,
            in_flight=way.in_flight,
            window=way.window,
            effective_window=way.effective_window,
            outstanding=way.outstanding,
            stalled=stalled(connection, way),
            state=connection.state,
        )


def endpoints(packet: Packet) -> tuple[Endpoint, Endpoint]:
    """Sender and receiver as the key has them: CID 1 on one side makes it 1 on both."""
    cids = packet.src_cid, packet.dst_cid
    if CID_LOCAL in cids:
        cids = CID_LOCAL, CID_LOCAL
    return Endpoint(cids[0], packet.src_port), Endpoint(cids[1], packet.dst_port)


def guess(packet: Packet) -> bool:
    """Whether the sender of a mid-stream connection's first packet is its client."""
    if packet.op == Op.RESPONSE:
        return False
    return packet.src_port >= packet.dst_port


def stalled(connection: Connection, way: Direction) -> bool:
    ended = connection.ended_ns is not None
    return way.effective_window == 0 and not way.shut and not ended
