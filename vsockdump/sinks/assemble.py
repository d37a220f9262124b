"""Put the blocks of a savefile together: heads and small frames copied, large ones referred to.

Sans I/O. One buffer, reused, takes everything but large frames, column by column: all heads, then
all frames of a size class. Large frames stay where they are (in the ring or the reader's buffer)
and appear in the outcome as views of it, between views of the buffer; whoever writes passes the
list on to writev(2).

Invariants:

- nothing but a frame's own bytes is copied out of the batch's buffer: a size class holds lengths
  with the same top bit, and a frame is copied as two overlapping pieces of that width, one from its
  start and one up to its end, so that no copy is wider than the frame;
- what ``Assembler.start`` hands out is undefined until written: the format writes every byte;
- pieces are valid until the next ``start`` and as long as the batch is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Bytes, FrameBatch, Ints

INLINE: Final = 4096
"""Longest frame that is copied: from here on a piece of its own costs writev less than a copy."""
CHUNK: Final = 1 << 20
"""Bytes put together at a time: what a processor's cache holds beside the frames."""


class Placed(NamedTuple):
    """Where blocks go: ``buf`` and, for each block, where it starts and ends in there.

    ``start`` and ``end`` int64 (n,) leave out large frames; ``large`` are the rows of those.
    """

    buf: Bytes
    start: Ints
    end: Ints
    large: Ints


class Assembler:
    """A buffer for blocks, and how frames get into it."""

    def __init__(self) -> None:
        self._buf: Bytes = np.zeros(CHUNK, np.uint8)

    def start(self, frames: FrameBatch, size: Ints) -> Placed:
        """Lay out blocks of ``size`` bytes (int64 (n,), their frame included) for these frames."""
        large = (frames.caplen > INLINE).nonzero()[0]
        if large.size:
            size = size.copy()
            size[large] -= frames.caplen[large]
        end = size.cumsum()
        needed = int(end[-1]) if end.size else 0
        if needed > self._buf.size:
            self._buf = np.zeros(needed, np.uint8)
        return Placed(self._buf, end - size, end, large)

    def finish(self, frames: FrameBatch, placed: Placed, head: int) -> list[memoryview]:
        """Copy small frames in, ``head`` bytes behind their block's start; all pieces in order."""
        at = placed.start + head
        if not placed.large.size:
            copy_frames(placed.buf, at, frames.buf, frames.offset, frames.caplen)
            return [placed.buf.data[: int(placed.end[-1])]] if placed.end.size else []
        if placed.large.size < len(frames):
            small = (frames.caplen <= INLINE).nonzero()[0]
            copy_frames(
                placed.buf, at[small], frames.buf, frames.offset[small], frames.caplen[small]
            )
        buf, source = placed.buf.data, frames.buf.data
        rows = placed.large
        pieces, done = [], 0
        for hole, offset, length in zip(
            at[rows].tolist(),
            frames.offset[rows].tolist(),
            frames.caplen[rows].tolist(),
            strict=True,
        ):
            pieces.append(buf[done:hole])
            pieces.append(source[offset : offset + length])
            done = hole
        pieces.append(buf[done : int(placed.end[-1])])
        return pieces


def chunks(frames: FrameBatch, size: Ints, begin: int, end: int) -> list[tuple[int, int]]:
    """Cut rows ``begin`` to ``end`` into ranges whose blocks are put together at a time."""
    size, caplen = size[begin:end], frames.caplen[begin:end]
    inline = (size - caplen * (caplen > INLINE)).cumsum()
    if not inline.size or inline[-1] <= CHUNK:
        return [(begin, end)] if inline.size else []
    ranges = []
    first = 0
    while first < inline.size:
        done = int(inline[first - 1]) if first else 0
        last = max(int(np.searchsorted(inline, done + CHUNK, "right")), first + 1)
        ranges.append((begin + first, begin + last))
        first = last
    return ranges


def records(buf: Bytes, width: int) -> NDArray[np.void]:
    """Every place of ``buf`` where ``width`` bytes fit, opaque, so that numpy copies them whole."""
    return np.ndarray((buf.size - width + 1,), f"V{width}", buf, strides=(1,))


def copy_frames(out: Bytes, at: Ints, buf: Bytes, offset: Ints, length: Ints) -> None:
    """Copy ``length`` bytes from ``buf[offset]`` to ``out[at]``, for each row of the columns."""
    # frexp's exponent is the length's top bit, counted from 1; 0 for an empty frame.
    top = np.frexp(length)[1]
    counts = np.bincount(top)
    for bit in np.flatnonzero(counts).tolist():
        if bit == 0:
            continue
        if counts[bit] == top.size:
            to, start, size = at, offset, length
        else:
            rows = np.flatnonzero(top == bit)
            to, start, size = at[rows], offset[rows], length[rows]
        width = 1 << (bit - 1)
        shortest, longest = int(size.min()), int(size.max())
        if shortest == longest:
            records(out, longest)[to] = records(buf, longest)[start]
            continue
        into, source = records(out, width), records(buf, width)
        into[to] = source[start]
        rest = size - width
        into[to + rest] = source[start + rest]
