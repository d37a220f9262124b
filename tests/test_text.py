"""Lines of text: as a plain formatter writes them, in any batches, and fit for a terminal."""

from __future__ import annotations

import re
from dataclasses import replace

import goldens
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_cases import HOSTILE, batches, tracked, zone
from plain_lines import PlainText

from vsockdump.frames import FrameBatch, Interface, Option
from vsockdump.packets import PacketBatch, decode
from vsockdump.sinks.clock import Stamp
from vsockdump.sinks.hexdump import Dump
from vsockdump.sinks.text import TextPrinter, TextStyle
from vsockdump.tracking.columns import TrackedBatch

styles = st.builds(
    TextStyle,
    numeric=st.booleans(),
    verbose=st.integers(0, 3),
    quiet=st.booleans(),
    link=st.booleans(),
    interface=st.booleans(),
    numbered=st.booleans(),
    stamp=st.sampled_from(Stamp),
    digits=st.sampled_from([None, 6, 9]),
    color=st.booleans(),
)
PACKET_LINE = re.compile(rb"^(?!\t)")


def without_comments(batch: PacketBatch) -> PacketBatch:
    return replace(batch, frames=replace(batch.frames, options={}))


@given(batches().map(without_comments), styles, st.data())
def test_lines_are_those_of_the_plain_formatter(
    batch: PacketBatch, style: TextStyle, data: st.DataObject
) -> None:
    figures = data.draw(st.none() | tracked(len(batch)))
    shown = TextPrinter(style).render(batch, figures)
    assert shown.decode() == PlainText(style).lines(batch, figures)


@given(batches(), styles, st.data())
def test_lines_do_not_depend_on_how_packets_came_in_batches(
    batch: PacketBatch, style: TextStyle, data: st.DataObject
) -> None:
    style = replace(style, dump=data.draw(st.sampled_from([None, Dump(hexadecimal=True)])))
    figures = data.draw(st.none() | tracked(len(batch)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=3)))
    printer = TextPrinter(style)
    parts = b"".join(
        printer.render(_known_by_then(part, stop), figures.take(rows) if figures else None)
        for start, stop in zip([0, *cuts], [*cuts, len(batch)], strict=True)
        for rows in [slice(start, stop)]
        for part in [batch.take(rows)]
    )
    assert parts == TextPrinter(style).render(batch, figures)


def _known_by_then(part: PacketBatch, stop: int) -> PacketBatch:
    """The part with those interfaces only that its packets, or some before, came from."""
    most = int(part.frames.interface.max()) if len(part) else 0
    frames = replace(part.frames, interfaces=part.frames.interfaces[: most + 1])
    return replace(part, frames=frames)


@given(batches(), styles, st.sampled_from([None, Dump(text=True), Dump(hexadecimal=True)]))
def test_nothing_that_a_terminal_obeys_is_printed(
    batch: PacketBatch, style: TextStyle, dump: Dump | None
) -> None:
    shown = TextPrinter(replace(style, dump=dump)).render(batch).decode()
    if style.color:
        shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert all(char.isprintable() or char in "\n\t" for char in shown)


def one(**interface: object) -> FrameBatch:
    return FrameBatch.of([b""], interfaces=[Interface(**interface)])  # type: ignore[arg-type]


def test_hostile_interface_names_and_comments_are_escaped() -> None:
    frames = replace(
        one(name=HOSTILE[:64]),
        options={0: (Option(code=1, value=HOSTILE.encode("utf-8", "replace")),)},
    )
    style = TextStyle(link=True, verbose=3, stamp=Stamp.NONE)
    shown = TextPrinter(style).render(decode(frames)).decode()
    assert r"\x1b[2J\x7f\x80\x85\x9b31m" in shown
    assert shown.count("\n") == 2
    comment = shown.splitlines()[1]
    assert comment.startswith("\tcomment: ")
    assert all(char.isprintable() for char in comment.removeprefix("\t"))


@pytest.mark.parametrize("dump", [None, Dump(text=True), Dump(hexadecimal=True)])
@pytest.mark.parametrize("verbose", range(4))
def test_payload_that_was_cut_is_marked_where_it_matters(verbose: int, dump: Dump | None) -> None:
    had, needed = 3, 8
    whole = goldens.packet(bytes(needed))
    frames = [whole[: had - needed], whole, whole[: had - needed]]
    batch = decode(FrameBatch.of(frames, origlen=[len(whole)] * len(frames)))
    style = TextStyle(verbose=verbose, dump=dump, stamp=Stamp.NONE)
    shown = TextPrinter(style).render(batch).splitlines()
    lines = [line.decode() for line in shown if b" > " in line]
    cut, plain, again = (line.partition(" [")[2] for line in lines)
    assert (plain, cut) == ("", again)
    if not verbose and dump is None:
        assert cut == ""
    else:
        assert cut == f"{batch.stop(0)}]"
        assert cut.endswith(f"needed {needed}, had {had}]")


def test_a_name_of_any_length_is_cut() -> None:
    style = TextStyle(link=True, stamp=Stamp.NONE)
    shown = TextPrinter(style).render(decode(one(name="v" * 10**6)))
    assert shown.split(b" ")[0] == b"v" * 64


def test_comments_stand_below_their_packet_and_other_options_do_not() -> None:
    options = {
        1: (Option(code=1, value=b"first"), Option(code=2, value=b"x"), Option(code=1, value=b"")),
    }
    frames = replace(FrameBatch.of([b"", b"", b""]), options=options)
    shown = TextPrinter(TextStyle(verbose=3)).render(decode(frames)).splitlines()
    assert [bool(PACKET_LINE.match(line)) for line in shown] == [True, True, False, False, True]
    assert shown[2:4] == [b"\tcomment: first", b"\tcomment: "]
    assert TextPrinter(TextStyle(verbose=2)).render(decode(frames)).count(b"\n") == len(frames)


def test_a_second_interface_is_named_from_its_first_packet_on() -> None:
    interfaces = [Interface(name="a"), Interface(name="b")]
    frames = FrameBatch.of([b""] * 4, interface=[0, 1, 0, 1], interfaces=interfaces)
    printer = TextPrinter(TextStyle(stamp=Stamp.NONE))
    batch = decode(frames)
    first, second = printer.render(batch), printer.render(batch)
    assert [line.split()[0] for line in first.splitlines()] == [b"vsock", b"b", b"a", b"b"]
    assert [line.split()[0] for line in second.splitlines()] == [b"a", b"b", b"a", b"b"]


def test_times_have_the_digits_of_their_interface() -> None:
    interfaces = [Interface(nanoseconds=True), Interface(nanoseconds=False)]
    frames = FrameBatch.of(
        [b""] * 2, time_ns=[1_123_456_789] * 2, interface=[0, 1], interfaces=interfaces
    )
    shown = TextPrinter(TextStyle(stamp=Stamp.EPOCH)).render(decode(frames)).splitlines()
    assert [line.split()[0] for line in shown] == [b"1.123456789", b"1.123456"]


@pytest.mark.parametrize("zone_name", ["UTC", "CET-1CEST,M3.5.0,M10.5.0/3"])
@settings(max_examples=20)
@given(batch=batches().map(without_comments))
def test_local_times_are_those_of_the_plain_formatter(zone_name: str, batch: PacketBatch) -> None:
    style = TextStyle(stamp=Stamp.DATE, verbose=1)
    with zone(zone_name):
        assert TextPrinter(style).render(batch).decode() == PlainText(style).lines(batch)


@given(tracked(0))
def test_an_empty_batch_is_no_line(figures: TrackedBatch) -> None:
    batch = decode(FrameBatch.of([]))
    assert TextPrinter(TextStyle(numbered=True, link=True)).render(batch, figures) == b""
