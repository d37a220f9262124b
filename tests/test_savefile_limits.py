"""No file costs more than its length: work is linear in it, and memory does not depend on it.

Work is counted, not timed: calls of functions, those of libraries included, and bytes looked at by
a scan. Numpy's own loops are not seen, so what they are handed is what is bounded here.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from plain_blocks import (
    FAKE,
    TSOFFSET,
    block,
    interface,
    obsolete,
    options,
    packet,
    pcap_header,
    record,
    section,
    simple,
    statistics,
)
from plain_savefile import PCAP_MAGICS
from savefile_reading import fed, held

from vsockdump.errors import SavefileError
from vsockdump.sources import chain, pcap, pcapng, savefile
from vsockdump.sources.savefile import CHUNK, Savefile
from vsockdump.sources.ticks import Clock

MAGIC = next(iter(PCAP_MAGICS))
HEAD = section("<") + interface("<")
UNKNOWN = 0xBAD


class Work:
    """What reading costs."""

    def __init__(self) -> None:
        self.calls = 0
        self.scanned = 0
        self.packets = 0


class SeenClock(Clock):
    """A clock that is seen to be compared: what C does with tuples is not."""

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


@contextmanager
def counted(work: Work) -> Iterator[None]:
    """Count calls, and what the scans of both formats are handed."""

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            work.calls += 1

    def scanning(original: Callable[..., Any]) -> Callable[..., Any]:
        def scan(self: object, buf: object, begin: int, end: int) -> Any:
            work.scanned += end - begin
            return original(self, buf, begin, end)

        return scan

    parsers = (pcap.PcapParser, pcapng.PcapngParser)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pcapng, "Clock", SeenClock)
        for parser in parsers:
            patched.setattr(parser, "_chain", scanning(parser._chain))
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(before)


def work_of(data: bytes) -> Work:
    work = Work()
    with held([data]) as file:
        source = Savefile(file)
        with counted(work):
            for batch in source.batches():
                work.packets += len(batch)
        source.close()
    return work


def offset(seconds: int) -> bytes:
    """An interface whose clock is like no other."""
    return interface("<", [(TSOFFSET, seconds.to_bytes(8, "little"))])


many = b"".join(offset(place) for place in range(3000))
fake = packet("<", b"")
text = options("<", [(1, b"text")])

TRAPS: dict[str, tuple[bytes, bytes, int]] = {
    # What the file starts with, what it goes on with, and calls allowed for each of those.
    "small packets": (HEAD, packet("<", b""), 1),
    "blocks nobody needs": (HEAD, block("<", UNKNOWN, b""), 5),
    "blocks nobody needs between packets": (HEAD, packet("<", b"") + block("<", UNKNOWN, b""), 8),
    "blocks nobody needs behind many interfaces": (
        section("<") + many,
        packet("<", b"") + block("<", UNKNOWN, b""),
        30,
    ),
    "packets of many clocks, one at a time": (
        section("<") + many,
        packet("<", b"", index=1) + statistics("<", [], index=1),
        150,
    ),
    "packets of many clocks": (
        section("<") + many,
        b"".join(packet("<", b"", index=place) for place in range(50)),
        50 * 20,
    ),
    "simple packets": (HEAD, simple("<", b"x"), 60),
    "obsolete packets": (HEAD, obsolete("<", b"x"), 80),
    "interfaces": (HEAD, interface("<"), 80),
    "sections": (HEAD, section("<"), 80),
    "statistics": (HEAD, statistics("<", []), 80),
    "packets in packets": (HEAD, packet("<", fake * 9), 4),
    "packets in packets that lead astray": (HEAD, packet("<", (fake + b"\0\0\0\0") * 9), 4),
    "sections in packets": (HEAD, packet("<", FAKE[0] * 9), 4),
    "packets in blocks nobody needs": (HEAD, block("<", UNKNOWN, fake * 9), 6),
    "comments": (HEAD, packet("<", b"", behind=text), 20),
    "options of nothing": (
        HEAD,
        packet("<", b"", behind=options("<", [(1, b"")] * 50)),
        50 * 8,
    ),
    "records": (pcap_header(MAGIC), record(MAGIC, b""), 4),
    "records of zeros": (pcap_header(MAGIC), record(MAGIC, bytes(500)), 4),
    "records in records": (pcap_header(MAGIC), record(MAGIC, record(MAGIC, b"") * 9), 4),
    "records in records that lead astray": (
        pcap_header(MAGIC),
        record(MAGIC, (record(MAGIC, b"") + b"\0") * 9),
        4,
    ),
    "records that jump in time": (
        pcap_header(MAGIC),
        record(MAGIC, b"x") + record(MAGIC, b"y", seconds=2**31),
        2 * 4,
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_work_is_linear(trap: str) -> None:
    start, each, allowed = TRAPS[trap]
    count = 1000 if len(each) < 500 else 100
    base, once, twice = (work_of(start + each * times) for times in (0, count, 2 * count))
    calls = once.calls - base.calls
    # A buffer has a price of its own, whatever is in it.
    buffers = 2 + len(each) * count // CHUNK
    assert calls <= count * allowed + buffers * 2000, calls / count
    assert twice.calls - base.calls <= 2.2 * calls + 4000
    for work, times in ((once, count), (twice, 2 * count)):
        assert work.scanned <= (chain.SCANS + 1) * len(start + each * times)


@pytest.mark.parametrize("piece", [1, 100])
@pytest.mark.parametrize(
    "waiting",
    [packet("<", bytes(50_000)), block("<", UNKNOWN, bytes(50_000)), interface("<", [(1, b"x")])],
    ids=["packet", "unknown", "interface"],
)
def test_waiting_for_the_rest_of_a_block_looks_at_nothing(waiting: bytes, piece: int) -> None:
    parser = pcapng.PcapngParser([])
    buf = np.frombuffer(HEAD + waiting + bytes(128), np.uint8)
    work = Work()
    with counted(work):
        at = parser.parse(buf, 0, len(HEAD), last=False).consumed
        for end in range(len(HEAD), len(HEAD + waiting), max(piece, len(waiting) // 300)):
            assert parser.parse(buf, at, end, last=False).consumed == at
    assert work.scanned == 0


def test_waiting_for_the_rest_of_a_record_looks_at_nothing() -> None:
    waiting = record(MAGIC, bytes(50_000))
    head = pcap_header(MAGIC)
    parser = pcap.PcapParser([])
    buf = np.frombuffer(head + waiting + bytes(128), np.uint8)
    work = Work()
    with counted(work):
        at = parser.parse(buf, 0, len(head), last=False).consumed
        for end in range(len(head), len(head + waiting), 200):
            assert parser.parse(buf, at, end, last=False).consumed == at
    assert work.scanned == 0


# -- memory ---------------------------------------------------------------------------------------

MIB = 1 << 20


@contextmanager
def traced() -> Iterator[None]:
    # Nobody touches the memory that is held to be kept when it is freed, so it costs none.
    with patch.object(savefile, "keep_freed_memory"):
        tracemalloc.start()
        try:
            yield
        finally:
            tracemalloc.stop()


def peak_of(
    pieces: Iterable[bytes], *, by: Callable[..., AbstractContextManager[int]] = fed
) -> tuple[int, int, SavefileError | None]:
    """The most memory that reading these pieces takes, their packets, and their error."""
    packets, error = 0, None
    with traced(), by(pieces) as target:
        source = Savefile(target, chunk=MIB)
        try:
            for batch in source.batches():
                packets += len(batch)
        except SavefileError as raised:
            error = raised
        source.close()
        _, peak = tracemalloc.get_traced_memory()
    return peak, packets, error


def stream(head: bytes, each: bytes, size: int) -> Iterator[bytes]:
    """A head, and so many bytes or a few more of what follows again and again."""
    yield head
    piece = each * (1 + 100_000 // len(each))
    for _ in range(1 + size // len(piece)):
        yield piece


STREAMS = {
    "packets": (HEAD, packet("<", bytes(60))),
    "frames of 64 KiB": (HEAD, packet("<", bytes(65_612))),
    "packets with comments": (HEAD, packet("<", bytes(60), behind=text)),
    "records": (pcap_header(MAGIC), record(MAGIC, bytes(60))),
    "sections": (b"", section("<", [(1, bytes(3000))])),
    "statistics": (HEAD, statistics("<", [(1, bytes(3000))])),
    "blocks nobody needs": (HEAD, block("<", UNKNOWN, bytes(3000))),
    "long blocks nobody needs": (HEAD, block("<", UNKNOWN, bytes(3 * MIB))),
}
ROOM = 8 * MIB
"""What a buffer, its columns and the pieces on their way may take."""


@pytest.mark.parametrize("kind", STREAMS)
def test_memory_does_not_grow_with_the_file(kind: str) -> None:
    # From a file, not a pipe: how much a pipe gives at a time is up to chance.
    short, long = (peak_of(stream(*STREAMS[kind], size), by=held) for size in (3 * MIB, 9 * MIB))
    assert short[2] is long[2] is None
    assert long[0] < short[0] + MIB
    assert long[0] < ROOM + 6 * len(STREAMS[kind][1])


@pytest.mark.parametrize("whole", [True, False])
def test_a_block_of_gigabytes_is_not_kept(whole: bool) -> None:
    length = 100 * MIB if whole else 0xFFFF_FFFC
    head = HEAD + np.array([UNKNOWN, length], "<u4").tobytes()
    rest = (bytes(MIB) for _ in range(100))
    tail = np.array([length], "<u4").tobytes()[: 4 if whole else 0]
    # The block's type and length are part of its hundred mebibytes, and so is its second length.
    pieces = [head, bytes(MIB - 12), *(next(rest) for _ in range(99)), tail, packet("<", b"x")]
    peak, packets, error = peak_of(pieces)
    assert peak < ROOM
    assert packets == whole
    assert (error is None) == whole
    assert error is None or error.offset == len(HEAD)


@pytest.mark.parametrize(
    "claim",
    [
        HEAD + np.array([6, 0xFFFF_FFFC], "<u4").tobytes(),
        HEAD + np.array([1, 0x7FFF_FFFC], "<u4").tobytes(),
        pcap_header(MAGIC) + np.array([0, 0, 0xFFFF_FFFF, 1], "<u4").tobytes(),
    ],
    ids=["packet", "interface", "record"],
)
def test_a_packet_of_gigabytes_is_damage_at_once(claim: bytes) -> None:
    peak, packets, error = peak_of([claim, *[bytes(MIB)] * 40])
    assert peak < ROOM
    assert packets == 0
    assert error is not None
    assert "claims" in error.reason


def test_one_long_block_does_not_make_long_batches() -> None:
    small = packet("<", b"")
    blocks = [HEAD, block("<", UNKNOWN, bytes(10 * MIB)), small * (20 * CHUNK // len(small))]
    with fed(blocks) as pipe:
        source = Savefile(pipe)
        sizes = [len(batch) for batch in source.batches()]
        source.close()
    assert sum(sizes) == 20 * CHUNK // len(small)
    # The first batch is what was read behind the long block; then it is a chunk at a time.
    assert max(sizes[2:]) <= CHUNK // len(small)


def test_descriptions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng, "MAX_DESCRIPTIONS", 4 * MIB)
    about = interface("<", [(1, bytes(60_000))])
    peak, _, error = peak_of(stream(section("<"), about, 64 * MIB))
    assert error is not None and "describe" in error.reason
    assert peak < ROOM + pcapng.MAX_DESCRIPTIONS
