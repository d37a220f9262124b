"""Files of long packets are mapped: they give what reading them plainly gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_blocks import block, interface, packet, pcap_header, record, section
from savefile_reading import Outcome, expected, held, read

from vsockdump.sources import savefile
from vsockdump.sources.bytestream import ByteStream
from vsockdump.sources.chain import SPARSE
from vsockdump.sources.savefile import Savefile

NANO = b"\x4d\x3c\xb2\xa1"
LENGTHS = (0, 60, 200, SPARSE, 3 * SPARSE, 40_000)
Make = Callable[[random.Random, list[int]], bytes]
seeds = st.integers(0, 2**32)


def pcapng(rng: random.Random, lengths: list[int]) -> bytes:
    order = rng.choice("<>")
    blocks = [section(order) + interface(order)]
    for length in lengths:
        blocks.append(packet(order, rng.randbytes(length), ticks=rng.getrandbits(50)))
        if rng.random() < 0.1:
            blocks.append(block(order, 0xBAD, bytes(rng.choice((0, 400, 100_000)))))
    return b"".join(blocks)


def pcap(rng: random.Random, lengths: list[int]) -> bytes:
    return pcap_header(NANO) + b"".join(
        record(NANO, rng.randbytes(length), seconds=rng.getrandbits(30)) for length in lengths
    )


def stretches(rng: random.Random) -> list[int]:
    """Lengths of packets: stretches of long ones between stretches of short ones."""
    return [rng.choice(kind) for kind in (LENGTHS[3:], LENGTHS[:3], LENGTHS) * 3 for _ in range(20)]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The sizes of what was mapped meanwhile."""
    sizes: list[int] = []
    before = ByteStream.mapped

    def mapped(stream: ByteStream) -> object:
        found = before(stream)
        if found is not None:
            sizes.append(len(found))
        return found

    with patch.object(ByteStream, "mapped", mapped):
        yield sizes


def read_path(data: bytes, chunk: int, window: int) -> Outcome:
    with held([data]) as file, patch.object(savefile, "WINDOW", window):
        return read(Savefile(f"/proc/self/fd/{file}", chunk=chunk))[0]


@given(seeds, st.sampled_from([pcapng, pcap]), st.data())
def test_what_is_mapped_is_what_would_be_read(seed: int, make: Make, draw: st.DataObject) -> None:
    rng = random.Random(seed)
    data = bytearray(make(rng, stretches(rng)))
    if draw.draw(st.booleans()):
        data = data[: draw.draw(st.integers(100, len(data)))]
    if draw.draw(st.booleans()):
        data[draw.draw(st.integers(24, len(data) - 1))] ^= 0x41
    chunk = draw.draw(st.sampled_from([1000, 20_000, savefile.CHUNK]))
    window = draw.draw(st.sampled_from([512, 10_000, 100_000, savefile.WINDOW]))
    assert read_path(bytes(data), chunk, window) == expected(bytes(data))


@pytest.mark.parametrize("make", [pcapng, pcap])
def test_only_long_packets_are_mapped(make: Make) -> None:
    rng = random.Random(1)
    for length, times in ((3 * SPARSE, 1), (100, 0)):
        lengths = [length] * 400
        data = make(rng, lengths)
        with counted() as sizes:
            assert read_path(data, 50_000, savefile.WINDOW) == expected(data)
        assert sizes == [len(data)] * times


def test_a_file_that_shrinks_meanwhile_ends_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    data = pcap(random.Random(2), [3 * SPARSE] * 400)
    path.write_bytes(data)
    found = 0
    with patch.object(savefile, "WINDOW", 100_000):
        source = Savefile(path, chunk=50_000)
        with pytest.raises(savefile.SavefileError, match="cut short"):
            for batch in source.batches():
                found += len(batch)
                if found > 100:
                    with path.open("r+b") as file:
                        file.truncate(len(data) // 2)
        source.close()
    assert found >= 100


def test_a_file_that_grows_meanwhile_is_read_to_its_new_end(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    more = record(NANO, b"later")
    path.write_bytes(pcap(random.Random(3), [3 * SPARSE] * 400))
    with patch.object(savefile, "WINDOW", 100_000):
        source = Savefile(path, chunk=50_000)
        numbers, grown = [], False
        for batch in source.batches():
            numbers += batch.number.tolist()
            if not grown:
                grown = True
                with path.open("ab") as file:
                    file.write(more)
        source.close()
    assert numbers == list(range(1, 402))


def test_what_cannot_be_mapped_is_read() -> None:
    data = pcap(random.Random(4), [3 * SPARSE] * 200)
    with patch.object(ByteStream, "mapped", return_value=None) as asked:
        assert read_path(data, 50_000, savefile.WINDOW) == expected(data)
    # Once is enough to know.
    assert asked.call_count == 1


def test_long_packets_say_nothing_of_how_short_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savefile, "WINDOW", 1 << 17)
    long, short = packet("<", bytes(60_000)), packet("<", bytes(100))
    path = tmp_path / "x.pcapng"
    path.write_bytes(section("<") + interface("<") + long * 100 + short * 20_000)
    source, sizes = Savefile(path, chunk=1 << 17), []
    for batch in source.batches():
        sizes.append(len(batch))
        source.enlarge(1)
    source.close()
    assert sum(sizes) == 20_100
    assert max(sizes) <= (1 << 17) // len(short)
