"""Scenes made by hand: packets one after the other, for the tests of tracking.

A scene is played by a client and a server. Where a rule holds for both directions it is written in
terms of X, who sends, and Y, who receives; ``flipped`` makes the server X.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import strategies
import vsockdump.captures as captures
from oracle import Endpoint, Packet

from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.savefile import Savefile
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import CID_HOST, FIRST_GUEST_CID, HEADERS_LEN, Op, ShutdownFlag, Type

CLIENT: Final = Endpoint(FIRST_GUEST_CID, 40_000)
SERVER: Final = Endpoint(CID_HOST, 1024)
MS: Final = 1_000_000
BUFFER: Final = 1000
BOTH: Final = ShutdownFlag.RCV | ShutdownFlag.SEND


class Script:
    """Packets a millisecond apart; without more words from client to server."""

    def __init__(
        self,
        *,
        flipped: bool = False,
        ends: tuple[Endpoint, Endpoint] = (CLIENT, SERVER),
        type: int = Type.STREAM,
        interfaces: Sequence[Interface] = strategies.INTERFACES,
        after: Script | None = None,
    ) -> None:
        """``after``: the scene whose numbers and time go on."""
        self.flipped = flipped
        self.ends = ends
        self.type = type
        self.interfaces = interfaces
        self.packets: list[Packet] = []
        self.frames: list[bytes] = []
        self.first_number = 1 if after is None else after.first_number + after.count
        self.now_ns = 0 if after is None else after.now_ns

    @property
    def count(self) -> int:
        """Packets so far."""
        return len(self.packets)

    def add(
        self,
        op: int,
        *,
        answer: bool = False,
        len: int = 0,
        fwd: int = 0,
        buf: int = BUFFER,
        flags: int = 0,
        ends: tuple[Endpoint, Endpoint] | None = None,
        type: int | None = None,
        interface: int = 0,
        after: int = MS,
        decoded: bool = True,
        header: dict[str, int] | None = None,
        payload: bytes = b"",
    ) -> Packet:
        """One more packet. ``header`` sets fields of either header, whatever the packet says."""
        source, destination = (ends or self.ends)[:: -1 if answer else 1]
        self.now_ns += after
        packet = Packet(
            number=self.first_number + self.count,
            time_ns=self.now_ns,
            src_cid=source.cid,
            src_port=source.port,
            dst_cid=destination.cid,
            dst_port=destination.port,
            op=op,
            type=self.type if type is None else type,
            len=len,
            flags=flags,
            buf_alloc=buf,
            fwd_cnt=fwd,
            interface=interface,
            decoded=decoded,
        )
        record = strategies.records([packet])[0]
        for name, value in (header or {}).items():
            record[name] = value
        self.packets.append(packet)
        self.frames.append(record.tobytes()[: HEADERS_LEN - (not decoded)] + payload)
        return packet

    def x(self, op: int, **given: Any) -> Packet:
        """A packet of X."""
        return self.add(op, answer=self.flipped, **given)

    def y(self, op: int, **given: Any) -> Packet:
        """A packet of Y."""
        return self.add(op, answer=not self.flipped, **given)

    @property
    def names(self) -> tuple[str, str]:
        """X and Y as findings name them."""
        x, y = (f"{end.cid}.{end.port}" for end in self.ends[:: -1 if self.flipped else 1])
        return x, y

    def open(self, *, buf: int = BUFFER) -> None:
        """The client asks, the server accepts."""
        self.add(Op.REQUEST, buf=buf)
        self.add(Op.RESPONSE, answer=True, buf=buf)

    def batch(self) -> PacketBatch:
        """All packets, decoded."""
        return decode(
            FrameBatch.of(
                self.frames,
                time_ns=[packet.time_ns for packet in self.packets],
                origlen=[
                    max(len(frame), HEADERS_LEN + packet.len)
                    for frame, packet in zip(self.frames, self.packets, strict=True)
                ],
                interface=[packet.interface for packet in self.packets],
                interfaces=self.interfaces,
                first_number=self.first_number,
            )
        )

    def batches(self, *, singly: bool = False) -> list[PacketBatch]:
        """All packets in one batch, or each in its own."""
        whole = self.batch()
        step = 1 if singly else max(len(whole), 1)
        return [whole.take(slice(row, row + step)) for row in range(0, len(whole), step)]

    def track(
        self, *, singly: bool = False, rest: int = 0, finish: bool = True, **options: Any
    ) -> Tracker:
        """A tracker that was fed everything; the capture goes on for ``rest`` nanoseconds."""
        tracker = Tracker(**options)
        for batch in self.batches(singly=singly):
            tracker.feed(batch)
        if finish:
            tracker.finish(self.now_ns + rest)
        return tracker


def captured(name: str) -> Iterator[PacketBatch]:
    """A bundled capture, decoded; a batch is valid until the next one."""
    file = Savefile(captures.path(name))
    try:
        for frames in file.batches():
            yield decode(frames)
    finally:
        file.close()
