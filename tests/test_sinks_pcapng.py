from __future__ import annotations

import struct
from pathlib import Path

import plain_savefile as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import ask
from savefile_cases import Row, captures, comment, laid_out, texts

from vsockdump import wire
from vsockdump.errors import VsockdumpError
from vsockdump.frames import FrameBatch, Interface, InterfaceStatistics, Option, Section
from vsockdump.sinks.pcapng import PcapngEncoder
from vsockdump.sinks.savefile import APPLICATION, SavefileWriter

NOW = 1_780_000_000_123_456_789
KERNEL = "Linux 6.12.117"
LIVE = Interface(
    name="vsockmon0", description="tap", filter="port 1234", snaplen=262_144, os=KERNEL
)
FULL = InterfaceStatistics(received=2**40, dropped=3, start_ns=NOW, end_ns=NOW + 10**9)

counters = st.none() | st.integers(0, 2**63 - 1)
statistics = st.builds(
    InterfaceStatistics, received=counters, dropped=counters, start_ns=counters, end_ns=counters
)


def written(
    path: Path,
    *batches: FrameBatch,
    statistics: dict[int, InterfaceStatistics] | None = None,
    text: str | None = None,
) -> plain.Plain:
    writer = SavefileWriter(path, comment=text)
    for batch in batches:
        writer.write(batch)
    writer.close(statistics)
    return plain.read(path)


def text(options: plain.Options, code: int) -> str:
    return (plain.first(options, code) or b"").decode()


def number(options: plain.Options, code: int, layout: str = "<Q") -> int | None:
    value = plain.first(options, code)
    return None if value is None else struct.unpack(layout, value)[0]


def time_ns(options: plain.Options, code: int) -> int | None:
    value = plain.first(options, code)
    if value is None:
        return None
    high, low = struct.unpack("<II", value)
    return high << 32 | low


@settings(deadline=None)
@given(
    captures(),
    st.dictionaries(st.integers(0, 3), statistics),
    st.none() | texts,
    texts.filter(bool),
)
def test_what_is_written_is_what_came(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Interface], list[tuple[int, list[Row]]]],
    counted: dict[int, InterfaceStatistics],
    capture_comment: str | None,
    application: str,
) -> None:
    known, batches = drawn
    path = tmp_path_factory.mktemp("pcapng") / "x.pcapng"
    growing: list[Interface] = []
    writer = SavefileWriter(path, comment=capture_comment, application=application)
    for count, rows in batches:
        growing[:] = known[:count]
        writer.write(laid_out(rows, growing))
    writer.close(counted, known)

    found = plain.read(path)
    rows = [row for _, each in batches for row in each]
    assert [
        (packet.interface, packet.time_ns, packet.origlen, packet.data) for packet in found.packets
    ] == [(row.interface, row.time_ns, row.origlen, row.data) for row in rows]
    assert [packet.options for packet in found.packets] == [
        [(option.code, option.value) for option in row.options] for row in rows
    ]
    (section,) = found.sections
    assert (section.order, section.version, section.length) == ("<", (1, 0), -1)
    assert text(section.options, 4) == application
    for place, (was, now) in enumerate(zip(known, found.interfaces, strict=True)):
        assert (was.linktype, was.snaplen) == (now.linktype, now.snaplen)
        assert (was.name, was.description) == (text(now.options, 2), text(now.options, 3))
        assert plain.first(now.options, 11) == (b"\0" + was.filter.encode() if was.filter else None)
        assert plain.first(now.options, 9) == bytes([9]), place
        if was.kernel:
            assert was.kernel == (text(now.options, 12) or text(section.options, 3))
    kept = {index: counters for index, counters in counted.items() if index < len(known)}
    assert [each.interface for each in found.statistics] == sorted(kept)
    for each in found.statistics:
        want = kept[each.interface]
        assert number(each.options, 4) == want.received
        assert number(each.options, 5) == want.dropped
        assert time_ns(each.options, 2) == want.start_ns
        assert time_ns(each.options, 3) == want.end_ns
        assert each.time_ns == (want.end_ns or 0)
    # Every comment of a section or interface is kept once, somewhere.
    remarks = [*plain.every(section.options, plain.COMMENT)]
    for now in found.interfaces:
        remarks += plain.every(now.options, plain.COMMENT)
    wanted = [remark for each in known for remark in each.comments]
    wanted += [
        remark for each in dict.fromkeys(i.section for i in known) for remark in each.comments
    ]
    wanted += [capture_comment] if capture_comment is not None else []
    assert sorted(remarks) == sorted(remark.encode() for remark in wanted)


def test_a_live_capture_block_by_block(tmp_path: Path) -> None:
    batch = FrameBatch.of([b"abc", b"defg"], time_ns=[NOW, NOW + 1], interfaces=[LIVE])
    found = written(tmp_path / "x", batch, statistics={0: FULL}, text="why")
    assert found.kinds == [plain.SHB, plain.IDB, plain.EPB, plain.EPB, plain.ISB]
    options = found.sections[0].options
    assert options == [(1, b"why"), (3, KERNEL.encode()), (4, APPLICATION.encode())]


def test_an_interface_block_precedes_its_first_packet(tmp_path: Path) -> None:
    known = [LIVE]
    first = FrameBatch.of([b"a"], interfaces=known)
    second = FrameBatch.of([b"b", b"c"], interface=[1, 0], interfaces=known)
    path = tmp_path / "x"
    with SavefileWriter(path) as writer:
        writer.write(first)
        known.append(Interface(name="vsockmon1", os=KERNEL))
        writer.write(second)
    found = plain.read(path)
    assert found.kinds == [plain.SHB, plain.IDB, plain.EPB, plain.IDB, plain.EPB, plain.EPB]
    assert [packet.interface for packet in found.packets] == [0, 1, 0]


def test_sections_become_one(tmp_path: Path) -> None:
    here = Section(hardware="here", os="Linux 6.1", application="x", comments=("first",))
    there = Section(hardware="there", os="Linux 6.12", comments=("second",))
    late = Section(os="Linux 6.1", comments=("third",))
    known = [Interface(section=here), Interface(section=there, comments=("own",))]
    path = tmp_path / "x"
    with SavefileWriter(path, comment="ours") as writer:
        writer.write(FrameBatch.of([b"a", b"b"], interface=[0, 1], interfaces=known))
        known += [Interface(section=late), Interface(section=late)]
        writer.write(FrameBatch.of([b"c"], interface=[3], interfaces=known))
    found = plain.read(path)
    (section,) = found.sections
    assert plain.every(section.options, 1) == [b"first", b"second", b"ours"]
    assert (text(section.options, 2), text(section.options, 3)) == ("here", "Linux 6.1")
    assert [text(each.options, 12) for each in found.interfaces] == ["", "Linux 6.12", "", ""]
    assert [plain.every(each.options, 1) for each in found.interfaces] == [
        [],
        [b"own"],
        [b"third"],
        [],
    ]


def test_nothing_captured_is_a_whole_file(tmp_path: Path) -> None:
    assert written(tmp_path / "a").kinds == [plain.SHB]
    empty = FrameBatch.of([], interfaces=[LIVE])
    assert written(tmp_path / "b", empty, statistics={0: FULL}).kinds == [
        plain.SHB,
        plain.IDB,
        plain.ISB,
    ]


def test_a_time_before_1970_is_refused_and_what_is_before_it_written(tmp_path: Path) -> None:
    writer = SavefileWriter(tmp_path / "x")
    with pytest.raises(VsockdumpError, match=r"packet 12 cannot be written: .*before 1970"):
        writer.write(FrameBatch.of([b"a", b"b", b"c"], time_ns=[1, 2, -1], first_number=10))
    writer.close()
    assert [packet.data for packet in plain.read(tmp_path / "x").packets] == [b"a", b"b"]


def test_a_comment_longer_than_an_option_is_refused_at_once(tmp_path: Path) -> None:
    PcapngEncoder(application="x", comment="x" * 65_535)
    with pytest.raises(VsockdumpError, match="65536 bytes is too long"):
        SavefileWriter(tmp_path / "x", comment="x" * 65_536)


def test_a_comment_that_is_no_utf8_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    found = written(tmp_path / "x", text="a\udcffb")
    assert plain.every(found.sections[0].options, 1) == [b"a?b"]


@pytest.mark.judge
def test_judges_find_all_of_it(tmp_path: Path) -> None:
    known = [LIVE, Interface(name="vsockmon1", os="Linux 6.1.99", section=Section(hardware="PC"))]
    frames = [bytes(wire.HEADERS_LEN + size) for size in (0, 1, 2, 3, wire.MAX_PAYLOAD)]
    rows = [
        Row(
            data=frame,
            origlen=len(frame) + place,
            time_ns=NOW + place,
            interface=place % 2,
            options=comment(f"remark {place}") if place % 3 == 0 else (),
        )
        for place, frame in enumerate(frames)
    ]
    path = tmp_path / "x.pcapng"
    written(path, laid_out(rows, known), statistics={0: FULL, 1: InterfaceStatistics()}, text="why")

    described = ask("capinfos", "-M", path)
    for needle in (
        "nanoseconds (9)",
        f"Number of packets:   {len(rows)}\n",
        "Number of interfaces in file: 2",
        f"Capture oper-sys:    {KERNEL}",
        "Capture hardware:    PC",
        f"Capture application: {APPLICATION}",
        "Capture comment:     why",
        "Filter string = port 1234",
        "Operating system = Linux 6.1.99",
        "Capture length = 262144",
        "Description = tap",
    ):
        assert needle in described, described
    assert described.count("Number of stat entries = 1") == len(known)

    fields = ["frame.time_epoch", "frame.cap_len", "frame.len", "frame.interface_name"]
    fields += ["frame.comment"]
    chosen = [part for name in fields for part in ("-e", name)]
    lines = ask("tshark", "-n", "-r", path, "-T", "fields", *chosen).splitlines()
    assert [line.split("\t") for line in lines] == [
        [
            f"{row.time_ns // 10**9}.{row.time_ns % 10**9:09d}",
            str(len(row.data)),
            str(row.origlen),
            known[row.interface].name,
            row.options[0].value.decode() if row.options else "",
        ]
        for row in rows
    ]


@pytest.mark.judge
@settings(deadline=None, max_examples=10)
@given(captures())
def test_judges_open_whatever_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Interface], list[tuple[int, list[Row]]]],
) -> None:
    known, batches = drawn
    path = tmp_path_factory.mktemp("judged") / "x.pcapng"
    with SavefileWriter(path) as writer:
        for count, rows in batches:
            # Options of arbitrary codes and bytes are the input's to answer for; ours are comments.
            plainer = [
                Row(row.data, row.origlen, row.time_ns, row.interface, comment("remark"))
                for row in rows
            ]
            writer.write(laid_out(plainer, known[:count]))
    lines = ask("tshark", "-n", "-r", path, "-T", "fields", "-e", "frame.len").splitlines()
    # tshark's own limit.
    assert lines == [str(min(row.origlen, 2**31 - 1)) for _, rows in batches for row in rows]


@pytest.mark.judge
def test_tshark_understands_packet_options(tmp_path: Path) -> None:
    row = Row(
        data=bytes(wire.HEADERS_LEN),
        origlen=wire.HEADERS_LEN,
        time_ns=NOW,
        interface=0,
        options=(
            Option(code=2, value=(1).to_bytes(4, "little")),
            Option(code=5, value=(7).to_bytes(8, "little")),
        ),
    )
    written(tmp_path / "x", laid_out([row], [LIVE]))
    chosen = ["-e", "frame.packet_flags_direction", "-e", "frame.packet_id"]
    line = ask("tshark", "-n", "-r", tmp_path / "x", "-T", "fields", *chosen)
    assert [int(value, 0) for value in line.split()] == [1, 7]
