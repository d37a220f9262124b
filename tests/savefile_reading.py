"""Read bytes as a savefile in every way there is, and say what a plain reader makes of them."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import plain_savefile as plain
from hypothesis import strategies as st
from plain_blocks import CUSTOM_TEXT
from savefile_cases import Row

from vsockdump.errors import SavefileError
from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics, Option, Section
from vsockdump.sources.savefile import CHUNK, Savefile

chunks = st.sampled_from((64, 100, 1000, CHUNK)) | st.integers(64, 5000)
TIMES = (-(2**63), 2**63 - 1)


@dataclass
class Outcome:
    """All that a savefile gave; ``damage`` is where it was damaged, if it was."""

    format: str
    rows: list[Row] = field(default_factory=list)
    interfaces: list[Interface] = field(default_factory=list)
    statistics: dict[int, InterfaceStatistics] = field(default_factory=dict)
    damage: int | None = None


def rows_of(batch: FrameBatch) -> list[Row]:
    """The rows of a batch as plain values."""
    return [
        Row(
            batch.frame(row),
            int(batch.origlen[row]),
            int(batch.time_ns[row]),
            int(batch.interface[row]),
            batch.options.get(row, ()),
        )
        for row in range(len(batch))
    ]


def read(source: Savefile) -> tuple[Outcome, SavefileError | None]:
    """Read to the end or to the one error, then close."""
    outcome, error = Outcome(source.format), None
    try:
        for batch in source.batches():
            assert len(batch)
            numbers = range(len(outcome.rows) + 1, len(outcome.rows) + len(batch) + 1)
            assert batch.number.tolist() == list(numbers)
            outcome.rows += rows_of(batch)
    except SavefileError as raised:
        error = raised
        assert error.file == source.name
        assert str(error) == f"{error.file}: at byte {error.offset}: {error.reason}"
        outcome.damage = error.offset
    finally:
        outcome.interfaces = source.interfaces
        outcome.statistics = dict(source.statistics())
        source.close()
    return outcome, error


def opened(target: int, chunk: int) -> tuple[Outcome, SavefileError | None]:
    """Open and read; a file that is none gives its error as well."""
    try:
        source = Savefile(target, chunk=chunk)
    except SavefileError as error:
        return Outcome("", damage=error.offset), error
    return read(source)


@contextmanager
def held(pieces: Iterable[bytes]) -> Iterator[int]:
    """A regular file of these pieces, without a name."""
    file = os.memfd_create("savefile")
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.writelines(pieces)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def read_bytes(data: bytes, chunk: int = CHUNK) -> Outcome:
    """Read a regular file with these bytes."""
    with held([data]) as file:
        return opened(file, chunk)[0]


@contextmanager
def fed(pieces: Iterable[bytes]) -> Iterator[int]:
    """A pipe that a thread writes these pieces to, as fast as the reader takes them."""
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            try:
                for piece in pieces:
                    pipe.write(piece)
            except BrokenPipeError:
                pass  # the reader found damage and has no use for the rest

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield reading
    finally:
        os.close(reading)
        feeder.join()


def read_pieces(data: bytes, cuts: Sequence[int], chunk: int = CHUNK) -> Outcome:
    """Read the bytes from a pipe, written in pieces that end at these places."""
    edges = [0, *sorted(cuts), len(data)]
    with fed([data[one:other] for one, other in pairwise(edges)]) as pipe:
        return opened(pipe, chunk)[0]


def expected(data: bytes) -> Outcome:
    """What there is in these bytes, plainly read."""
    if not data:
        return Outcome("", damage=0)
    found = plain.parse(data)
    known = data[:4] in plain.PCAP_MAGICS or data[:4] == plain.SHB.to_bytes(4, "little")
    orders = [each.section.order if each.section else "<" for each in found.interfaces]
    return Outcome(
        found.format if known else "",
        [
            Row(
                packet.data,
                packet.origlen,
                clipped(packet.time_ns),
                packet.interface,
                tuple(
                    Option(code=code, value=little(code, value, orders[packet.interface]))
                    for code, value in packet.options
                ),
            )
            for packet in found.packets
        ],
        [described(each) for each in found.interfaces],
        {
            each.interface: counted(each, found.interfaces[each.interface])
            for each in found.statistics
        },
        None if found.damage is None else found.damage.at,
    )


def clipped(time_ns: int | None) -> int:
    return 0 if time_ns is None else max(TIMES[0], min(TIMES[1], time_ns))


def little(code: int, value: bytes, order: str) -> bytes:
    """An option of a packet with the integer it holds, or starts with, little-endian."""
    if order == "<":
        return value
    if (code, len(value)) in ((2, 4), (6, 4), (4, 8), (5, 8)):
        return value[::-1]
    if code in (CUSTOM_TEXT, CUSTOM_TEXT + 1, 19372, 19373) and len(value) >= 4:
        return value[:4][::-1] + value[4:]
    return value


def text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode("utf-8", "replace")


def described(each: plain.Interface) -> Interface:
    section = Section()
    if each.section is not None:
        about = each.section.options
        section = Section(
            hardware=text(plain.first(about, 2)),
            os=text(plain.first(about, 3)),
            application=text(plain.first(about, 4)),
            comments=tuple(map(text, plain.every(about, 1))),
        )
    filter_ = plain.first(each.options, 11) or b""
    return Interface(
        linktype=each.linktype,
        snaplen=each.snaplen,
        name=text(plain.first(each.options, 2)),
        description=text(plain.first(each.options, 3)),
        filter=text(filter_[1:]) if filter_[:1] == b"\0" else "",
        os=text(plain.first(each.options, 12)),
        comments=tuple(map(text, plain.every(each.options, 1))),
        section=section,
        nanoseconds=each.ticks_per_second > 10**6,
    )


def counted(each: plain.Statistics, interface: plain.Interface) -> InterfaceStatistics:
    assert interface.section is not None
    order = interface.section.order

    def eight(code: int) -> bytes | None:
        value = plain.first(each.options, code)
        return value if value is not None and len(value) == 8 else None

    def number(code: int) -> int | None:
        value = eight(code)
        return None if value is None else struct.unpack(order + "Q", value)[0]

    def time_ns(code: int) -> int | None:
        value = eight(code)
        if value is None:
            return None
        high, low = struct.unpack(order + "II", value)
        return clipped(interface.time_ns(high << 32 | low))

    return InterfaceStatistics(
        received=number(4), dropped=number(5), start_ns=time_ns(2), end_ns=time_ns(3)
    )
