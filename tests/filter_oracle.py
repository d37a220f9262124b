"""What a filter means, told one frame at a time, and the kernel's word on the same frame.

Written after docs/filters.md alone: plain Python numbers, no column, no program, no decode.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from vsockdump import wire
from vsockdump.filters import Instruction, pack, tree

COOKED: Final = {
    wire.LINKTYPE_VSOCK: (0, None),
    wire.LINKTYPE_LINUX_SLL: (wire.SLL_LEN, wire.SLL_HATYPE),
    wire.LINKTYPE_LINUX_SLL2: (wire.SLL2_LEN, wire.SLL2_HATYPE),
}
SO_ATTACH_FILTER: Final = 26
SIGNS: Final = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

Tracked = Mapping[str, int | str | bool | frozenset[str] | None]
"""One row of tracking: the numbers by name, ``state``, ``stalled`` and ``findings``."""


class Frame:
    """One frame, taken apart byte by byte."""

    def __init__(self, data: bytes, linktype: int, tracked: Tracked | None = None) -> None:
        self.data = data
        self.tracked = tracked or {}
        start, hatype = COOKED[linktype]
        self.vsock: bytes = data[start:]
        if hatype is not None:
            told = data[hatype : hatype + 2]
            if len(data) < start or told != wire.ARPHRD_VSOCKMON.to_bytes(2, "big"):
                self.vsock = b""
        self.has_mon = len(self.vsock) >= wire.MON_HDR_LEN
        self.has_virtio = False
        self.payload = b""
        if self.has_mon:
            transport, transport_len = struct.unpack_from("<HH", self.vsock, 26)
            behind = self.vsock[wire.MON_HDR_LEN :]
            self.has_virtio = (
                transport == wire.Transport.VIRTIO
                and transport_len >= wire.VIRTIO_HDR_LEN
                and len(behind) >= wire.VIRTIO_HDR_LEN
            )
            self.payload = behind[transport_len:]
            if self.has_virtio:
                (length,) = struct.unpack_from("<I", behind, 24)
                self.payload = self.payload[:length]

    def passes(self, node: tree.Node) -> bool:
        """Whether the filter lets the frame through."""
        match node:
            case tree.And(terms=terms):
                return all(self.passes(term) for term in terms)
            case tree.Or(terms=terms):
                return any(self.passes(term) for term in terms)
            case tree.Not(term=term):
                return not self.passes(term)
            case tree.Compare(relation=relation, left=left, right=right):
                one, other = self.value(left), self.value(right)
                return one is not None and other is not None and SIGNS[relation](one, other)
            case tree.InState(state=state):
                return self.tracked["state"] == state
            case tree.Stalled():
                return bool(self.tracked["stalled"])
            case tree.Finding(code=code):
                findings = self.tracked["findings"]
                assert isinstance(findings, frozenset)
                return code in findings if code else bool(findings)

    def value(self, value: tree.Value) -> int | None:
        """The value's number; None if a byte it needs is not there, or it has none."""
        match value:
            case tree.Number(value=number):
                return number
            case tree.Header(name=name):
                return self.field(name)
            case tree.Caplen():
                return len(self.data)
            case tree.Tracked(name=name):
                number = self.tracked[name]
                assert number is None or isinstance(number, int)
                return number
            case tree.Raw(base=base, offset=offset, size=size):
                at = self.value(offset)
                place = self.vsock if base == "vsock" else self.payload
                if at is None or at + size > len(place):
                    return None
                return int.from_bytes(place[at : at + size], "little")
            case tree.Binary(operator=operator, left=left, right=right):
                one, other = self.value(left), self.value(right)
                if one is None or other is None:
                    return None
                return calculate(operator, one, other, 64 if wide(value) else 32)

    def field(self, name: str) -> int | None:
        fields = wire.HEADERS.fields
        assert fields is not None
        if not (self.has_mon if name in wire.MON_FIELDS else self.has_virtio):
            return None
        dtype, offset = fields[name][:2]
        return int.from_bytes(self.vsock[offset : offset + dtype.itemsize], "little")


def wide(value: tree.Value) -> bool:
    match value:
        case tree.Number(value=number):
            return number > 0xFFFF_FFFF
        case tree.Header(name=name):
            return name.endswith("cid")
        case tree.Tracked():
            return True
        case tree.Binary(left=left, right=right):
            return wide(left) or wide(right)
    return False


def calculate(operator: str, one: int, other: int, bits: int) -> int | None:
    if operator in ("/", "%") and other == 0:
        return None
    if operator in ("<<", ">>") and other >= bits:
        return None
    result = {
        "+": lambda: one + other,
        "-": lambda: one - other,
        "*": lambda: one * other,
        "/": lambda: one // other,
        "%": lambda: one % other,
        "&": lambda: one & other,
        "|": lambda: one | other,
        "^": lambda: one ^ other,
        "<<": lambda: one << other,
        ">>": lambda: one >> other,
    }[operator]()
    return result % 2**bits


class Kernel:
    """A program run by the kernel, on one end of a pair of AF_UNIX datagram sockets."""

    def __init__(self, program: Sequence[Instruction]) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        code = ctypes.create_string_buffer(pack(program))
        fprog = struct.pack("HP", len(program), ctypes.addressof(code))
        self.theirs.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.ours.close()
        self.theirs.close()

    def run(self, frame: bytes) -> bytes | None:
        """What is left of the frame behind the program; None if it was dropped."""
        self.ours.send(frame)
        try:
            return self.theirs.recv(2 * wire.MAX_FRAME, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
