from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import plain_savefile as plain
import pytest
import vsockdump.captures as bundled
from hypothesis import given, settings
from judges import ask
from savefile_cases import Row, captures, comment, laid_out

from vsockdump import wire
from vsockdump.frames import SLACK, FrameBatch, Interface
from vsockdump.sinks.assemble import CHUNK
from vsockdump.sinks.rotation import Rotation
from vsockdump.sinks.savefile import SavefileWriter
from vsockdump.sources.savefile import Savefile


def copy(source: Path, target: Path, *, chunk: int = 1 << 20) -> None:
    """What ``-r source -w target`` does."""
    with (
        closing(Savefile(source, chunk=chunk)) as savefile,
        SavefileWriter(
            target, inputs=[savefile.identity], statistics=savefile.statistics
        ) as writer,
    ):
        for batch in savefile.batches():
            writer.write(batch)
        writer.close(interfaces=savefile.interfaces)


@settings(deadline=None)
@given(captures())
def test_a_copy_of_what_we_wrote_is_the_same_file(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Interface], list[tuple[int, list[Row]]]],
) -> None:
    known, batches = drawn
    folder = tmp_path_factory.mktemp("copied")
    with SavefileWriter(folder / "a", comment="why") as writer:
        for count, rows in batches:
            writer.write(laid_out(rows, known[:count]))
        writer.close(interfaces=known)
    copy(folder / "a", folder / "b")
    copy(folder / "b", folder / "c", chunk=64)
    found = [plain.read(folder / name) for name in "abc"]
    assert found[0].packets == found[1].packets == found[2].packets
    # Comments and systems of sections that came late have found their place: nothing moves again.
    assert (folder / "b").read_bytes().count(b"why") == 1
    for first, second in zip(found[1].interfaces, found[2].interfaces, strict=True):
        assert first.options == second.options
    assert found[1].sections == found[2].sections


@pytest.mark.parametrize("name", bundled.names())
def test_a_copy_of_a_real_capture_keeps_everything(tmp_path: Path, name: str) -> None:
    source = bundled.path(name)
    copy(source, tmp_path / "copy.pcapng")
    was, now = plain.read(source), plain.read(tmp_path / "copy.pcapng")
    assert was.packets
    assert was.packets == now.packets
    assert [(each.linktype, each.snaplen) for each in was.interfaces] == [
        (each.linktype, each.snaplen) for each in now.interfaces
    ]


@pytest.mark.judge
def test_judges_open_copies_of_real_captures(tmp_path: Path) -> None:
    for name in bundled.names():
        copy(bundled.path(name), tmp_path / f"{name}.pcapng")
    ask("capinfos", *tmp_path.iterdir())


def test_a_batch_is_written_when_write_returns(tmp_path: Path) -> None:
    # A source fills its buffer again: nothing may refer to it any more.
    sizes = [76, 9000, 100, wire.MAX_FRAME]
    buf = np.zeros(sum(sizes) + SLACK, np.uint8)
    template = replace(FrameBatch.of([bytes(size) for size in sizes]), buf=buf)
    with SavefileWriter(tmp_path / "x") as writer:
        for value in range(1, 5):
            buf[:] = value
            writer.write(template)
            buf[:] = 0xEE
            assert len(plain.read(tmp_path / "x").packets) == value * len(sizes)
    assert [packet.data for packet in plain.read(tmp_path / "x").packets] == [
        bytes([value]) * size for value in range(1, 5) for size in sizes
    ]


def test_a_batch_may_be_longer_than_the_buffer(tmp_path: Path) -> None:
    size = 1000
    count = 3 * CHUNK // size
    batch = FrameBatch.of([row.to_bytes(4, "big") + bytes(size - 4) for row in range(count)])
    with SavefileWriter(tmp_path / "x") as writer:
        writer.write(batch)
        assert writer.frames == count
    assert writer.frames == count
    assert writer.size == (tmp_path / "x").stat().st_size
    found = plain.read(tmp_path / "x")
    assert [int.from_bytes(packet.data[:4], "big") for packet in found.packets] == list(
        range(count)
    )


def test_options_stay_with_their_packets_wherever_a_batch_is_cut(tmp_path: Path) -> None:
    rows = [Row(bytes(3000), 3000, row, 0, comment(str(row)) * (row % 3)) for row in range(1000)]
    batch = laid_out(rows, [Interface()])
    assert batch.caplen.sum() > 2 * CHUNK
    with SavefileWriter(tmp_path / "whole") as writer:
        writer.write(batch)
    with SavefileWriter(tmp_path / "cut", rotation=Rotation(size=100_000)) as writer:
        writer.write(batch)
    files = sorted(tmp_path.glob("cut*"), key=lambda path: (len(path.name), path.name))
    for paths in ([tmp_path / "whole"], files):
        packets = [packet for path in paths for packet in plain.read(path).packets]
        assert [plain.every(packet.options, plain.COMMENT) for packet in packets] == [
            [str(row).encode()] * (row % 3) for row in range(1000)
        ]
    assert len(files) > 10


def test_more_large_frames_than_one_system_call_takes(tmp_path: Path) -> None:
    count = 1500
    batch = FrameBatch.of([row.to_bytes(4, "big") * 1250 for row in range(count)])
    with SavefileWriter(tmp_path / "x") as writer:
        writer.write(batch)
    found = plain.read(tmp_path / "x")
    assert [packet.data for packet in found.packets] == [batch.frame(row) for row in range(count)]


def test_closing_twice_changes_nothing(tmp_path: Path) -> None:
    writer = SavefileWriter(tmp_path / "x")
    writer.write(FrameBatch.of([b"a"]))
    writer.close()
    before = (tmp_path / "x").read_bytes()
    writer.close()
    assert (tmp_path / "x").read_bytes() == before


def test_the_page_about_savefiles_shows_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "savefiles.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    source = bundled.path(bundled.names()[0])
    Path("a.pcap").write_bytes(source.read_bytes())
    exec(compile(code, "docs/savefiles.md", "exec"), {})
    assert plain.read("b.pcapng").packets == plain.read(source).packets
