"""Compressed savefiles are what is in them; damaged ones give all that can be unfolded.

Invariant: cut or corrupted anywhere, a file gives every packet that a library makes of the bytes
before the damage, then one error.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import plain_savefile
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from plain_blocks import (
    HEADS,
    packet,
    rich,
    savefiles,
)
from savefile_reading import Outcome, chunks, expected, read, read_bytes, read_pieces

from vsockdump.sources.compressed import MAGIC_LEN, Unfolded
from vsockdump.sources.savefile import Savefile


def gzip_members(pieces: Iterable[bytes]) -> bytes:
    return b"".join(map(gzip.compress, pieces))


def zstd_frames(pieces: Iterable[bytes]) -> bytes:
    """Frames with and without their length and a checksum, and frames that hold nothing."""
    packers = [
        zstandard.ZstdCompressor(write_checksum=at % 2 > 0, write_content_size=at % 4 > 1)
        for at in range(4)
    ]
    skippable = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 5) + b"hello"
    return b"".join(
        skippable * (at % 3) + packers[at % 4].compress(piece) for at, piece in enumerate(pieces, 1)
    )


PACKERS = {"gzip": gzip_members, "zstd": zstd_frames}


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    edges = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=4))), len(data)]
    return [data[one:other] for one, other in pairwise(edges)]


@pytest.mark.parametrize("kind", PACKERS)
@given(data=savefiles(), chunk=chunks, draw=st.data())
def test_a_compressed_file_is_what_is_in_it(
    kind: str, data: bytes, chunk: int, draw: st.DataObject
) -> None:
    packed = PACKERS[kind](draw.draw(pieces_of(data)))
    padded = packed + bytes(draw.draw(st.sampled_from((0, 1, 5000, 70_000))))
    assert read_bytes(padded, chunk) == expected(data)
    cuts = draw.draw(st.lists(st.integers(0, len(packed)), max_size=4))
    assert read_pieces(packed, cuts, chunk) == expected(data)


class Unpacked(NamedTuple):
    """What a library makes of compressed bytes, fed one by one."""

    data: bytes
    sure: int
    """How much of it comes from whole members."""
    whole: bool


def unpacked(kind: str, packed: bytes) -> Unpacked:
    def decoder() -> Any:
        if kind == "gzip":
            return zlib.decompressobj(31)
        return zstandard.ZstdDecompressor().decompressobj()

    data, sure, current = b"", 0, None
    for place in range(len(packed)):
        if current is None:
            current = decoder()
        try:
            data += current.decompress(packed[place : place + 1])
        except (zlib.error, zstandard.ZstdError):
            return Unpacked(data, sure, whole=False)
        if current.eof:
            current, sure = None, len(data)
    return Unpacked(data, sure, whole=current is None)


def ended_by_damage(there: Unpacked) -> Outcome:
    """What a file gives that unfolds to this much before it turns out to be damaged."""
    if len(there.data) < MAGIC_LEN:
        return Outcome("", damage=len(there.data))
    outcome = expected(there.data)
    found = plain_savefile.parse(there.data).damage
    if found is None or "cut" in str(found):
        # Nothing but its end is wrong with what there is, so the other damage is told.
        outcome.damage = len(there.data)
    return outcome


@pytest.mark.parametrize("kind", PACKERS)
@given(data=savefiles(), chunk=chunks, draw=st.data())
def test_a_compressed_file_that_is_cut_gives_all_that_can_be_unfolded(
    kind: str, data: bytes, chunk: int, draw: st.DataObject
) -> None:
    packed = PACKERS[kind](draw.draw(pieces_of(data)))
    packed = packed[: draw.draw(st.integers(MAGIC_LEN, len(packed)))]
    there = unpacked(kind, packed)
    assert read_bytes(packed, chunk) == (
        expected(there.data) if there.whole else ended_by_damage(there)
    )


@pytest.mark.parametrize("kind", PACKERS)
@given(data=savefiles(), chunk=chunks, draw=st.data())
def test_a_compressed_file_with_a_wrong_bit_gives_all_before_it(
    kind: str, data: bytes, chunk: int, draw: st.DataObject
) -> None:
    packed = bytearray(PACKERS[kind](draw.draw(pieces_of(data))))
    packed[draw.draw(st.integers(MAGIC_LEN, len(packed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    there = unpacked(kind, packed)
    found = read_bytes(packed, chunk)
    if there.whole:
        assert found == expected(there.data)
    elif kind == "gzip":
        assert found == ended_by_damage(there)
    else:
        # A block that makes no sense is unfolded in part or not at all, as the library likes.
        most, least = expected(there.data).rows, expected(there.data[: there.sure]).rows
        assert found.damage is not None
        assert len(least) <= len(found.rows) <= len(most)
        assert found.rows == most[: len(found.rows)]


@pytest.mark.parametrize("more", [0, 4])
def test_a_block_that_is_too_large_is_told_before_where_the_data_ends(more: int) -> None:
    head = HEADS["pcapng"][0]
    block = struct.pack("<II", plain_savefile.EPB, plain_savefile.LARGEST + more)
    packed = gzip.compress(head + block + bytes(40))[:-1]
    found = read_bytes(packed)
    assert found == ended_by_damage(Unpacked(head + block + bytes(40), 0, whole=False))
    assert found.damage == len(head) + (0 if more else len(block) + 40)


def noise(count: int) -> list[bytes]:
    """Packets that compress badly, so that blocks of compressed data are as long as can be."""
    rng = random.Random(count)
    return [packet("<", rng.randbytes(1000), ticks=place) for place in range(count)]


def text(count: int) -> list[bytes]:
    """Packets that compress so well that a step could unfold to all of them."""
    return [packet("<", b"the same again" * 70, ticks=place) for place in range(count)]


@pytest.mark.parametrize("make", [noise, text])
@pytest.mark.parametrize("kind", PACKERS)
def test_a_wrong_checksum_costs_no_packet(
    kind: str, make: Callable[[int], list[bytes]], tmp_path: Path
) -> None:
    data = HEADS["pcapng"][0] + b"".join(make(900))
    if kind == "gzip":
        packed, checksum = bytearray(gzip.compress(data)), -8
    else:
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(data))
        checksum = -4
    packed[checksum] ^= 1
    path = tmp_path / "x"
    path.write_bytes(packed)
    outcome, error = read(Savefile(path))
    assert outcome.rows == expected(data).rows
    assert error is not None
    assert (error.file, error.offset) == (str(path), len(data))
    assert "compressed data is corrupt" in error.reason


def test_damage_in_a_later_zstd_block_leaves_the_ones_before() -> None:
    data = HEADS["pcapng"][0] + b"".join(text(900))
    packed = zstandard.ZstdCompressor().compress(data)
    third = zstd_block_at(packed, 2)
    reserved = packed[third] | 0b110
    found = read_bytes(packed[:third] + bytes([reserved]) + packed[third + 1 :])
    assert found == ended_by_damage(Unpacked(data[: 2 * ZSTD_BLOCK], 0, whole=False))
    assert len(found.rows) > ZSTD_BLOCK // 1024


ZSTD_BLOCK = 128 * 1024


def zstd_block_at(frame: bytes, number: int) -> int:
    """Where the header of a block is, in a frame that tells its length in four bytes."""
    descriptor = frame[MAGIC_LEN]
    assert descriptor >> 6 == 2
    at = MAGIC_LEN + 1 + (1 - (descriptor >> 5 & 1)) + 4
    for _ in range(number):
        at += 3 + (int.from_bytes(frame[at : at + 3], "little") >> 3)
    return at


@pytest.mark.parametrize("kind", PACKERS)
def test_what_follows_a_compressed_file_is_damage_unless_it_is_zeros(kind: str) -> None:
    data = rich("<")
    packed = PACKERS[kind]([data])
    found = read_bytes(packed + b"garbage")
    assert found == replace(expected(data), damage=len(data))
    assert read_bytes(packed + bytes(10**5)) == expected(data)
    assert read_bytes(packed + bytes(10**5) + b"garbage") == found


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_an_unfinished_step_is_small(kind: str) -> None:
    """A compression bomb is unfolded as it is taken, not before."""
    bomb = bytes(1 << 26)
    packed = PACKERS[kind]([bomb])
    unfolded = Unfolded(kind, io.BytesIO(packed).read)
    taken = memoryview(bytearray(1))
    tracemalloc.start()
    try:
        while not unfolded.readinto(taken):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(bomb) // 4
