"""Savefiles through the command line: what was read is what is written, in as many files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import plain_savefile
import pytest
from command import ECHO, run
from judges import ask
from savefile_cases import comment

from vsockdump import captures, wire
from vsockdump.frames import FrameBatch, Interface
from vsockdump.sinks.savefile import SavefileWriter

PLAIN = plain_savefile.read(ECHO)
MANY = captures.path("many-connections-6.12.pcapng")


def rich(path: Path) -> Path:
    """A pcapng with two interfaces, comments, nanoseconds, snapped packets, one of them empty."""
    interfaces = [
        Interface(name="vsockmon0", description="of the host", snaplen=80),
        Interface(name="vsockmon1", linktype=wire.LINKTYPE_LINUX_SLL2, filter="len < 100"),
    ]
    frames = FrameBatch.of(
        [b"", bytes(76), bytes(range(200))],
        time_ns=[0, 1_780_000_000_123_456_789, 2**62 + 1],
        origlen=[4, 76, 70_000],
        interface=[0, 1, 0],
        interfaces=interfaces,
    )
    with SavefileWriter(path) as writer:
        writer.write(replace(frames, options={1: comment("kept \N{SNOWMAN}")}))
    return path


def facts(path: Path) -> list[object]:
    """Everything of a file that has to survive."""
    plain = plain_savefile.read(path)
    assert plain.damage is None
    packets = [(p.time_ns, p.origlen, p.data, p.options, p.interface) for p in plain.packets]
    interfaces = [
        (i.linktype, i.snaplen, [o for o in i.options if o[0] in (1, 2, 3)])
        for i in plain.interfaces
    ]
    return [packets, interfaces]


@pytest.mark.parametrize("name", ["a.pcapng", "a.pcapng.gz", "a.pcapng.zst"])
def test_reading_and_writing_keeps_everything(tmp_path: Path, name: str) -> None:
    first, second = rich(tmp_path / "first.pcapng"), tmp_path / name
    ran = run("-r", first, "-w", second)
    assert (ran.status, ran.out, ran.err) == (0, b"", f"reading from file {first}\n")
    again = tmp_path / "again.pcapng"
    assert run("-r", second, "-w", again).status == 0
    assert facts(again) == facts(first)


@pytest.mark.parametrize("format", ["pcapng", "pcap"])
def test_the_format_is_the_one_asked_for(tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    assert run("-r", ECHO, "-w", out, "--format", format).status == 0
    written = plain_savefile.read(out)
    assert written.format == format
    assert [(p.time_ns, p.data) for p in written.packets] == [
        (p.time_ns, p.data) for p in PLAIN.packets
    ]


def test_a_filter_chooses_what_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("-r", ECHO, "-w", out, "op", "rw").status == 0
    kept = [p.time_ns for p in plain_savefile.read(out).packets]
    assert kept == [
        json.loads(line)["time_ns"] for line in run("-r", ECHO, "--json", "op rw").lines
    ]
    assert 0 < len(kept) < len(PLAIN.packets)


def test_print_shows_what_is_written(tmp_path: Path) -> None:
    ran = run("-r", ECHO, "-w", tmp_path / "out", "--print", "-q", "-c", "3")
    assert ran.out == run("-r", ECHO, "-q", "-c", "3").out
    assert len(plain_savefile.read(tmp_path / "out").packets) == 3


def test_a_comment_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("-r", ECHO, "-w", out, "--capture-comment", "as seen on \N{SNOWMAN}").status == 0
    (section,) = plain_savefile.read(out).sections
    assert (1, "as seen on \N{SNOWMAN}".encode()) in section.options


def test_files_of_a_size(tmp_path: Path) -> None:
    assert run("-r", MANY, "-w", tmp_path / "out", "-C", "16k").status == 0
    files = sorted(tmp_path.iterdir(), key=lambda file: int(file.name.removeprefix("out") or 0))
    assert [file.name for file in files] == ["out", *(f"out{n}" for n in range(1, len(files)))]
    assert len(files) > 2
    packets = [p.data for file in files for p in plain_savefile.read(file).packets]
    assert packets == [p.data for p in plain_savefile.read(MANY).packets]
    # A file may pass its size by the packet that filled it, and by what it ends with.
    most = wire.MAX_FRAME
    assert all(16 * 1024 < file.stat().st_size < 16 * 1024 + most for file in files[:-1])


def test_a_ring_of_files(tmp_path: Path) -> None:
    assert run("-r", MANY, "-w", tmp_path / "out", "-C", "16k", "-W", "2").status == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out0", "out1"]


def test_files_by_time_have_names_with_a_time(tmp_path: Path) -> None:
    stall = captures.path("stall-6.12.pcapng")
    assert run("-r", stall, "-w", tmp_path / "%H%M%S", "-G", "1").status == 0
    plain = plain_savefile.read(stall)
    seconds = {(p.time_ns or 0) // 10**9 % 60 for p in plain.packets}
    assert [int(file.name[-2:]) for file in sorted(tmp_path.iterdir())] == sorted(seconds)
    assert run("-r", stall, "-w", tmp_path / "w%S", "-G", "1", "-W", "1").status == 0
    assert len(list(tmp_path.glob("w*"))) == 1


@pytest.mark.judge
def test_wireshark_opens_what_is_written_without_complaint(tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"
    assert run("-r", ECHO, "-w", out, "--capture-comment", "x").status == 0
    frames = ask("tshark", "-r", out, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len")
    assert len(frames.splitlines()) == len(PLAIN.packets)
    assert "Capture comment:     x" in ask("capinfos", out)


def test_standard_output_takes_a_savefile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        assert run("-r", ECHO, "-w", "-", stdout=file).status == 0
    assert [p.data for p in plain_savefile.read(out).packets] == [p.data for p in PLAIN.packets]
    assert run("-r", ECHO, "-w", "-").out == out.read_bytes()


def test_a_full_disk_leaves_what_was_written(tmp_path: Path) -> None:
    ran = run("-r", ECHO, "-w", "/dev/full")
    assert ran.status == 1
    assert ran.err.splitlines()[-1].startswith("vsockdump: /dev/full: No space left on device")
