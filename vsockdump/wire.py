"""The wire format: the one place that knows the bytes of a vsockmon frame.

A frame is a ``struct af_vsockmon_hdr`` (32 bytes), then a transport header whose length the first
header gives, then payload. Every field is little-endian. Constants carry the kernel's own names
and are those of ``include/uapi/linux/vsockmon.h``, ``virtio_vsock.h``, ``vm_sockets.h`` and
``if_arp.h``; the virtio header is section 5.10.6 of the virtio 1.2 specification. Nothing else in
vsockdump writes one of these numbers down.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

LINKTYPE_VSOCK: Final = 271
"""LINKTYPE_VSOCK, also DLT_VSOCK: the frame is a vsockmon frame."""
LINKTYPE_LINUX_SLL: Final = 113
"""Linux cooked capture: 16 bytes, then the frame."""
LINKTYPE_LINUX_SLL2: Final = 276
"""Linux cooked capture, version 2: 20 bytes, then the frame."""
ARPHRD_VSOCKMON: Final = 826
"""Hardware type of a vsockmon device (``if_arp.h``), also found in cooked headers."""

SLL_LEN: Final = 16
SLL_HATYPE: Final = 2
"""Offset of the big-endian u16 hardware type in a cooked header (packet type comes first)."""
SLL2_LEN: Final = 20
SLL2_HATYPE: Final = 8
"""The same in a version 2 header (protocol, reserved and interface index come first)."""

MON_HDR_LEN: Final = 32
VIRTIO_HDR_LEN: Final = 44
HEADERS_LEN: Final = MON_HDR_LEN + VIRTIO_HDR_LEN
MAX_PAYLOAD: Final = 64 * 1024
"""VIRTIO_VSOCK_MAX_PKT_BUF_SIZE: the most payload Linux puts into one packet."""
MAX_FRAME: Final = HEADERS_LEN + MAX_PAYLOAD

CID_HYPERVISOR: Final = 0
CID_LOCAL: Final = 1
CID_HOST: Final = 2
CID_ANY: Final = 0xFFFF_FFFF
CID_NAMES: Final = {CID_HYPERVISOR: "hypervisor", CID_LOCAL: "local", CID_HOST: "host"}
"""Names of the CIDs that every machine shares (``VMADDR_CID_*``)."""
FIRST_GUEST_CID: Final = 3


class MonOp(IntEnum):
    """``enum af_vsockmon_op``: what the tap makes of the packet."""

    UNKNOWN = 0
    CONNECT = 1
    DISCONNECT = 2
    CONTROL = 3
    PAYLOAD = 4


class Transport(IntEnum):
    """``enum af_vsockmon_transport``: which header follows the first one."""

    UNKNOWN = 0
    NO_INFO = 1
    VIRTIO = 2


class Type(IntEnum):
    """``enum virtio_vsock_type``; DGRAM is proposed and not merged."""

    STREAM = 1
    SEQPACKET = 2
    DGRAM = 3


class Op(IntEnum):
    """``enum virtio_vsock_op``."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class ShutdownFlag(IntFlag):
    """``enum virtio_vsock_shutdown``: flags of a SHUTDOWN."""

    RCV = 1
    SEND = 2


class RwFlag(IntFlag):
    """``enum virtio_vsock_rw``: flags of an RW on SEQPACKET."""

    EOM = 1
    EOR = 2


MON_OP_OF: Final = {
    Op.REQUEST: MonOp.CONNECT,
    Op.RESPONSE: MonOp.CONNECT,
    Op.RST: MonOp.DISCONNECT,
    Op.SHUTDOWN: MonOp.DISCONNECT,
    Op.RW: MonOp.PAYLOAD,
    Op.CREDIT_UPDATE: MonOp.CONTROL,
    Op.CREDIT_REQUEST: MonOp.CONTROL,
}
"""How ``virtio_transport_build_skb`` maps ops to the tap's; any other op becomes UNKNOWN."""

HEADERS: Final = np.dtype(
    {
        "names": [
            "src_cid",
            "dst_cid",
            "src_port",
            "dst_port",
            "mon_op",
            "transport",
            "transport_len",
            "virtio_src_cid",
            "virtio_dst_cid",
            "virtio_src_port",
            "virtio_dst_port",
            "len",
            "type",
            "op",
            "flags",
            "buf_alloc",
            "fwd_cnt",
        ],
        "formats": [
            *("<u8", "<u8", "<u4", "<u4", "<u2", "<u2", "<u2"),
            *("<u8", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<u4", "<u4", "<u4"),
        ],
        "offsets": [
            *(0, 8, 16, 20, 24, 26, 28),
            *(32, 40, 48, 52, 56, 60, 62, 64, 68, 72),
        ],
        # Four bytes more than the headers, so that every row and with it every field is aligned.
        "itemsize": 80,
    }
)
"""Both headers of one packet; ``src_cid`` to ``dst_port`` are the first header's."""

MON_FIELDS: Final = HEADERS.names[:7] if HEADERS.names else ()
VIRTIO_FIELDS: Final = HEADERS.names[7:] if HEADERS.names else ()


def flag_names(op: int, type_: int, flags: int) -> list[str]:
    """Names of the bits set in ``flags``, lowest first, as the op and type give them meaning.

    A bit without a name is a hexadecimal number. Source: ``virtio_vsock.h``.
    """
    known: type[IntFlag] | None = None
    if op == Op.SHUTDOWN:
        known = ShutdownFlag
    elif op == Op.RW and type_ == Type.SEQPACKET:
        known = RwFlag
    names = []
    for bit in range(flags.bit_length()):
        value = 1 << bit
        if flags & value:
            member = known(value) if known is not None and value in list(known) else None
            names.append(member.name if member is not None and member.name else hex(value))
    return names
