from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from savefile_cases import Row, laid_out, rows

from vsockdump.frames import SLACK, FrameBatch, Interface
from vsockdump.sinks.assemble import CHUNK, INLINE, Assembler, chunks, copy_frames
from vsockdump.sinks.pcap import PcapEncoder
from vsockdump.sinks.pcapng import PcapngEncoder

drawn_rows = st.lists(rows(1, 10**18), min_size=1, max_size=8)
POISON = 0xA5


@given(drawn_rows)
def test_each_frame_is_copied_to_its_place_and_nothing_else_changes(drawn: list[Row]) -> None:
    batch = laid_out(drawn, [Interface()])
    gaps = np.arange(1, len(batch) + 1)
    at = np.cumsum(batch.caplen + gaps) - batch.caplen
    out = np.full(int(at[-1] + batch.caplen[-1]) + 7, POISON, np.uint8)
    wanted = out.copy()
    for row, start in enumerate(at.tolist()):
        frame = np.frombuffer(batch.frame(row), np.uint8)
        wanted[start : start + frame.size] = frame
    copy_frames(out, at, batch.buf, batch.offset, batch.caplen)
    assert out.tobytes() == wanted.tobytes()


def test_copying_reads_nothing_outside_of_a_frame() -> None:
    # The frame ends where the buffer does, slack aside: a wider copy would have to fail.
    for length in range(1, 300):
        buf = np.arange(length, dtype=np.int64).astype(np.uint8)
        out = np.zeros(length, np.uint8)
        zero = np.zeros(1, np.int64)
        copy_frames(out, zero, buf, zero, np.array([length]))
        assert out.tobytes() == buf.tobytes()


@given(drawn_rows)
def test_the_buffer_is_reused_and_every_byte_of_it_written(drawn: list[Row]) -> None:
    batch = laid_out(drawn, [Interface()])
    for encoder in (PcapngEncoder(application="x"), PcapEncoder()):
        encoder.begin(batch.interfaces)
        encoder.ahead(batch)
        clean = b"".join(encoder.encode(batch, encoder.blocks(batch)))
        assembler = encoder._assembler
        held = assembler._buf
        held[:] = POISON
        again = encoder.encode(batch, encoder.blocks(batch))
        assert b"".join(again) == clean
        assert assembler._buf is held


def test_large_frames_are_referred_to_and_small_ones_copied() -> None:
    sizes = [INLINE + 1, 10, INLINE, 65_612]
    batch = FrameBatch.of([bytes(size) for size in sizes])
    encoder = PcapngEncoder(application="x")
    pieces = encoder.encode(batch, encoder.blocks(batch))
    theirs = [
        piece.nbytes
        for piece in pieces
        if np.shares_memory(np.frombuffer(piece, np.uint8), batch.buf)
    ]
    assert theirs == [size for size in sizes if size > INLINE]
    assert sum(piece.nbytes for piece in pieces) == int(encoder.blocks(batch).size.sum())


def test_a_block_longer_than_the_buffer_makes_it_grow() -> None:
    assembler = Assembler()
    batch = FrameBatch.of([b""])
    placed = assembler.start(batch, np.array([CHUNK + 4]))
    assert placed.buf.size >= CHUNK + 4


@given(
    st.lists(st.sampled_from([0, 100, INLINE, INLINE + 1, CHUNK // 2, 2 * CHUNK]), max_size=12),
    st.lists(st.integers(0, 2 * CHUNK), min_size=12, max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_chunks_cover_the_rows_and_fit(
    caplens: list[int], extra: list[int], begin: int, end: int
) -> None:
    end = min(end, len(caplens))
    begin = min(begin, end)
    caplen = np.array(caplens, np.int64)
    size = caplen + np.array(extra[: caplen.size], np.int64)
    batch = FrameBatch(
        buf=np.zeros(SLACK, np.uint8),
        offset=np.zeros_like(caplen),
        caplen=caplen,
        origlen=caplen,
        time_ns=np.zeros_like(caplen),
        interface=np.zeros_like(caplen),
        number=np.zeros_like(caplen),
        interfaces=(Interface(),),
    )
    ranges = chunks(batch, size, begin, end)
    assert [row for first, last in ranges for row in range(first, last)] == list(range(begin, end))
    inline = np.where(caplen > INLINE, size - caplen, size)
    for first, last in ranges:
        assert last == first + 1 or inline[first:last].sum() <= CHUNK
