"""scapy layers of a vsockmon frame: ``VSockMon`` and, behind it, ``VirtioVsock``.

``VSockMon`` is ``struct af_vsockmon_hdr``, ``VirtioVsock`` is ``struct virtio_vsock_hdr``. Fields
carry the names of ``wire.HEADERS``: the tap's op and length are ``mon_op`` and ``transport_len``,
so that ``packet.op``, ``packet.len`` and ``packet.flags`` are the virtio header's without naming
the layer.

Strategy: dissect lazily and exactly, build what is left out.

- Any bytes dissect without an exception, also under ``conf.debug_dissector``: bytes too short for a
  header are Raw, and what is dissected builds to the same bytes again, fields included.
- ``transport_len`` decides where the payload starts. Bytes of it that are no virtio header (another
  transport, NO_INFO with a length, less than a whole header) are ``VSockMon.transport_header``;
  what follows the 44 bytes of a longer virtio header is ``VirtioVsock.extra``.
- Payload is at most ``len`` bytes; what the frame holds beyond is Padding.
- Left out when building: ``mon_op`` follows the op as the kernel's tap maps it, ``transport_len``
  and ``len`` count what is there, and the virtio header's addresses are those of the outer one.

Importing this module registers the layers for link type 271, hardware type 826 and behind cooked
headers. Numbers and names come from ``vsockdump.wire``.
"""

# mypy: disallow-subclassing-any=False
# scapy's classes have no types that strict checking accepts, so they are Any here.

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from vsockdump import wire

from .optional import MissingLibraryError

try:
    from scapy.config import conf
    from scapy.fields import (
        ConditionalField,
        EnumField,
        Field,
        LEIntField,
        LEShortEnumField,
        LEShortField,
        XStrFixedLenField,
        XStrLenField,
    )
    from scapy.layers.l2 import CookedLinux
    from scapy.packet import Packet, bind_layers, bind_top_down
except ImportError as missing:
    raise MissingLibraryError("scapy", missing) from missing

__all__ = ["VSockMon", "VirtioVsock", "vsock_conversation", "vsock_session"]

_FIELDS: Final[Mapping[str, Any]] = wire.HEADERS.fields or {}
_FLAG_BITS: Final = {bit.name: bit for kind in (wire.ShutdownFlag, wire.RwFlag) for bit in kind}


def _fill(header: bytes, start: int, name: str, value: int) -> bytes:
    """``header``, which begins at ``start`` of the frame, with one field of ``wire`` set."""
    dtype, offset = _FIELDS[name][:2]
    at = offset - start
    end = at + dtype.itemsize
    return header[:at] + value.to_bytes(dtype.itemsize, "little") + header[end:]


def _cid(cid: Any) -> str:
    return wire.CID_NAMES.get(cid, str(cid))


def _header_or_raw(cls: type[Packet], size: int, pkt: bytes | None) -> type[Packet]:
    """What to dissect ``pkt`` as: ``cls``, or Raw when its fixed header is not there whole."""
    return cls if pkt is None or len(pkt) >= size else conf.raw_layer


class CidField(EnumField):
    """A CID, u64: the well-known ones show by name (``host``), and may be set by it."""

    def __init__(self, name: str, default: int | None) -> None:
        super().__init__(name, default, wire.CID_NAMES, "<Q")


class _OuterField(Field):
    """A field that is the same field of the VSockMon below where nobody set it."""

    def _outer(self, packet: Any, value: Any) -> Any:
        if value is not None or packet is None:
            return value
        below = packet.underlayer
        return below.getfieldval(self.name) if isinstance(below, VSockMon) else 0

    def i2h(self, pkt: Any, x: Any) -> Any:
        return super().i2h(pkt, self._outer(pkt, x))

    def i2m(self, pkt: Any, x: Any) -> Any:
        return super().i2m(pkt, self._outer(pkt, x))

    def i2repr(self, pkt: Any, x: Any) -> Any:
        return super().i2repr(pkt, self._outer(pkt, x))


class OuterCidField(_OuterField, CidField):
    """A CID that defaults to the outer header's."""


class OuterPortField(_OuterField, LEIntField):
    """A port, u32, that defaults to the outer header's."""


class VsockFlagsField(LEIntField):
    """The flags of a virtio header, u32: what a bit means depends on op and type.

    A plain number that shows by the names of its bits. May be set by number or by names:
    ``"RCV+SEND"`` or ``["EOM"]``.
    """

    def any2i(self, pkt: Any, x: Any) -> Any:
        if isinstance(x, str):
            x = x.split("+") if x else []
        if not isinstance(x, list | tuple | set):
            return int(x) if isinstance(x, int) else x
        value = 0
        for name in x:
            value |= int(_FLAG_BITS[name]) if name in _FLAG_BITS else int(name, 0)
        return value

    def i2repr(self, pkt: Any, x: Any) -> str:
        if pkt is None or not isinstance(x, int) or self in conf.noenum:
            return repr(x)
        names = wire.flag_names(pkt.getfieldval("op"), pkt.getfieldval("type"), x)
        return "+".join(names) or "0"


def _is_virtio(packet: Any) -> bool:
    """Whether a whole virtio header is what ``transport`` and ``transport_len`` announce."""
    length = packet.getfieldval("transport_len")
    return bool(
        packet.getfieldval("transport") == wire.Transport.VIRTIO
        and (length is None or length >= wire.VIRTIO_HDR_LEN)
    )


class VSockMon(Packet):
    """``struct af_vsockmon_hdr``: what the kernel's tap says of a packet (32 bytes).

    ``mon_op`` and ``transport_len`` are computed when left out, ``transport`` is VIRTIO above
    which a VirtioVsock is stacked. ``transport_header`` holds a transport header that is no
    virtio header.
    """

    name = "VSockMon"
    fields_desc: ClassVar[list[Any]] = [
        CidField("src_cid", wire.CID_LOCAL),
        CidField("dst_cid", wire.CID_LOCAL),
        LEIntField("src_port", 0),
        LEIntField("dst_port", 0),
        LEShortEnumField("mon_op", None, wire.MonOp),
        LEShortEnumField("transport", wire.Transport.NO_INFO, wire.Transport),
        LEShortField("transport_len", None),
        XStrFixedLenField("reserved", bytes(2), 2),
        ConditionalField(
            XStrLenField("transport_header", b"", length_from=lambda pkt: pkt.transport_len or 0),
            lambda pkt: not _is_virtio(pkt),
        ),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_: Any, **__: Any) -> Any:
        """DEV: what to make of bytes; Raw when they hold no whole header."""
        return _header_or_raw(cls, wire.MON_HDR_LEN, _pkt)

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """DEV: fill in what was left out."""
        above = self.payload
        virtio = isinstance(above, VirtioVsock)
        if self.mon_op is None and virtio:
            op = wire.MON_OP_OF.get(above.getfieldval("op"), wire.MonOp.UNKNOWN)
            pkt = _fill(pkt, 0, "mon_op", op)
        if self.transport_len is None:
            length = len(pkt) - wire.MON_HDR_LEN
            if virtio:
                length += wire.VIRTIO_HDR_LEN + len(above.getfieldval("extra"))
            pkt = _fill(pkt, 0, "transport_len", length)
        return pkt + pay

    def guess_payload_class(self, payload: bytes) -> Any:
        """DEV: what follows a transport header that is too short to be virtio's is Raw."""
        if self.transport == wire.Transport.VIRTIO and not _is_virtio(self):
            return conf.raw_layer
        return super().guess_payload_class(payload)

    def hashret(self) -> bytes:
        """The same for both directions of a connection."""
        ends = sorted(((self.src_cid, self.src_port), (self.dst_cid, self.dst_port)))
        return repr(ends).encode() + bytes(self.payload.hashret())

    def answers(self, other: Any) -> int:
        """True for a packet of the other direction whose header above answers that one's."""
        if not isinstance(other, VSockMon):
            return 0
        ours = (self.src_cid, self.src_port, self.dst_cid, self.dst_port)
        if ours != (other.dst_cid, other.dst_port, other.src_cid, other.src_port):
            return 0
        return int(self.payload.answers(other.payload))

    def mysummary(self) -> Any:
        """DEV: the line ``summary()`` shows where no virtio header follows."""
        return self.sprintf(
            "VSockMon %VSockMon.src_cid%.%VSockMon.src_port%"
            " > %VSockMon.dst_cid%.%VSockMon.dst_port%"
            " %VSockMon.transport% %VSockMon.mon_op%"
        )


_ANSWERS: Final = {
    wire.Op.REQUEST: {wire.Op.RESPONSE, wire.Op.RST},
    wire.Op.SHUTDOWN: {wire.Op.SHUTDOWN, wire.Op.RST},
    wire.Op.RW: {wire.Op.RW, wire.Op.CREDIT_UPDATE, wire.Op.RST},
    wire.Op.CREDIT_REQUEST: {wire.Op.CREDIT_UPDATE, wire.Op.RST},
}
"""Which ops a peer may answer an op with."""


def _extra_len(packet: Any) -> int:
    """Bytes of the transport header behind the 44 of a virtio header."""
    below = packet.underlayer
    if not isinstance(below, VSockMon):
        return 0
    return max((below.getfieldval("transport_len") or 0) - wire.VIRTIO_HDR_LEN, 0)


class VirtioVsock(Packet):
    """``struct virtio_vsock_hdr``: virtio 1.2, section 5.10.6 (44 bytes).

    Addresses left out are those of the VSockMon below, ``len`` is the payload's. ``extra`` holds
    what a transport header longer than 44 bytes has behind it.
    """

    name = "VirtioVsock"
    fields_desc: ClassVar[list[Any]] = [
        OuterCidField("src_cid", None),
        OuterCidField("dst_cid", None),
        OuterPortField("src_port", None),
        OuterPortField("dst_port", None),
        LEIntField("len", None),
        LEShortEnumField("type", wire.Type.STREAM, wire.Type),
        LEShortEnumField("op", wire.Op.RW, wire.Op),
        VsockFlagsField("flags", 0),
        LEIntField("buf_alloc", 0),
        LEIntField("fwd_cnt", 0),
        ConditionalField(
            XStrLenField("extra", b"", length_from=_extra_len),
            lambda pkt: bool(pkt.fields.get("extra") or _extra_len(pkt)),
        ),
    ]

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_: Any, **__: Any) -> Any:
        """DEV: what to make of bytes; Raw when they hold no whole header."""
        return _header_or_raw(cls, wire.VIRTIO_HDR_LEN, _pkt)

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """DEV: payload is at most ``len`` bytes."""
        return s[: self.len], s[self.len :]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """DEV: fill in the length."""
        if self.len is None:
            pkt = _fill(pkt, wire.MON_HDR_LEN, "len", len(pay))
        return pkt + pay

    def hashret(self) -> bytes:
        """Nothing: op and credit differ between a packet and its answer."""
        return b""

    def answers(self, other: Any) -> int:
        """True if the peer may send this op upon that one, on a socket of the same type."""
        if not isinstance(other, VirtioVsock) or self.type != other.type:
            return 0
        return int(self.op in _ANSWERS.get(other.op, ()))

    def mysummary(self) -> Any:
        """DEV: the line ``summary()`` shows."""
        flags = self.sprintf(" %VirtioVsock.flags%") if self.flags else ""
        length = len(self.payload) if self.len is None else self.len
        return (
            f"VirtioVsock {_cid(self.src_cid)}.{self.src_port}"
            f" > {_cid(self.dst_cid)}.{self.dst_port}"
            + self.sprintf(" %VirtioVsock.type% %VirtioVsock.op%")
            + f"{flags} len={length}"
        )


def _ends(packet: Any) -> tuple[tuple[int, int], tuple[int, int], str] | None:
    """Source, destination and socket type of a packet; None if it has no vsock header."""
    outer, virtio = packet.getlayer(VSockMon), packet.getlayer(VirtioVsock)
    if outer is None and virtio is None:
        return None
    header = virtio if outer is None else outer
    kind = "" if virtio is None else virtio.sprintf(" %VirtioVsock.type%")
    return (header.src_cid, header.src_port), (header.dst_cid, header.dst_port), kind


def vsock_session(packet: Any) -> str:
    """Session extractor, one session a direction: ``packets.sessions(vsock_session)``."""
    ends = _ends(packet)
    if ends is None:
        return "Other"
    source, destination, kind = ends
    return f"VSOCK{kind} {source[0]}.{source[1]} > {destination[0]}.{destination[1]}"


def vsock_conversation(packet: Any) -> str:
    """Session extractor, both directions of a connection in one session, lower address first."""
    ends = _ends(packet)
    if ends is None:
        return "Other"
    one, other = sorted(ends[:2])
    return f"VSOCK{ends[2]} {one[0]}.{one[1]} <> {other[0]}.{other[1]}"


bind_layers(VSockMon, VirtioVsock, transport=wire.Transport.VIRTIO)
# The hardware type alone tells what a cooked frame is: its protocol field is 0 for vsockmon, and
# must not let another binding in when it is not. So this binding goes before those by protocol.
CookedLinux.payload_guess = [
    ({"lladdrtype": wire.ARPHRD_VSOCKMON}, VSockMon),
    *CookedLinux.payload_guess,
]
bind_top_down(
    CookedLinux,
    VSockMon,
    lladdrtype=wire.ARPHRD_VSOCKMON,
    pkttype=socket.PACKET_OUTGOING,
    proto=0,
)
# What the repr of a PacketList counts.
conf.stats_classic_protocols.append(VirtioVsock)
conf.l2types.register(wire.LINKTYPE_VSOCK, VSockMon)
# Live sockets look layers up by the device's hardware type.
conf.l2types.register_num2layer(wire.ARPHRD_VSOCKMON, VSockMon)
