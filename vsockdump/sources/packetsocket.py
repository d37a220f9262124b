"""A packet socket: everything the kernel is asked for in a live capture.

Invariants: the socket is opened with protocol 0 and queues nothing before ``bind``, so a filter
attached and a ring made before it hold from the first frame on. Errors are the kernel's (OSError);
who captures turns them into words. Sources: packet(7), ``include/uapi/linux/if_packet.h``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from vsockdump.sources.ring import Geometry

Program = Sequence[tuple[int, int, int, int]]
"""A classic BPF program: ``(code, jt, jf, k)`` of each ``struct sock_filter``."""

BPF_RET_K: Final = 0x06
"""BPF_RET | BPF_K: keep ``k`` bytes of the frame, none is to reject it."""
REJECT: Final[Program] = ((BPF_RET_K, 0, 0, 0),)
"""The program that lets nothing in."""

_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_RX_RING: Final = 5
_PACKET_STATISTICS: Final = 6
_PACKET_VERSION: Final = 10
_TPACKET_V3: Final = 2
_SO_ATTACH_FILTER: Final = 26
_SIOCGIFHWADDR: Final = 0x8927
_IFNAMSIZ: Final = 16


def snapped(program: Program | None, snaplen: int) -> Program | None:
    """``program`` made to keep at most ``snaplen`` bytes of a frame (0: all of them).

    Without a program it is one that takes every frame; None where there is nothing to attach.
    """
    if not snaplen:
        return program
    if program is None:
        return ((BPF_RET_K, 0, 0, snaplen),)
    return [
        (code, jt, jf, min(k, snaplen) if code == BPF_RET_K else k) for code, jt, jf, k in program
    ]


class PacketSocket:
    """The packet socket of one interface, and its counters.

    ``received`` and ``dropped`` are packets that passed the filter, as of the last ``count()``;
    received includes dropped, as in tcpdump's closing lines.
    """

    def __init__(self, name: str) -> None:
        """Open a socket for the interface ``name``; EPERM without CAP_NET_RAW."""
        self.name = name
        self.received = 0
        self.dropped = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    def fileno(self) -> int:
        """The descriptor, for polling and mapping."""
        return self._socket.fileno()

    def hardware_type(self) -> int:
        """ARPHRD_* of the interface; ENODEV where there is none of this name."""
        name = os.fsencode(self.name)
        if not name or len(name) >= _IFNAMSIZ or b"\0" in name:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        # struct ifreq: the name, then a struct sockaddr whose family is the hardware type.
        answer = fcntl.ioctl(self._socket, _SIOCGIFHWADDR, struct.pack("40s", name))
        return int(struct.unpack_from("H", answer, _IFNAMSIZ)[0])

    def attach(self, program: Program) -> None:
        """Let the kernel judge frames by this program, instead of any before; EINVAL if bad."""
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        held = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: the number of instructions, and where they are.
        fprog = struct.pack("@HP", len(program), ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def make_ring(self, shape: Geometry, retire_ms: int) -> None:
        """Make a TPACKET_V3 ring; a block that is not full is handed over after ``retire_ms``."""
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        block, blocks = shape
        # struct tpacket_req3; the frame size means nothing in version 3, but has to divide.
        request = struct.pack("7I", block, blocks, block, blocks, retire_ms, 0, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)

    def bind(self) -> None:
        """Begin: from here on frames are queued. ENETDOWN where the interface is down."""
        # The tap sends frames with protocol 0, which only a socket for all protocols sees.
        self._socket.bind((self.name, _ETH_P_ALL))
        self.check()

    def check(self) -> None:
        """Raise what the kernel has held against the socket since it was last asked."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))

    def count(self) -> None:
        """Add what the kernel counted since the last time (it starts again from 0)."""
        # struct tpacket_stats_v3; its tp_packets includes its tp_drops.
        counters = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, struct.calcsize("3I"))
        received, dropped, _ = struct.unpack("3I", counters)
        self.received += received
        self.dropped += dropped

    def close(self) -> None:
        """Close it; a ring goes when its memory is unmapped too."""
        self._socket.close()
