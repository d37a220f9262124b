"""Frames of a savefile taken apart with struct alone, to hold our decoding against.

Shares nothing with the package. Sources: `include/uapi/linux/vsockmon.h`, `virtio_vsock.h`.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import plain_savefile

_TAP = struct.Struct("<QQIIHHH2x")
_VIRTIO = struct.Struct("<QQIIIHHIII")
RW = 5
EOM, EOR = 1, 2
Pair = tuple[int, int]
"""Source port and destination port: on loopback all else is the same on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One captured packet."""

    time_ns: int | None
    data: bytes
    origlen: int
    src: tuple[int, int]
    dst: tuple[int, int]
    kind: int
    op: int
    flags: int
    length: int
    payload: bytes

    @property
    def ports(self) -> Pair:
        return self.src[1], self.dst[1]


def frame(packet: plain_savefile.Packet) -> Frame:
    """Take a packet apart; struct.error when it is no whole VIRTIO packet."""
    src_cid, dst_cid, src_port, dst_port, _, _, size = _TAP.unpack_from(packet.data)
    assert size == _VIRTIO.size
    header = _VIRTIO.unpack_from(packet.data, _TAP.size)
    length, kind, op, flags = header[4:8]
    start = _TAP.size + size
    return Frame(
        time_ns=packet.time_ns,
        data=packet.data,
        origlen=packet.origlen,
        src=(src_cid, src_port),
        dst=(dst_cid, dst_port),
        kind=kind,
        op=op,
        flags=flags,
        length=length,
        payload=packet.data[start : start + length],
    )


def frames(path: Path) -> list[Frame]:
    """All packets of a savefile, which has to be whole."""
    return [frame(packet) for packet in plain_savefile.read(path).packets]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one side of a connection sent: how much, its SHA-256, the sizes of its messages."""

    count: int
    sha256: str
    messages: list[int]
    flags: list[int]


def sent(found: Iterable[Frame]) -> dict[Pair, Sent]:
    """What was sent from one port to another, by both ports.

    Only for captures in which no pair of ports is used twice.
    """
    data: dict[Pair, list[Frame]] = defaultdict(list)
    for each in found:
        if each.op == RW:
            data[each.ports].append(each)
    return {ports: _joined(packets) for ports, packets in data.items()}


def _joined(packets: list[Frame]) -> Sent:
    whole = hashlib.sha256()
    messages, flags = [], []
    size = 0
    for each in packets:
        whole.update(each.payload)
        size += each.length
        if each.flags & EOM:
            messages.append(size)
            flags.append(each.flags)
            size = 0
    count = sum(each.length for each in packets)
    return Sent(count=count, sha256=whole.hexdigest(), messages=messages, flags=flags)
