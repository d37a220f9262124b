"""JSON: what the plain formatter's dict says, in the documented schema, on lines of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from line_cases import HOSTILE, batches, tracked
from plain_lines import as_dict, whole_characters

from vsockdump import captures
from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import PacketBatch, decode
from vsockdump.sinks.jsonlines import render
from vsockdump.sources.savefile import Savefile

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "docs/packet.schema.json").read_text("utf-8")
)
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)


@given(batches(), st.data())
def test_objects_are_those_of_the_plain_formatter(batch: PacketBatch, data: st.DataObject) -> None:
    figures = data.draw(st.none() | tracked(len(batch)))
    shown = render(batch, figures).decode("ascii").splitlines()
    assert len(shown) == len(batch)
    for line, packet in zip(shown, batch, strict=True):
        wanted = as_dict(packet, figures)
        found = json.loads(line)
        assert found == wanted
        assert list(found) == list(wanted)
        VALIDATOR.validate(found)


@given(batches())
def test_nothing_but_visible_ascii_is_printed(batch: PacketBatch) -> None:
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in render(batch))


def test_hostile_names_arrive_whole_and_are_harmless_on_the_way() -> None:
    frames = FrameBatch.of([b""], interfaces=[Interface(name=HOSTILE[:64])])
    line = render(decode(frames))
    assert json.loads(line)["interface"] == whole_characters(HOSTILE[:64])
    assert line[:-1].decode("ascii").isprintable()


@given(batches(), st.lists(st.integers(0, 12), max_size=3).map(sorted))
def test_objects_do_not_depend_on_how_packets_came_in_batches(
    batch: PacketBatch, cuts: list[int]
) -> None:
    pieces = [
        render(batch.take(slice(start, stop)))
        for start, stop in zip([0, *cuts], [*cuts, len(batch)], strict=True)
    ]
    assert b"".join(pieces) == render(batch)


@pytest.mark.parametrize("name", captures.names())
def test_every_bundled_packet_is_in_the_schema(name: str) -> None:
    source = Savefile(captures.path(name))
    for frames in source.batches():
        batch = decode(frames)
        for line, packet in zip(render(batch).splitlines(), batch, strict=True):
            found = json.loads(line)
            VALIDATOR.validate(found)
            assert found == as_dict(packet)
    source.close()


def test_the_schema_is_one_and_refuses_what_is_not_in_it() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    good = as_dict(decode(FrameBatch.of([b""])).packet(0))
    VALIDATOR.validate(good)
    for wrong in ({"op": -1}, {"op": "rw"}, {"extra": 1}, {"status": "fine"}, {"src_cid": 2**64}):
        assert not VALIDATOR.is_valid(good | wrong)
    for key in good:
        assert not VALIDATOR.is_valid({k: v for k, v in good.items() if k != key})
