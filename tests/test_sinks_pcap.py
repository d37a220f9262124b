from __future__ import annotations

from pathlib import Path

import plain_savefile as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import ask
from savefile_cases import PCAP_TIME_MAX, Row, captures, laid_out

from vsockdump import wire
from vsockdump.errors import VsockdumpError
from vsockdump.frames import FrameBatch, Interface
from vsockdump.sinks.savefile import SavefileWriter
from vsockdump.sources.pcap import FILE_HDR_LEN, MAX_CAPLEN

NOW = 1_780_000_000_123_456_789
VSOCK, COOKED = Interface(), Interface(linktype=wire.LINKTYPE_LINUX_SLL2, name="any")


@settings(deadline=None)
@given(captures(st.just(wire.LINKTYPE_VSOCK), PCAP_TIME_MAX, snaplen=0), st.booleans())
def test_what_is_written_is_what_came(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Interface], list[tuple[int, list[Row]]]],
    microseconds: bool,
) -> None:
    known, batches = drawn
    path = tmp_path_factory.mktemp("pcap") / "x.pcap"
    with SavefileWriter(path, format="pcap", microseconds=microseconds) as writer:
        for count, rows in batches:
            writer.write(laid_out(rows, known[:count]))
    found = plain.read(path)
    tick = 1000 if microseconds else 1
    assert [(packet.time_ns, packet.origlen, packet.data) for packet in found.packets] == [
        (row.time_ns // tick * tick, row.origlen, row.data) for _, rows in batches for row in rows
    ]
    (interface,) = found.interfaces
    assert (interface.linktype, interface.snaplen) == (wire.LINKTYPE_VSOCK, MAX_CAPLEN)
    assert interface.ticks_per_second == 10**9 // tick


def save(path: Path, *batches: FrameBatch) -> plain.Plain:
    with SavefileWriter(path, format="pcap") as writer:
        for batch in batches:
            writer.write(batch)
    return plain.read(path)


@pytest.mark.parametrize(("snaplen", "written"), [(68, 68), (0, MAX_CAPLEN), (2**20, MAX_CAPLEN)])
def test_the_snapshot_length_is_kept(tmp_path: Path, snaplen: int, written: int) -> None:
    batch = FrameBatch.of([b"a"], interfaces=[Interface(snaplen=snaplen)])
    assert save(tmp_path / "x", batch).interfaces[0].snaplen == written


def test_the_first_frame_decides_where_link_types_differ(tmp_path: Path) -> None:
    both = [VSOCK, COOKED]
    empty = FrameBatch.of([], interfaces=both)
    one = FrameBatch.of([b"a"], interface=[1], interfaces=both)
    assert save(tmp_path / "x", empty, one).interfaces[0].linktype == COOKED.linktype
    assert save(tmp_path / "y", empty).interfaces[0].linktype == VSOCK.linktype
    assert save(tmp_path / "z").interfaces[0].linktype == wire.LINKTYPE_VSOCK


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"interface": [0, 0, 1]}, "link type is 276, that of the file 271"),
        ({"time_ns": [0, PCAP_TIME_MAX, PCAP_TIME_MAX + 1]}, "past 2106"),
        ({"time_ns": [0, 0, -1]}, "before 1970"),
    ],
)
def test_what_pcap_cannot_hold_is_an_error_behind_what_it_can(
    tmp_path: Path, columns: dict[str, list[int]], reason: str
) -> None:
    frames = [b"a", b"b", b"c"]
    batch = FrameBatch.of(frames, interfaces=[VSOCK, COOKED], **columns)
    with (
        pytest.raises(VsockdumpError, match=rf"packet 3 cannot be written: .*{reason}"),
        SavefileWriter(tmp_path / "x", format="pcap") as writer,
    ):
        writer.write(batch)
    assert [packet.data for packet in plain.read(tmp_path / "x").packets] == frames[:2]


def test_a_frame_longer_than_the_header_promised_is_not_written(tmp_path: Path) -> None:
    # Readers of pcap would cut it without a word.
    known = [Interface(snaplen=68)]
    with SavefileWriter(tmp_path / "x", format="pcap") as writer:
        writer.write(FrameBatch.of([bytes(68)], interfaces=known))
        known.append(Interface(snaplen=262_144))
        with pytest.raises(VsockdumpError, match="longer than the 68 bytes"):
            writer.write(FrameBatch.of([bytes(69)], interface=[1], interfaces=known))


def test_a_comment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VsockdumpError, match="comment needs pcapng"):
        SavefileWriter(tmp_path / "x", format="pcap", comment="why")
    assert not (tmp_path / "x").exists()


@pytest.mark.judge
@pytest.mark.parametrize("microseconds", [False, True])
def test_judges_find_all_of_it(tmp_path: Path, microseconds: bool) -> None:
    sizes = [0, 1, 76, wire.MAX_FRAME]
    batch = FrameBatch.of(
        [bytes(size) for size in sizes],
        time_ns=[NOW + place for place in range(len(sizes))],
        origlen=[size + 9 for size in sizes],
        interfaces=[Interface(snaplen=MAX_CAPLEN)],
    )
    path = tmp_path / "x.pcap"
    with SavefileWriter(path, format="pcap", microseconds=microseconds) as writer:
        writer.write(batch)
    described = ask("capinfos", "-M", path)
    assert f"Number of packets:   {len(sizes)}\n" in described
    assert ("microseconds (6)" if microseconds else "nanoseconds (9)") in described
    chosen = [part for name in ("time_epoch", "cap_len", "len") for part in ("-e", f"frame.{name}")]
    lines = ask("tshark", "-n", "-r", path, "-T", "fields", *chosen).splitlines()
    tick = 1000 if microseconds else 1
    assert [line.split("\t") for line in lines] == [
        [
            f"{time // 10**9}.{time // tick * tick % 10**9:09d}",
            str(size),
            str(size + 9),
        ]
        for time, size in zip(batch.time_ns.tolist(), sizes, strict=True)
    ]


@pytest.mark.judge
def test_tcpdump_writes_the_same_bytes(tmp_path: Path) -> None:
    sizes = [0, 1, 76, 5000, wire.MAX_FRAME]
    batch = FrameBatch.of([bytes(size) for size in sizes], time_ns=[NOW] * len(sizes))
    save(tmp_path / "ours", batch)
    ask(
        "tcpdump",
        "--time-stamp-precision=nano",
        *("-r", tmp_path / "ours", "-w", tmp_path / "theirs"),
    )
    ours, theirs = (tmp_path / "ours").read_bytes(), (tmp_path / "theirs").read_bytes()
    assert ours[FILE_HDR_LEN:] == theirs[FILE_HDR_LEN:]
    assert ours == theirs
