"""A stream gives the bytes of whatever it was opened on, and every error as one clear line."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from savefile_reading import fed

from vsockdump.errors import SavefileError, VsockdumpError
from vsockdump.sources import bytestream
from vsockdump.sources.bytestream import ByteStream

PACK = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


def drained(stream: ByteStream, size: int = 1000) -> bytes:
    """All there is, read ``size`` bytes at a time."""
    buffer, data = memoryview(bytearray(size)), b""
    while count := stream.readinto(buffer, len(data)):
        data += buffer[:count]
    stream.close()
    return data


@pytest.mark.parametrize("compression", PACK)
@given(data=st.binary(max_size=300), size=st.integers(1, 400), draw=st.data())
def test_a_pipe_gives_every_byte_in_order(
    compression: str, data: bytes, size: int, draw: st.DataObject
) -> None:
    data = b"no magic" + data
    packed = PACK[compression](data)
    at = draw.draw(st.integers(0, len(packed)))
    with fed([packed[:at], packed[at:]]) as pipe:
        stream = ByteStream(pipe)
        assert (stream.compression, stream.size) == (compression, None)
        assert drained(stream, size) == data
        assert stream.consumed == len(packed)


@pytest.mark.parametrize("compression", PACK)
def test_a_path_tells_its_size_and_how_far_it_was_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x"
    packed = PACK[compression](b"some bytes" * 1000)
    path.write_bytes(packed)
    stream = ByteStream(path)
    status = path.stat()
    assert (stream.name, stream.size) == (str(path), len(packed))
    assert stream.identity == (status.st_dev, status.st_ino)
    assert stream.consumed <= len(packed)
    assert drained(stream) == b"some bytes" * 1000
    assert stream.consumed == len(packed)


@pytest.mark.parametrize("data", [b"", b"a", b"abc"])
def test_a_file_may_be_shorter_than_a_magic(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert drained(ByteStream(path)) == data


def test_a_dash_is_standard_input() -> None:
    program = (
        "from vsockdump.sources.bytestream import ByteStream\n"
        "stream = ByteStream('-')\n"
        "buffer = memoryview(bytearray(99))\n"
        "print(stream.name, bytes(buffer[:stream.readinto(buffer, 0)]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=b"some bytes", capture_output=True, check=True
    )
    assert ran.stdout.decode().strip() == f"standard input {b'some bytes'!r}"


def test_a_read_does_not_wait_for_more_than_there_is() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"first")
    stream = ByteStream(reading)
    buffer = memoryview(bytearray(99))
    assert stream.readinto(buffer, 0) == len(b"first")
    os.write(writing, b"second")
    assert stream.readinto(buffer, 0) == len(b"second")
    os.close(writing)
    assert stream.readinto(buffer, 0) == 0
    stream.close()
    assert os.fstat(reading)
    os.close(reading)


def test_descriptors_may_have_high_numbers() -> None:
    most = 1 << 11
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    try:
        with fed([b"some bytes"]) as pipe:
            high = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, most - 1)
            assert drained(ByteStream(high)) == b"some bytes"
            os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(VsockdumpError) as caught:
        ByteStream(path)
    assert str(caught.value) == f"{path}: {os.strerror(errno.ENOENT)}"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VsockdumpError) as caught:
        ByteStream(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {os.strerror(errno.EISDIR)}"


def test_a_file_that_cannot_be_read_at_all_is_closed_again() -> None:
    # Its first page belongs to nobody.
    path = Path("/proc/self/mem")
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(VsockdumpError) as caught:
        ByteStream(path)
    assert str(caught.value) == f"{path}: {os.strerror(errno.EIO)}"
    assert sorted(Path("/proc/self/fd").iterdir()) == before


GOOD = 5000
"""Bytes that can be read of a file on a bad disk."""


class BadDisk(io.FileIO):
    """A file that cannot be read past some point."""

    def _allowed(self, size: int) -> int:
        left = GOOD - self.tell()
        if left <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return min(size, left)

    def read(self, size: int | None = -1, /) -> bytes | None:  # type: ignore[override]
        return super().read(self._allowed(size or 0))

    def readinto(self, buffer: memoryview, /) -> int | None:  # type: ignore[override]
        return super().readinto(buffer[: self._allowed(len(buffer))])


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bytestream.io, "FileIO", BadDisk)
    return


@pytest.mark.usefixtures("bad_disk")
@pytest.mark.parametrize("compression", PACK)
def test_what_was_read_before_an_error_comes_before_it(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x"
    data = os.urandom(2 * GOOD)
    path.write_bytes(PACK[compression](data))
    stream = ByteStream(path)
    buffer = memoryview(bytearray(len(data)))
    count = stream.readinto(buffer, 0)
    assert buffer[:count] == data[:count]
    assert count == GOOD if not compression else GOOD - 500 < count < GOOD
    for _ in range(2):
        with pytest.raises(SavefileError) as caught:
            stream.readinto(buffer, count)
        assert str(caught.value) == f"{path}: at byte {count}: {os.strerror(errno.EIO)}"
    stream.close()
