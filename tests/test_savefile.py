"""Savefiles give every whole packet, however they are laid out, cut, corrupted, split or packed.

Invariant: read whole or in any pieces, with any buffer, a file's outcome is that of the plain
reader: all packets before the damage, then one error that names the file, the offset and a reason.
"""

from __future__ import annotations

import gzip
import itertools
import os
import random
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from plain_blocks import (
    HEADS,
    NANOSECONDS,
    SMALL,
    TSRESOL,
    block,
    interface,
    packet,
    rich,
    savefiles,
    section,
)
from savefile_reading import chunks, expected, fed, read, read_bytes, read_pieces

from vsockdump.errors import SavefileError
from vsockdump.frames import FrameBatch
from vsockdump.sources import chain, savefile
from vsockdump.sources.savefile import CHUNK, Savefile


@given(savefiles(), chunks)
def test_a_file_is_read_as_plainly(data: bytes, chunk: int) -> None:
    outcome = read_bytes(data, chunk)
    assert outcome == expected(data)
    assert outcome.damage is None


@given(savefiles(), chunks, st.data())
def test_a_pipe_gives_what_a_file_gives(data: bytes, chunk: int, draw: st.DataObject) -> None:
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=8))
    assert read_pieces(data, cuts, chunk) == expected(data)


@given(savefiles(), chunks, st.data())
def test_a_corrupt_file_gives_all_before_the_damage(
    data: bytes, chunk: int, draw: st.DataObject
) -> None:
    corrupt = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, len(data) - 1))
        corrupt[place] = draw.draw(st.integers(0, 255))
    assert read_bytes(bytes(corrupt), chunk) == expected(bytes(corrupt))


@given(savefiles(), chunks, st.data(), st.sampled_from((0, 4, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)))
def test_any_word_may_be_huge(data: bytes, chunk: int, draw: st.DataObject, value: int) -> None:
    place = draw.draw(st.integers(0, len(data) // 4 - 1)) * 4
    order = draw.draw(st.sampled_from("<>"))
    corrupt = data[:place] + struct.pack(order + "I", value) + data[place + 4 :]
    assert read_bytes(corrupt, chunk) == expected(corrupt)


@given(st.binary(max_size=200), chunks)
def test_any_bytes_are_read_or_refused(data: bytes, chunk: int) -> None:
    assert read_bytes(data, chunk) == expected(data)


budgets = st.integers(1, 4)


@given(savefiles(), chunks, budgets, budgets, st.integers(0, 3), st.sampled_from((0, 10**9)))
def test_the_reader_may_scan_hop_and_change_its_mind_anywhere(
    data: bytes, chunk: int, hops: int, runs: int, scans: int, sparse: int
) -> None:
    with patch.multiple(chain, HOPS=hops, RUNS=runs, SCANS=scans, SPARSE=sparse):
        assert read_bytes(data, chunk) == expected(data)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [CHUNK, 50_000])
def test_long_files_are_read_as_plainly(seed: int, chunk: int) -> None:
    data = long_file(random.Random(seed), 6000)
    corrupt = bytearray(data)
    corrupt[len(data) * 3 // 4] ^= 0x5A
    assert read_bytes(data, chunk) == expected(data)
    assert read_bytes(bytes(corrupt), chunk) == expected(bytes(corrupt))


def long_file(rng: random.Random, count: int) -> bytes:
    """Many packets, among them fakes in payload and other blocks, of two clocks."""
    order = rng.choice("<>")
    fine = interface(order, [(TSRESOL, NANOSECONDS)])
    blocks = [section(order) + fine + interface(order)]
    for _ in range(count):
        data = rng.randbytes(rng.randrange(200))
        if rng.random() < 0.05:
            data += packet(order, data) * rng.randrange(3)
        if rng.random() < 0.01:
            blocks.append(block(order, 0xBAD, rng.choice(blocks) * rng.randrange(40)))
        blocks.append(packet(order, data, index=rng.randrange(2), ticks=rng.getrandbits(50)))
    return b"".join(blocks)


@pytest.mark.parametrize("most", [1 << 14, 1 << 20])
def test_batches_are_as_large_as_asked_for_up_to_a_bound(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savefile, "LARGEST_CHUNK", most)
    size, wanted = len(packet("<", bytes(100))), 2000
    path = tmp_path / "x.pcapng"
    path.write_bytes(section("<") + interface("<") + packet("<", bytes(100)) * 20_000)
    source, sizes, numbers = Savefile(path, chunk=5000), [], []
    source.enlarge(wanted)  # Nothing is known of the packets yet.
    for batch in source.batches():
        sizes.append(len(batch))
        numbers += batch.number.tolist()
        source.enlarge(wanted if len(sizes) < 10 else 10)
    source.close()
    assert numbers == list(range(1, 20_001))
    assert max(sizes[:2]) <= 5000 // size
    # Once asked for they stay.
    assert sizes[-2] == pytest.approx(min(wanted, most // size), rel=0.02)


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL.keys())
def test_a_file_cut_anywhere_gives_all_before_the_cut(data: bytes) -> None:
    for length in range(len(data)):
        cut = data[:length]
        found = read_bytes(cut, 64 + length % 200)
        assert found == expected(cut), length
        # Some cuts fall between blocks, and only those leave a whole file.
        assert (found.damage is None) == (expected(cut).damage is None)


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL.keys())
def test_every_single_byte_may_be_wrong(data: bytes) -> None:
    for place in range(len(data)):
        corrupt = bytearray(data)
        corrupt[place] ^= (0x01, 0x80, 0xFF)[place % 3]
        assert read_bytes(bytes(corrupt), 128) == expected(bytes(corrupt)), place


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL.keys())
def test_a_pipe_may_give_a_byte_at_a_time(data: bytes) -> None:
    assert read_pieces(data, range(len(data))) == expected(data)


# -- a file that is still being written -----------------------------------------------------------


def frames(batches: Iterator[FrameBatch]) -> list[bytes]:
    """The frames of the next batch."""
    batch = next(batches)
    return [batch.frame(row) for row in range(len(batch))]


@contextmanager
def live() -> Iterator[tuple[int, BinaryIO]]:
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            yield reading, pipe
    finally:
        os.close(reading)


def gzipped() -> Callable[[bytes], bytes]:
    """A gzip writer that flushes all it is given."""
    packer = zlib.compressobj(wbits=31)
    return lambda data: packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def zstandardized() -> Callable[[bytes], bytes]:
    packer = zstandard.ZstdCompressor().compressobj()
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return lambda data: packer.compress(data) + packer.flush(flush)


def as_it_is() -> Callable[[bytes], bytes]:
    return bytes


@pytest.mark.parametrize("packer", [as_it_is, gzipped, zstandardized])
@pytest.mark.parametrize("format_", HEADS)
def test_packets_arrive_as_they_are_written(
    format_: str, packer: Callable[[], Callable[[bytes], bytes]]
) -> None:
    head, frame = HEADS[format_]
    pack = packer()
    with live() as (reading, pipe):
        one, two, three = map(frame, (b"one", b"two", b"three"))
        pipe.write(pack(head + one))
        source = Savefile(reading)
        batches = source.batches()
        assert frames(batches) == [b"one"]
        # Half a packet is none: the rest of it comes with the next one.
        pipe.write(pack(two + three[:9]))
        assert frames(batches) == [b"two"]
        pipe.write(pack(three[9:]))
        assert frames(batches) == [b"three"]
        pipe.close()
        if packer is as_it_is:
            assert list(batches) == []
        else:
            # Nobody ended the member.
            with pytest.raises(SavefileError, match="cut short"):
                next(batches)
        source.close()


def test_a_packet_that_arrived_does_not_wait_for_compressed_bytes_that_say_nothing() -> None:
    pack = gzipped()
    with live() as (reading, pipe):
        head, frame = HEADS["pcapng"]
        whole = pack(head + frame(b"one"))
        following = pack(frame(b"two"))
        pipe.write(whole + following[:1])
        source = Savefile(reading)
        batches = source.batches()
        assert frames(batches) == [b"one"]
        pipe.write(following[1:])
        assert frames(batches) == [b"two"]
        source.close()


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    with live() as (reading, pipe):
        os.set_blocking(reading, False)
        head, frame = HEADS["pcapng"]
        timers = [
            threading.Timer(0.02 * step, pipe.write, [part])
            for step, part in enumerate((head[:2], head[2:], frame(b"one")))
        ]
        for timer in timers:
            timer.start()
        source = Savefile(reading)
        batches = source.batches()
        assert frames(batches) == [b"one"]
        for timer in timers:
            timer.join()
        pipe.close()
        assert list(batches) == []
        source.close()


# -- what a file is, and who says so --------------------------------------------------------------


def test_a_path_names_itself_in_its_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    data = rich("<")
    path.write_bytes(data[:-1])
    source = Savefile(path)
    assert (source.name, source.format, source.size) == (str(path), "pcapng", len(data) - 1)
    assert source.identity == (path.stat().st_dev, path.stat().st_ino)
    outcome, error = read(source)
    assert error is not None
    last = len(packet(">", b"last"))
    start = len(data) - last
    assert str(error) == (
        f"{path}: at byte {start}: cut short: the block needs {last} bytes, had {last - 1}"
    )
    assert [row.data for row in outcome.rows] == [row.data for row in expected(data).rows[:-1]]
    assert source.consumed == len(data) - 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\x0a", "neither pcap nor pcapng"),
        (b"neither of them", "neither pcap nor pcapng"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (gzip.compress(b"neither of them", mtime=0), "neither pcap nor pcapng"),
        (gzip.compress(b"", mtime=0)[:-9], "cut short"),
        (b"\x1f\x8b\xff\xff\xff\xff", "the compressed data is corrupt"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_savefile_is_refused_and_closed(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    before = open_files()
    with pytest.raises(SavefileError, match=reason) as caught:
        Savefile(path)
    assert (caught.value.file, caught.value.offset) == (str(path), 0)
    assert open_files() == before


def open_files() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def test_a_descriptor_stays_open() -> None:
    with TemporaryFile() as file:
        file.write(rich("<"))
        file.seek(0)
        read(Savefile(file.fileno()))
        assert file.read() == b""


def test_only_one_damage_is_told_and_then_nothing() -> None:
    data = rich("<")
    with fed([data[:-1]]) as pipe:
        source = Savefile(pipe)
        batches = source.batches()
        with pytest.raises(SavefileError):
            list(batches)
        assert list(batches) == []
        source.close()
        source.close()
