"""Blocks as the kernel writes them, and worse: the walker finds what a hop through them does.

Invariant of the fuzz tests: any bytes give offsets inside the block or a CaptureError, never
another exception.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.errors import CaptureError
from vsockdump.frames import SLACK, Bytes, Ints
from vsockdump.sources import ring
from vsockdump.sources.ring import BLOCK, FRAME, Geometry, Region, Ring, columns, geometry, walk

SIZE = 1 << 15
MAC = 96
"""Where the kernel puts the bytes of a frame without a link header: behind header and address."""


class Sent(NamedTuple):
    """A frame as a test has it: bytes, original length, time, and the place of its bytes."""

    data: bytes
    origlen: int
    sec: int = 0
    nsec: int = 0
    mac: int = MAC


def padded(size: int) -> int:
    return -(-size // ring.V3_ALIGNMENT) * ring.V3_ALIGNMENT


def block(
    frames: Sequence[Sent],
    status: int = ring.TP_STATUS_USER,
    private: int = 0,
    gap: bytes = b"",
) -> bytes:
    """A block as the kernel lays it out: its head, then frames that each say where the next is.

    ``gap`` is what stays between a frame's header and its bytes, of rounds before.
    """
    first = BLOCK.itemsize + private
    body = b""
    for place, frame in enumerate(frames):
        following = padded(frame.mac + len(frame.data))
        last = place == len(frames) - 1
        words = (0 if last else following, frame.sec, frame.nsec, len(frame.data), frame.origlen, 0)
        head = struct.pack("=6I2H", *words, frame.mac, frame.mac + 14).ljust(FRAME.itemsize, b"\0")
        head += gap[: frame.mac - len(head)]
        body += head.ljust(frame.mac, b"\xaa") + frame.data.ljust(following - frame.mac, b"\xbb")
    head = struct.pack("=6I", 1, 0, status, len(frames), first, first + len(body))
    return head.ljust(first, b"\0") + body


def array(data: bytes, size: int = 0) -> Bytes:
    return np.frombuffer(data.ljust(size, b"\xcc") + bytes(SLACK), np.uint8).copy()


def hop(buf: Bytes, begin: int) -> list[int]:
    """The oracle: from each header to the next."""
    count, place = struct.unpack_from("=2I", buf.data, begin + 12)
    found = []
    for _ in range(count):
        found.append(begin + place)
        place += struct.unpack_from("=I", buf.data, begin + place)[0]
    return found


IMITATION = struct.pack("=6I2HI", 112, 0, 0, 16, 16, 0, MAC, MAC + 14, 0)
"""What a frame's header looks like, as payload may."""
PIECE = IMITATION[-8:]
"""A piece of one: the word that all of them share."""
payloads = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 20).map(lambda words: bytes(8 * words) + IMITATION * 3),
    st.integers(0, 300).map(bytes),
)
sent = st.builds(
    Sent,
    data=payloads,
    origlen=st.integers(0, 0xFFFFFFFF),
    sec=st.integers(0, 0xFFFFFFFF),
    nsec=st.integers(0, 999_999_999),
    mac=st.sampled_from([MAC, MAC, MAC, 82]),
)


@given(
    frames=st.lists(sent, max_size=40),
    begin=st.integers(0, 5),
    private=st.integers(0, 3),
    gap=st.sampled_from([b"", PIECE * 6, IMITATION]),
)
@example(frames=[Sent(b"", 0)] * 40, begin=0, private=0, gap=b"")
@example(frames=[Sent(IMITATION * 20, 0)] * 40, begin=1, private=1, gap=PIECE * 6)
def test_walk_finds_every_frame_in_order(
    frames: list[Sent], begin: int, private: int, gap: bytes
) -> None:
    data = block(frames, private=8 * private, gap=gap)
    buf = array(bytes(8 * begin) + data)
    at = walk(buf, 8 * begin, len(data))
    assert at.dtype == np.int64
    assert at.tolist() == hop(buf, 8 * begin)
    found = columns(buf, at)
    assert found.time_ns.tolist() == [f.sec * 1_000_000_000 + f.nsec for f in frames]
    assert found.origlen.tolist() == [f.origlen for f in frames]
    rows = zip(found.offset.tolist(), found.caplen.tolist(), strict=True)
    assert [buf[at : at + n].tobytes() for at, n in rows] == [f.data for f in frames]
    assert {c.dtype for c in (found.time_ns, found.origlen, found.offset, found.caplen)} == {
        np.dtype(np.int64)
    }


@pytest.mark.parametrize("size", [0, 44, 1000, 5000])
def test_guessing_and_hopping_agree(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = block([Sent(bytes(size + i % 9), size) for i in range(60)])
    buf = array(data)
    both = []
    for limit in (0, 1 << 20):
        monkeypatch.setattr(ring, "_FEW_FRAMES", limit)
        both.append(walk(buf, 0, len(data)).tolist())
    assert both[0] == both[1] == hop(buf, 0)


@pytest.mark.parametrize("gap", [b"", PIECE * 6])
def test_small_frames_are_not_hopped_through(gap: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = block([Sent(bytes(50 + i % 100), 0) for i in range(200)], gap=gap)
    hopped = []
    really_hop = ring._hop

    def spy(buf: Bytes, first: int, end: int, count: int) -> Ints:
        hopped.append(count)
        return really_hop(buf, first, end, count)

    monkeypatch.setattr(ring, "_hop", spy)
    assert walk(array(data), 0, len(data)).size == 200
    # To the last one, whose header does not look like the others.
    assert hopped == [1]


@given(words=st.lists(st.integers(0, 0xFFFFFFFF), max_size=300), head=st.data())
def test_any_bytes_give_offsets_in_the_block_or_an_error(
    words: list[int], head: st.DataObject
) -> None:
    small = st.integers(0, 400)
    body = struct.pack(f"={len(words)}I", *words)
    size = BLOCK.itemsize + len(body)
    fields = [head.draw(st.one_of(small, st.just(size), st.integers(0, 0xFFFFFFFF))) for _ in "nfl"]
    data = struct.pack("=6I", 1, 0, 1, *fields).ljust(BLOCK.itemsize, b"\0") + body
    try:
        at = walk(array(data), 0, size)
    except CaptureError as error:
        assert "damaged" in str(error)
    else:
        assert at.size == fields[0]
        assert ((at >= 0) & (at + FRAME.itemsize <= size)).all()


def test_a_chain_that_leaves_its_block_is_an_error() -> None:
    data = block([Sent(bytes(50), 50)] * 3)
    buf = array(data)
    last = int(walk(buf, 0, len(data))[-1])
    for place, step in ((last, 0), (last - padded(MAC + 50), 0xFFFFFFF0)):
        broken = buf.copy()
        struct.pack_into("=I", broken.data, 12, 4)
        struct.pack_into("=I", broken.data, place, step)
        with pytest.raises(CaptureError, match="block at byte 0 is damaged"):
            walk(broken, 0, len(data))


@given(asked=st.integers(-1, 1 << 28), block=st.sampled_from([ring.BLOCK_BYTES, 1 << 20]))
def test_a_ring_is_large_enough_and_its_blocks_take_every_frame(asked: int, block: int) -> None:
    shape = geometry(asked, block)
    assert shape.size >= asked
    assert shape.block.bit_count() == 1
    assert shape.block % mmap.PAGESIZE == 0
    assert shape.block >= BLOCK.itemsize + MAC + wire.MAX_FRAME
    assert shape.blocks >= 4
    # Blocks get smaller only to make enough of them.
    assert shape.block == block or asked < 8 * shape.block
    # Rounding up costs one block at the most, or the least ring there is.
    assert shape == geometry(0) or shape.size < asked + shape.block


def test_a_ring_of_the_usual_size_has_blocks_of_the_usual_size() -> None:
    assert geometry(8 * ring.BLOCK_BYTES) == Geometry(ring.BLOCK_BYTES, 8)


class Kernel:
    """The other side of a ring: fills the blocks that are its own, one after another."""

    def __init__(self, buf: Bytes, begin: int, shape: Geometry) -> None:
        self.buf, self.begin, self.shape = buf, begin, shape
        self.next = 0

    def status(self, index: int) -> int:
        return int(struct.unpack_from("=I", self.buf.data, self.place(index) + 8)[0])

    def place(self, index: int) -> int:
        return self.begin + index * self.shape.block

    def fill(self, frames: Sequence[Sent], status: int = ring.TP_STATUS_USER) -> bool:
        """Write a block; False where the reader has not given it back."""
        if self.status(self.next):
            return False
        data = np.frombuffer(block(frames, status), np.uint8)
        place = self.place(self.next)
        self.buf[place : place + data.size] = data
        if status:
            self.next = (self.next + 1) % self.shape.blocks
        return True


@given(
    steps=st.lists(st.one_of(st.integers(0, 4), st.just("take"), st.just("release")), max_size=60),
    blocks=st.integers(4, 6),
    rows=st.integers(1, 8),
)
def test_the_reader_gets_all_blocks_once_and_in_order(
    steps: list[int | str], blocks: int, rows: int
) -> None:
    shape = Geometry(1 << 12, blocks)
    buf = array(b"", 8 + shape.size)
    buf[:] = 0
    kernel, reader = Kernel(buf, 8, shape), Ring(buf, 8, shape)
    sent: list[int] = []
    taken: list[int] = []
    held = 0
    for step in steps:
        if step == "take":
            found = reader.take(rows)
            held += len(found)
            # Enough frames end it, and half of the ring stays the kernel's.
            assert held <= blocks // 2
            assert sum(map(len, found[:-1])) < rows
            for at in found:
                taken += columns(buf, at).origlen.tolist()
        elif step == "release":
            reader.release()
            held = 0
        else:
            frames = [Sent(b"x", len(sent) + i) for i in range(int(step))]
            if kernel.fill(frames):
                sent += [frame.origlen for frame in frames]
        assert taken == sent[: len(taken)]
        if len(taken) < len(sent) and not any(step == 0 for step in steps):
            assert reader.waiting()
    for _ in range(blocks + 1):
        reader.release()
        for at in reader.take(rows):
            taken += columns(buf, at).origlen.tolist()
    assert taken == sent


def test_release_tells_when_it_came_round() -> None:
    shape = Geometry(1 << 12, 4)
    buf = array(bytes(shape.size))
    kernel, reader = Kernel(buf, 0, shape), Ring(buf, 0, shape)
    rounds = []
    for _ in range(2 * shape.blocks):
        assert kernel.fill([Sent(b"x", 1)])
        assert len(reader.take(1)) == 1
        rounds.append(reader.release())
    assert rounds == [False, False, False, True] * 2
    assert reader.release() is False


def test_a_block_that_fills_is_seen_to_wait() -> None:
    shape = Geometry(1 << 12, 4)
    buf = array(bytes(shape.size))
    kernel, reader = Kernel(buf, 0, shape), Ring(buf, 0, shape)
    assert not reader.waiting()
    kernel.fill([Sent(b"x", 1)], status=0)
    assert reader.waiting()
    assert reader.take(1) == []
    kernel.fill([Sent(b"x", 1)])
    assert [at.size for at in reader.take(1)] == [1]
    # The next block is empty; the one taken does not count.
    assert not reader.waiting()
    for _ in range(shape.blocks - 1):
        kernel.fill([Sent(b"x", 1)])
    assert not kernel.fill([Sent(b"x", 1)])
    for _ in range(shape.blocks):
        reader.release()
        reader.take(1)
    reader.release()
    # What the block held in the round before does not count as waiting.
    assert not reader.waiting()


def test_a_region_has_readable_memory_behind_its_end_and_outlives_what_is_mapped() -> None:
    region = Region(mmap.PAGESIZE)
    assert region.view.size >= region.size + SLACK
    assert not region.view.flags.writeable
    region.bytes[:] = 7
    view = region.view[: region.size]
    region.clear()
    del region
    assert not view.any()


def test_what_cannot_be_mapped_is_an_error_of_the_kernel() -> None:
    region = Region(mmap.PAGESIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        region.place(0, mmap.PAGESIZE, 1 << 20)
