from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import plain_savefile as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import ask

from vsockdump.errors import VsockdumpError
from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics
from vsockdump.sinks.rotation import Rotation, parse_size
from vsockdump.sinks.savefile import SavefileWriter
from vsockdump.sources.pcap import FILE_HDR_LEN, RECORD_LEN

SECOND = 10**9
START = 1_780_000_000 * SECOND
CLOCK = "%Y%m%d-%H%M%S"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def at(seconds: float) -> str:
    """The name's time, so many seconds from the start."""
    return time.strftime(CLOCK, time.gmtime(START // SECOND + seconds))


def batch(*rows: tuple[float, int]) -> FrameBatch:
    """Frames of these seconds from the start and sizes; their first bytes number them."""
    return FrameBatch.of(
        [bytes([number % 256]) * size for number, (_, size) in enumerate(rows)],
        time_ns=[START + int(seconds * SECOND) for seconds, _ in rows],
    )


def save(folder: Path, name: str, rotation: Rotation, *batches: FrameBatch) -> dict[str, list[int]]:
    """The first byte of every frame in each file that a pcap writer leaves, by name."""
    with SavefileWriter(folder / name, format="pcap", rotation=rotation) as writer:
        for each in batches:
            writer.write(each)
    return left(folder)


def left(folder: Path) -> dict[str, list[int]]:
    return {
        path.name: [packet.data[0] for packet in plain.read(path).packets]
        for path in sorted(folder.iterdir())
    }


# A file takes frames while it is not larger than so many bytes: the header, and three of ten bytes.
THREE = FILE_HDR_LEN + 3 * (RECORD_LEN + 10) - 1
TEN = [(0, 10)] * 10
EMPTY = batch()


@pytest.mark.parametrize(
    ("rotation", "names"),
    [
        ({}, {"x": range(10)}),
        ({"count": 3}, {"x": range(10)}),
        ({"size": THREE}, {"x": [0, 1, 2], "x1": [3, 4, 5], "x2": [6, 7, 8], "x3": [9]}),
        # One byte more, and a fourth frame is not yet too many.
        ({"size": THREE + 1}, {"x": [0, 1, 2, 3], "x1": [4, 5, 6, 7], "x2": [8, 9]}),
        ({"size": THREE, "count": 1}, {"x": [9]}),
        ({"size": THREE, "count": 2}, {"x0": [6, 7, 8], "x1": [9]}),
        ({"size": THREE, "count": 3}, {"x0": [9], "x1": [3, 4, 5], "x2": [6, 7, 8]}),
        (
            {"size": THREE, "count": 10},
            {"x0": [0, 1, 2], "x1": [3, 4, 5], "x2": [6, 7, 8], "x3": [9]},
        ),
        (
            {"size": THREE, "count": 11},
            {"x00": [0, 1, 2], "x01": [3, 4, 5], "x02": [6, 7, 8], "x03": [9]},
        ),
        # Smaller than the header: every frame its file, and none is left without.
        ({"size": 1, "count": 4}, {"x0": [8], "x1": [9], "x2": [6], "x3": [7]}),
    ],
)
def test_rotation_by_size(
    tmp_path: Path, rotation: dict[str, int], names: dict[str, list[int]]
) -> None:
    frames = batch(*TEN)
    wanted = {name: list(numbers) for name, numbers in names.items()}
    singly = [frames.take(slice(row, row + 1)) for row in range(len(TEN))]
    for how, batches in (("whole", [frames]), ("singly", singly), ("late", [EMPTY, frames])):
        folder = tmp_path / how
        folder.mkdir()
        assert save(folder, "x", Rotation(**rotation), *batches) == wanted


SECONDS = [0.7, 0.8, 9.9, 10, 10.1, 35, 12, 60]


@pytest.mark.parametrize(
    ("rotation", "format", "names"),
    [
        # Windows count from the first second; an empty one makes no file, no frame goes back.
        (
            {"seconds": 10},
            f"{CLOCK}.x",
            {f"{at(0)}.x": [0, 1, 2], f"{at(10)}.x": [3, 4], f"{at(30)}.x": [5, 6]}
            | {f"{at(60)}.x": [7]},
        ),
        ({"seconds": 3600}, CLOCK, {at(0): range(8)}),
        # Without a time in its name each file replaces the one before it.
        ({"seconds": 10}, "x", {"x": [7]}),
        # With -W so many files are made, and then it ends.
        ({"seconds": 10, "count": 1}, CLOCK, {at(0): [0, 1, 2]}),
        ({"seconds": 10, "count": 2}, CLOCK, {at(0): [0, 1, 2], at(10): [3, 4]}),
        # With -C as well, numbers start again in each window, and -W makes a ring of each.
        (
            {"seconds": 10, "size": FILE_HDR_LEN + RECORD_LEN + 1},
            CLOCK,
            {at(0): [0, 1], f"{at(0)}1": [2], at(10): [3, 4], at(30): [5, 6], at(60): [7]},
        ),
        (
            {"seconds": 10, "size": 1, "count": 2},
            CLOCK,
            {f"{at(0)}0": [2], f"{at(0)}1": [1], f"{at(10)}0": [3], f"{at(10)}1": [4]}
            | {f"{at(30)}0": [5], f"{at(30)}1": [6], f"{at(60)}0": [7]},
        ),
    ],
)
def test_rotation_by_time(
    tmp_path: Path, rotation: dict[str, int], format: str, names: dict[str, list[int]]
) -> None:
    frames = batch(*[(seconds, 1) for seconds in SECONDS])
    found = save(tmp_path, format, Rotation(**rotation), frames)
    assert found == {name: list(numbers) for name, numbers in names.items()}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), max_size=30),
    st.lists(st.integers(0, 30), max_size=5),
    st.none() | st.integers(1, 200),
    st.none() | st.integers(1, 15),
    st.none() | st.integers(1, 4),
)
def test_files_do_not_depend_on_how_frames_come_in_batches(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, int]],
    cuts: list[int],
    size: int | None,
    seconds: int | None,
    count: int | None,
) -> None:
    rotation = Rotation(size=size, seconds=seconds, count=count)
    frames = batch(*rows)
    edges = [0, *sorted(cuts), len(rows)]
    parts = [frames.take(slice(*pair)) for pair in pairwise(edges)]
    folders = [tmp_path_factory.mktemp("rotated") for _ in range(3)]
    whole = save(folders[0], CLOCK, rotation, frames)
    pieces = save(folders[1], CLOCK, rotation, *parts)
    singly = save(folders[2], CLOCK, rotation, *(frames.take([row]) for row in range(len(rows))))
    if whole or rows:
        assert whole == pieces == singly
    if count is None:
        kept = sorted(number for numbers in whole.values() for number in numbers)
        assert kept == list(range(len(rows)))


@pytest.mark.parametrize(
    ("size", "count"),
    [(1, None), (1, 1), (1, 2), (1, 3), (1, 10), (1, 11), (2, None), (2, 2), (5, 3)],
)
@pytest.mark.judge
def test_tcpdump_makes_the_same_files(tmp_path: Path, size: int, count: int | None) -> None:
    rng = np.random.default_rng(size)
    frames = FrameBatch.of(
        [rng.bytes(length) for length in rng.integers(1, 60_000, 160).tolist()],
        time_ns=(START + np.arange(160)).tolist(),
        interfaces=[Interface(snaplen=262_144)],
    )
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    with SavefileWriter(tmp_path / "all", format="pcap") as writer:
        writer.write(frames)
    rotation = Rotation(size=parse_size(str(size)), count=count)
    with SavefileWriter(tmp_path / "ours" / "x", format="pcap", rotation=rotation) as writer:
        writer.write(frames)
    ask(
        "tcpdump",
        "--time-stamp-precision=nano",
        *("-r", tmp_path / "all", "-w", tmp_path / "theirs" / "x", "-C", str(size)),
        *(("-W", str(count)) if count else ()),
        # Without a user to become it would give its files to one that may not write here.
        *("-Z", Path(tmp_path).owner()),
    )
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert ours == theirs
    assert len(ours) > 1 or count == 1 or size == 5


# -- complete files -----------------------------------------------------------------------------


def test_every_file_is_complete_by_itself(tmp_path: Path) -> None:
    known = [Interface(name="vsockmon0", os="Linux 6.12")]
    counted: dict[int, InterfaceStatistics] = {}
    writer = SavefileWriter(
        tmp_path / "x",
        comment="why",
        rotation=Rotation(size=1),
        statistics=lambda: counted,
    )
    writer.write(FrameBatch.of([b"a"], interfaces=known))
    known.append(Interface(name="vsockmon1", os="Linux 6.12"))
    counted[0] = InterfaceStatistics(received=1, dropped=0)
    writer.write(FrameBatch.of([b"b", b"c"], interface=[1, 1], interfaces=known))
    counted[0] = InterfaceStatistics(received=3, dropped=0)
    writer.close()
    found = [plain.read(tmp_path / name) for name in ("x", "x1", "x2")]
    # What came to be known while a file was open is in it, needed or not.
    assert [each.kinds for each in found] == [
        [plain.SHB, plain.IDB, plain.EPB, plain.IDB, plain.ISB],
        *2 * [[plain.SHB, plain.IDB, plain.IDB, plain.EPB, plain.ISB]],
    ]
    assert [packet.interface for each in found for packet in each.packets] == [0, 1, 1]
    for each in found:
        assert plain.first(each.sections[0].options, plain.COMMENT) == b"why"
    received = [plain.first(each.statistics[0].options, 4) for each in found]
    assert [int.from_bytes(value or b"", "little") for value in received] == [1, 1, 3]


@pytest.mark.judge
def test_capinfos_opens_every_file(tmp_path: Path) -> None:
    frames = batch(*[(second, 100) for second in range(20)])
    rotation = Rotation(seconds=5, size=300)
    with SavefileWriter(tmp_path / CLOCK, rotation=rotation) as writer:
        writer.write(frames)
    names = list(tmp_path.iterdir())
    assert len(names) > 4
    ask("capinfos", *names)


def test_a_frame_a_format_cannot_hold_ends_a_rotation_too(tmp_path: Path) -> None:
    frames = replace(batch(*TEN), time_ns=np.array([START] * 7 + [-1] + [START] * 2))
    with pytest.raises(VsockdumpError, match="packet 8 cannot be written"):
        save(tmp_path, "x", Rotation(size=THREE), frames)
    assert left(tmp_path) == {"x": [0, 1, 2], "x1": [3, 4, 5], "x2": [6]}


# -- live ---------------------------------------------------------------------------------------


def test_ticks_open_the_first_file_and_end_a_window(tmp_path: Path) -> None:
    writer = SavefileWriter(tmp_path / CLOCK, rotation=Rotation(seconds=10))
    assert left(tmp_path) == {}
    writer.write(EMPTY, START + SECOND // 2)
    assert left(tmp_path) == {at(0): []}
    writer.write(batch((1, 1)), START + SECOND)
    writer.write(EMPTY, START + 10 * SECOND)
    # The window is over, and its file complete, though nothing came since.
    assert left(tmp_path) == {at(0): [0]}
    writer.write(EMPTY, START + 30 * SECOND)
    assert list(left(tmp_path)) == [at(0)]
    # One from the window that is over came late: its file is not touched again.
    writer.write(batch((9, 1), (11, 1), (45, 1)))
    writer.close()
    assert left(tmp_path) == {at(0): [0], at(10): [0, 1], at(40): [2]}


def test_a_tick_ends_the_last_file(tmp_path: Path) -> None:
    writer = SavefileWriter(tmp_path / CLOCK, rotation=Rotation(seconds=10, count=1))
    writer.write(batch((0, 1)), START)
    assert not writer.finished
    writer.write(EMPTY, START + 10 * SECOND)
    assert writer.finished
    writer.write(batch((11, 1)), START + 11 * SECOND)
    writer.close()
    assert left(tmp_path) == {at(0): [0]}
    assert writer.frames == 1


def test_no_time_no_file(tmp_path: Path) -> None:
    assert save(tmp_path, CLOCK, Rotation(seconds=10), EMPTY) == {}


def test_names_are_local_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    save(tmp_path, CLOCK, Rotation(seconds=10), batch((0, 1)))
    assert list(left(tmp_path)) == [at(5.5 * 3600)]


# -- what was asked for -------------------------------------------------------------------------


def test_sizes_are_tcpdumps() -> None:
    # Millions; with a letter, in either case, powers of 1024.
    assert parse_size("3") == 3_000_000
    for power, letter in enumerate("kmg", start=1):
        assert parse_size(f"3{letter}") == parse_size(f"3{letter.upper()}") == 3 * 1024**power


@pytest.mark.parametrize("text", ["", "0", "k", "-1", "1.5", "1kb", "1 k", "x", "٣"])
def test_other_sizes_are_not(text: str) -> None:
    with pytest.raises(VsockdumpError, match="not a file size"):
        parse_size(text)


@pytest.mark.parametrize(("name", "option"), [("size", "-C"), ("seconds", "-G"), ("count", "-W")])
def test_numbers_start_at_one(name: str, option: str) -> None:
    with pytest.raises(VsockdumpError, match=f"{option} needs a number above 0, had 0"):
        Rotation(**{name: 0})


@pytest.mark.parametrize("target", ["-", 1])
def test_standard_output_does_not_rotate(target: str | int) -> None:
    for rotation in (Rotation(size=1), Rotation(seconds=1)):
        with pytest.raises(VsockdumpError, match="need a file name"):
            SavefileWriter(target, rotation=rotation)


def test_rotation_never_reaches_an_input(tmp_path: Path) -> None:
    source = tmp_path / "x1"
    source.write_bytes(b"precious")
    status = source.stat()
    writer = SavefileWriter(
        tmp_path / "x", rotation=Rotation(size=1), inputs=[(status.st_dev, status.st_ino)]
    )
    with pytest.raises(VsockdumpError, match="x1: is being read"):
        writer.write(batch(*TEN))
    writer.close()
    assert source.read_bytes() == b"precious"
    assert len(plain.read(tmp_path / "x").packets) == 1


def test_a_year_that_no_name_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VsockdumpError, match="cannot be filled with a time"):
        save(tmp_path, "a\0%Y", Rotation(seconds=1), batch((0, 1)))
