from __future__ import annotations

import errno
import fcntl
import gzip
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import plain_savefile as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.errors import VsockdumpError
from vsockdump.frames import FrameBatch, InterfaceStatistics
from vsockdump.sinks.output import (
    CompressedOutput,
    Output,
    PipeClosedError,
    WriteError,
    compressor,
)
from vsockdump.sinks.savefile import SavefileWriter

SIZES = [0, 1, 76, 5000, 200, wire.MAX_FRAME, 3]
BATCH = FrameBatch.of([bytes([size % 251]) * size for size in SIZES], time_ns=range(len(SIZES)))
COUNTED = {0: InterfaceStatistics(received=len(SIZES))}


def whole(path: Path, format: str) -> bytes:
    with SavefileWriter(path, format=format) as writer:
        writer.write(BATCH)
    return path.read_bytes()


def frames(found: plain.Plain) -> list[bytes]:
    return [packet.data for packet in found.packets]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Trickle:
    """os.writev that writes ``step`` bytes at a time, and fails behind ``room`` bytes."""

    def __init__(self, step: int, room: int = 2**62, error: BaseException | None = None) -> None:
        self.step, self.room = step, room
        self.error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real = os.writev

    def __call__(self, fd: int, pieces: list[memoryview]) -> int:
        if not self.room:
            raise self.error
        data = b"".join(pieces)[: min(self.step, self.room)]
        self.room -= len(data)
        return self.real(fd, [data])


@pytest.mark.parametrize("format", ["pcapng", "pcap"])
@pytest.mark.parametrize("step", [1, 7, 4096, 65_536])
def test_short_writes_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, step: int
) -> None:
    wanted = whole(tmp_path / "a", format)
    monkeypatch.setattr(os, "writev", Trickle(step))
    assert whole(tmp_path / "b", format) == wanted


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["pcapng", "pcap"]))
def test_a_full_disk_leaves_every_whole_packet(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, format: str
) -> None:
    path = tmp_path_factory.mktemp("full") / "x"
    size = len(whole(path, format))
    room = data.draw(st.integers(0, size - 1))
    with files_no_longer_than(room):
        writer = SavefileWriter(path, format=format)
        with pytest.raises(WriteError) as raised:
            writer.write(BATCH)
        writer.close(COUNTED)
    error = raised.value
    assert path.stat().st_size == error.size <= room
    assert error.torn == 0
    if error.size:
        found = plain.read(path)
        assert frames(found) == [BATCH.frame(row) for row in range(error.frames)]
        # The next one would not have fitted.
        row = error.frames
        assert error.size + 16 + SIZES[row] + (16 + -SIZES[row] % 4) * (format != "pcap") > room
    assert str(path) in str(error)
    assert os.strerror(errno.EFBIG) in str(error)
    assert writer.frames == error.frames


@pytest.mark.parametrize("format", ["pcapng", "pcap"])
@pytest.mark.parametrize("count", range(len(SIZES)))
def test_a_disk_that_is_full_between_two_packets(tmp_path: Path, format: str, count: int) -> None:
    path = tmp_path / "x"
    with SavefileWriter(path, format=format) as writer:
        writer.write(BATCH.take(slice(count)))
    with files_no_longer_than(path.stat().st_size):
        writer = SavefileWriter(path, format=format)
        with pytest.raises(WriteError) as raised:
            writer.write(BATCH)
        writer.close()
    assert raised.value.frames == len(plain.read(path).packets) == count


def test_the_error_tells_how_much_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pcapng"
    size = len(whole(path, "pcapng"))
    # All but the last byte of the last packet's block.
    monkeypatch.setattr(os, "writev", Trickle(size, size - 1))
    writer = SavefileWriter(path)
    with pytest.raises(WriteError) as raised:
        writer.write(BATCH)
    kept = path.stat().st_size
    assert str(raised.value) == (
        f"{path}: No space left on device; "
        f"the {len(SIZES) - 1} packets before ({kept} bytes) are readable"
    )
    with pytest.raises(WriteError):
        writer.write(BATCH)
    writer.close()
    assert path.stat().st_size == kept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_full() -> None:
    writer = SavefileWriter("/dev/full")
    with pytest.raises(WriteError, match=r"^/dev/full: No space left on device; nothing was"):
        writer.write(BATCH)
    writer.close()


def test_an_interrupted_write_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pcapng"
    writer = SavefileWriter(path)
    writer.write(BATCH)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", Trickle(1000, 6000, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            writer.write(BATCH)
    kept = writer.frames
    writer.write(BATCH)
    writer.close(COUNTED)
    found = plain.read(path)
    all_frames = [BATCH.frame(row) for row in range(len(BATCH))]
    assert frames(found) == all_frames + all_frames[: kept - len(SIZES)] + all_frames
    assert len(SIZES) < kept < 2 * len(SIZES)
    assert len(found.statistics) == 1


def test_an_interrupted_write_to_a_pipe_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    end, mine = os.pipe()
    try:
        writer = SavefileWriter(mine)
        writer.write(BATCH.take(slice(3)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", Trickle(10, 1000, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                writer.write(BATCH.take(slice(3, 4)))
        with pytest.raises(WriteError, match="1000 bytes of an incomplete block follow"):
            writer.write(BATCH.take(slice(3)))
        writer.close(COUNTED)
    finally:
        os.close(mine)
        os.close(end)


@pytest.mark.parametrize("target", ["path", "descriptor"])
def test_a_closed_pipe_has_an_error_of_its_own(tmp_path: Path, target: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    mine = os.open(fifo, os.O_WRONLY)
    writer = SavefileWriter(fifo if target == "path" else mine)
    os.close(end)
    with pytest.raises(PipeClosedError, match="whoever read it has gone") as raised:
        writer.write(BATCH)
    assert isinstance(raised.value, BrokenPipeError)
    writer.close(COUNTED)
    os.close(mine)


def test_a_pipe_somebody_made_non_blocking_is_waited_for(tmp_path: Path) -> None:
    wanted = whole(tmp_path / "x", "pcapng")
    end, mine = os.pipe()
    flags = fcntl.fcntl(mine, fcntl.F_GETFL)
    fcntl.fcntl(mine, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    parts: list[bytes] = []

    def drain() -> None:
        while part := os.read(end, 1000):
            parts.append(part)

    thread = threading.Thread(target=drain)
    thread.start()
    with SavefileWriter(mine) as writer:
        writer.write(BATCH)
    os.close(mine)
    thread.join()
    os.close(end)
    assert b"".join(parts) == wanted


def test_a_device_that_takes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(tmp_path / "x")
    monkeypatch.setattr(os, "writev", lambda fd, pieces: 0)
    with pytest.raises(WriteError, match=os.strerror(errno.EIO)):
        output.put([b"abc"])
    output.close()


@pytest.mark.parametrize("name", ["x.pcapng", "-"])
def test_standard_output_is_written_and_left_open(tmp_path: Path, name: str) -> None:
    script = (
        "import sys\n"
        "from vsockdump.frames import FrameBatch\n"
        "from vsockdump.sinks.savefile import SavefileWriter\n"
        "with SavefileWriter(sys.argv[1]) as writer:\n"
        "    writer.write(FrameBatch.of([b'abc']))\n"
        "print('after', flush=True)\n"
    )
    command = [sys.executable, "-c", script, name]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    data = ran.stdout if name == "-" else (tmp_path / name).read_bytes() + ran.stdout
    assert data.endswith(b"after\n")
    assert frames(plain.parse(data.removesuffix(b"after\n"))) == [b"abc"]


@pytest.mark.parametrize("appending", [False, True])
def test_what_was_in_a_shared_file_stays(tmp_path: Path, appending: bool) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    flags = os.O_WRONLY | (os.O_APPEND if appending else 0)
    fd = os.open(path, flags)
    if not appending:
        os.lseek(fd, 0, os.SEEK_END)
    with files_no_longer_than(6000):
        writer = SavefileWriter(fd)
        with pytest.raises(WriteError) as raised:
            writer.write(BATCH)
        writer.close()
    os.close(fd)
    data = path.read_bytes()
    assert data.startswith(b"before")
    assert len(frames(plain.parse(data[6:]))) == raised.value.frames > 0
    assert len(data) == 6 + raised.value.size


def test_what_somebody_wrote_behind_us_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100_000))
    fd = os.open(path, os.O_WRONLY)
    with files_no_longer_than(6000):
        writer = SavefileWriter(fd)
        with pytest.raises(WriteError, match="bytes of an incomplete block follow"):
            writer.write(BATCH)
    os.close(fd)
    assert path.stat().st_size == 100_000


def test_an_input_is_never_written_to(tmp_path: Path) -> None:
    path, link, hard = tmp_path / "x", tmp_path / "link", tmp_path / "hard"
    before = whole(path, "pcapng")
    link.symlink_to(path)
    hard.hardlink_to(path)
    status = path.stat()
    inputs = [(status.st_dev, status.st_ino)]
    for name in (path, link, hard):
        with pytest.raises(VsockdumpError, match=r"is being read, so it cannot be written"):
            SavefileWriter(name, inputs=inputs)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    with pytest.raises(VsockdumpError, match=r"is being read"):
        SavefileWriter(fd, inputs=inputs)
    os.close(fd)
    assert path.read_bytes() == before
    null = Path(os.devnull).stat()
    SavefileWriter(os.devnull, inputs=[(null.st_dev, null.st_ino)]).close()


def test_a_longer_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10**6))
    assert frames(plain.parse(whole(path, "pcapng"))) == frames(plain.read(path))


@pytest.mark.parametrize("name", ["missing/x", "."])
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(
        VsockdumpError, match=r"^[^\n]*: (No such file or|Is a) directory$"
    ) as raised:
        SavefileWriter(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_failing_close_is_an_error(tmp_path: Path) -> None:
    # As on a network's file system, which may find out this late that there is no room.
    output = Output(tmp_path / "x")
    output.put([b"abc"])
    os.close(output._fd)
    with pytest.raises(WriteError, match="Bad file descriptor"):
        output.close()
    output.close()


# -- compressed ---------------------------------------------------------------------------------

COMPRESSED = ["x.pcapng.gz", "x.pcapng.zst"]


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_name_asks_for_compression(tmp_path: Path, name: str) -> None:
    with SavefileWriter(tmp_path / name) as writer:
        for _ in range(30):
            writer.write(BATCH)
    found = plain.read(tmp_path / name)
    assert frames(found) == 30 * [BATCH.frame(row) for row in range(len(BATCH))]
    assert (tmp_path / name).stat().st_size < writer.size
    assert writer.frames == 30 * len(SIZES)


@pytest.mark.parametrize("name", COMPRESSED)
def test_unbuffered_makes_every_batch_readable_at_once(tmp_path: Path, name: str) -> None:
    writer = SavefileWriter(tmp_path / name, unbuffered=True)
    for count in range(1, 4):
        writer.write(BATCH)
        assert len(frames(plain.read(tmp_path / name))) == count * len(SIZES)
    writer.close()
    assert len(frames(plain.read(tmp_path / name))) == 3 * len(SIZES)


def test_the_same_capture_makes_the_same_bytes(tmp_path: Path) -> None:
    both = []
    for name in ("a.gz", "b.gz"):
        with SavefileWriter(tmp_path / name) as writer:
            writer.write(BATCH)
        both.append((tmp_path / name).read_bytes())
    assert both[0] == both[1]
    # The time in a gzip header; one second's files would be the same even with it.
    assert both[0][4:8] == bytes(4)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_full_disk_leaves_whole_members(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    batch = FrameBatch.of([rng.bytes(wire.MAX_FRAME) for _ in range(10)])
    path = tmp_path / name
    with files_no_longer_than(2_500_000):
        writer = SavefileWriter(path)
        with pytest.raises(WriteError) as raised:
            for _ in range(10):
                writer.write(batch)
        writer.close(COUNTED)
    assert path.stat().st_size == raised.value.size
    found = plain.read(path)
    assert 0 < len(found.packets) == raised.value.frames == writer.frames < 100


def test_only_the_last_suffix_counts() -> None:
    assert compressor("a.pcapng") is compressor("a.gz.pcapng") is None
    for name in COMPRESSED:
        assert compressor(name) is not None


def test_a_compressed_output_may_be_closed_twice(tmp_path: Path) -> None:
    compress = compressor("x.gz")
    assert compress is not None
    output = CompressedOutput(tmp_path / "x.gz", compress)
    output.put([b"abc"])
    output.close()
    output.close()
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == b"abc"
