"""The packet ring: TPACKET_V3 blocks in mapped memory, walked in columns.

The kernel writes frames into blocks (``struct tpacket_block_desc``, each frame behind a ``struct
tpacket3_hdr``) and hands over whole blocks: full ones, and those that a time-out retired. Sources:
``include/uapi/linux/if_packet.h`` and ``net/packet/af_packet.c``.

Strategy: the rings of all interfaces lie in one reserved stretch of memory (``Region``), so that
one buffer serves a batch of any of them, nothing is copied, and there is always readable memory
behind the last frame. The frames of a block form a chain of offsets. Where frames are small the
chain is guessed (every 8-byte step that looks like a header of the block's first kind) and then
proven (``chain.follow``): the first header is the block's, and each one's own offset leads to the
next guess. What is not proven, as when payload imitates headers, is hopped through.

Invariants:

- a block belongs to the reader from ``take`` to ``release``, and to the kernel otherwise.
  ``release`` empties ``num_pkts`` first, so that the block the kernel fills next tells how much
  waits in it;
- memory of a closed ring stays mapped (and reads 0) as long as an array looks at it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from vsockdump.errors import CaptureError
from vsockdump.frames import SLACK, Bytes, Ints, gather
from vsockdump.sources.chain import follow

TP_STATUS_USER: Final = 1
"""Bit of ``block_status``: the block is the reader's."""

BLOCK: Final = np.dtype(
    {
        "names": ["block_status", "num_pkts"],
        "formats": ["u4", "u4"],
        "offsets": [8, 12],
        "itemsize": 48,
    }
)
"""``struct tpacket_block_desc`` with its ``struct tpacket_hdr_v1``: what reader and kernel both
write."""
_WORD: Final = struct.Struct("=I")
_BLOCK_HEAD: Final = struct.Struct("=3I")
"""``num_pkts``, ``offset_to_first_pkt`` and ``blk_len``, from byte 12 of a block on."""

FRAME: Final = np.dtype(
    {
        "names": [
            "tp_next_offset",
            "tp_sec",
            "tp_nsec",
            "tp_snaplen",
            "tp_len",
            "tp_status",
            "tp_mac",
            "tp_net",
        ],
        "formats": ["u4", "u4", "u4", "u4", "u4", "u4", "u2", "u2"],
        "itemsize": 48,
    }
)
"""``struct tpacket3_hdr`` without its variant part; ``tp_mac`` is where the frame's bytes start."""

V3_ALIGNMENT: Final = 8
"""Every frame header of a block starts at a multiple of it."""
_PLACES_AT: Final = 24
"""Offset of the word of ``tp_mac``, ``tp_net`` and the hash nobody asked for, which is then 0: the
same in nearly all frames."""
_CAPLEN_AT: Final = 12
"""Offset of ``tp_snaplen`` in a frame header."""

BLOCK_BYTES: Final = 1 << 18
"""The usual size of a block. Sparse traffic uses up a block with every time-out, so many of them is
what lets a reader be late: 32 of a ring of 8 MiB are 1.6 seconds; 8 of 1 MiB lost packets."""
_LEAST_BLOCK: Final = 1 << 17
"""The least power of two that takes the longest frame (wire.MAX_FRAME) and the headers before."""
_LEAST_BLOCKS: Final = 4
"""So short a ring still lets the kernel fill blocks while half of them are being read."""
_FEW_FRAMES: Final = 1024
"""Mean bytes a frame from which hopping along the chain is cheaper than looking for it."""


class Geometry(NamedTuple):
    """Size of a block in bytes (a power of two), and how many blocks a ring has."""

    block: int
    blocks: int

    @property
    def size(self) -> int:
        """Bytes of the whole ring."""
        return self.block * self.blocks


def geometry(ring_bytes: int, block: int = BLOCK_BYTES) -> Geometry:
    """Blocks for a ring of ``ring_bytes``, rounded up to whole blocks, and to at least four.

    ``block`` (a power of two) is the size to take unless that makes too few of them. A block
    always takes the longest frame of a vsockmon device, so the least ring is 512 KiB.
    """
    while block > _LEAST_BLOCK and block * _LEAST_BLOCKS > ring_bytes:
        block //= 2
    return Geometry(block, max(_LEAST_BLOCKS, -(-ring_bytes // block)))


def walk(buf: Bytes, begin: int, size: int) -> Ints:
    """Offsets in ``buf`` of the frame headers of one block, in order, shape (num_pkts,).

    The block starts at ``begin`` (a multiple of 8) and has ``size`` bytes. Raises CaptureError
    where the chain leaves the block, which no kernel writes.
    """
    count, first, length = _BLOCK_HEAD.unpack_from(buf.data, begin + 12)
    if length > size or count * _FEW_FRAMES <= length:
        at = _hop(buf, begin + first, begin + size, count)
    else:
        proven, place = _proven(buf, begin + first, begin + length)
        rest = _hop(buf, place, begin + size, count - proven.size)
        at = np.concatenate((proven, rest))
    if at.size != count:
        raise CaptureError(f"packet ring: the block at byte {begin} is damaged")
    return at


def _proven(buf: Bytes, first: int, end: int) -> tuple[Ints, int]:
    """The headers from ``first`` that guessing finds and their offsets prove, and what follows."""
    steps = (end - first - FRAME.itemsize) // V3_ALIGNMENT + 1
    if steps <= 0:
        return np.zeros(0, np.int64), first
    words = np.ndarray((steps,), np.uint64, buf, first + _PLACES_AT)
    guesses = np.flatnonzero(words == words[0])
    following = np.ndarray((steps,), np.uint32, buf, first, (V3_ALIGNMENT,))[guesses]
    caplen = np.ndarray((steps,), np.uint32, buf, first + _CAPLEN_AT, (V3_ALIGNMENT,))[guesses]
    # The kernel leaves gaps as they were, with pieces of headers from rounds before. In a header of
    # now the next one is right behind the frame (or 0, in the last, which is left to hopping).
    caplen += np.uint32(np.ndarray((1,), FRAME, buf, first)["tp_mac"][0] + V3_ALIGNMENT - 1)
    caplen &= np.uint32(-V3_ALIGNMENT & 0xFFFF_FFFF)
    likely = np.flatnonzero(following == caplen)
    guesses = guesses[likely] * V3_ALIGNMENT
    guesses += first
    return follow(guesses, guesses + following[likely], first)


def _hop(buf: Bytes, first: int, end: int, count: int) -> Ints:
    """At most ``count`` headers from ``first``, one by one; fewer where the chain leaves."""
    following = _WORD.unpack_from
    last = end - FRAME.itemsize
    view = buf.data
    at = []
    place = first
    for _ in range(count):
        if place > last:
            break
        at.append(place)
        step = following(view, place)[0]
        if not step:
            break
        place += step
    return np.array(at, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """What the headers of frames say: the columns of a FrameBatch, each int64 of shape (n,)."""

    offset: Ints
    caplen: Ints
    origlen: Ints
    time_ns: Ints


def columns(buf: Bytes, at: Ints) -> Columns:
    """Where the frames of these headers lie, how long they are and were, and their times."""
    header = gather(buf, at, FRAME)
    time_ns = header["tp_sec"].astype(np.int64)
    time_ns *= 1_000_000_000
    time_ns += header["tp_nsec"]
    return Columns(
        offset=at + header["tp_mac"],
        caplen=header["tp_snaplen"].astype(np.int64),
        origlen=header["tp_len"].astype(np.int64),
        time_ns=time_ns,
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
]
_MAP_FIXED: Final = 0x10


class Region:
    """Reserved memory that rings are mapped into, with SLACK readable bytes behind them.

    ``bytes`` is all of it, uint8 and writable; ``view`` is the same for readers. The memory is
    given back when the last array that looks at it is gone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        pages = -(-(size + SLACK) // mmap.PAGESIZE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # The arrays hold the map, and the map unmaps itself, whatever was mapped over it.
        self.bytes: Bytes = np.frombuffer(mmap.mmap(-1, pages * mmap.PAGESIZE, flags), np.uint8)
        self.view: Bytes = self.bytes.view()
        self.view.flags.writeable = False

    def place(self, begin: int, size: int, fd: int) -> None:
        """Map ``size`` bytes of ``fd`` over the reservation at ``begin``; OSError if it fails."""
        self._over(begin, size, mmap.MAP_SHARED, fd)

    def clear(self) -> None:
        """Put empty memory where rings were: the kernel lets go of them."""
        if self.size:
            self._over(0, self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)

    def _over(self, begin: int, size: int, flags: int, fd: int) -> None:
        address = self.bytes.ctypes.data + begin
        access = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mmap(address, size, access, flags | _MAP_FIXED, fd, 0) != address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class Ring:
    """The reader's side of one ring: which blocks are ready, and giving them back.

    The ring occupies ``shape.size`` bytes of ``buf`` from ``begin`` (a multiple of 8).
    """

    def __init__(self, buf: Bytes, begin: int, shape: Geometry) -> None:
        self._buf = buf
        self._begin = begin
        self._shape = shape
        self._blocks = np.ndarray((shape.blocks,), BLOCK, buf, begin, (shape.block,))
        self._next = 0
        self._taken = 0
        # Python has no memory barrier, but leaving a lock is one (release), and so is taking it
        # (acquire): status before frames when taking, frames before status when releasing.
        self._fence = threading.Lock()

    def take(self, rows: int) -> list[Ints]:
        """Frame header offsets of the blocks that are ready, block by block; none is [].

        Takes one block, and more until there are ``rows`` frames, but never more than half of the
        ring: the kernel needs the other half meanwhile.
        """
        with self._fence:
            ready = self._blocks["block_status"] & TP_STATUS_USER
        found: list[Ints] = []
        with self._fence:
            while rows > 0 and self._taken < self._shape.blocks // 2:
                block = (self._next + self._taken) % self._shape.blocks
                if not ready[block]:
                    break
                begin = self._begin + block * self._shape.block
                found.append(walk(self._buf, begin, self._shape.block))
                rows -= found[-1].size
                self._taken += 1
        return found

    def release(self) -> bool:
        """Give all taken blocks back to the kernel; True when that came round to the first."""
        with self._fence:
            taken = [(self._next + i) % self._shape.blocks for i in range(self._taken)]
            self._blocks["num_pkts"][taken] = 0
        with self._fence:
            self._blocks["block_status"][taken] = 0
        around = self._next + self._taken >= self._shape.blocks
        self._next = (self._next + self._taken) % self._shape.blocks
        self._taken = 0
        return around

    def waiting(self) -> bool:
        """Whether frames wait in a block that nobody took: ready, or still the kernel's."""
        return bool(self._blocks["num_pkts"][(self._next + self._taken) % self._shape.blocks])
