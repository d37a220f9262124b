"""Charts of a window: the marks that an output can show, and what they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockdump import captures
from vsockdump.cli.chart import ASCII, BLOCKS, Marks, Recorder, marks
from vsockdump.packets import decode
from vsockdump.sources.savefile import Savefile
from vsockdump.tracking.report import Connection
from vsockdump.tracking.tracker import Tracker


def followed(name: str, drawn: Marks) -> tuple[Recorder, list[Connection]]:
    recorder = Recorder(drawn)
    tracker = Tracker(watch=recorder.feed)
    source = Savefile(captures.path(name))
    for frames in source.batches():
        tracker.feed(decode(frames))
    source.close()
    tracker.finish()
    return recorder, list(tracker.connections())


@pytest.mark.parametrize("name", captures.names())
def test_both_ways_to_draw_say_the_same(name: str) -> None:
    blocks, connections = followed(name, BLOCKS)
    plain, _ = followed(name, ASCII)
    same = str.maketrans(BLOCKS.levels + BLOCKS.none, ASCII.levels + ASCII.none)
    for connection in connections:
        for sender, way in enumerate((connection.client_to_server, connection.server_to_client)):
            chart = blocks.chart(connection.conn, sender)
            assert chart.translate(same) == plain.chart(connection.conn, sender)
            if chart:
                # A window of 0 is never averaged away; the largest one is drawn in full.
                assert (BLOCKS.none in chart) == (way.min_effective_window == 0)


def test_marks_are_told_apart() -> None:
    assert len(BLOCKS.levels) == len(ASCII.levels)
    for drawn in (BLOCKS, ASCII):
        assert len(set(drawn.levels + drawn.none)) == len(drawn.levels) + 1
        for mark in (drawn.none, drawn.levels[0], drawn.levels[-1]):
            assert f" {mark} " in drawn.legend
    assert (ASCII.levels + ASCII.none + ASCII.legend).isascii()


@given(st.sampled_from(["ascii", "latin-1", "cp437", "cp1252", "koi8-r", "utf-8", "no such"]))
def test_what_is_chosen_can_be_written(encoding: str) -> None:
    chosen = marks(encoding)
    if encoding != "no such":
        (chosen.levels + chosen.none + chosen.legend).encode(encoding)
    assert (chosen is BLOCKS) == (encoding == "utf-8")


def test_an_output_without_an_encoding_takes_blocks() -> None:
    assert marks(None) is BLOCKS
