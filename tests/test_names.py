"""Numbers by name, and text from outside made harmless."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from line_cases import HOSTILE, batches, names, tracked
from plain_lines import name, visible

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import PacketBatch
from vsockdump.sinks import sheet
from vsockdump.sinks.names import (
    LONGEST_NAME,
    Combined,
    cid_names,
    escape,
    interface_name,
    name_of,
    of_interfaces,
    pair_texts,
)

OBEYED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of what a terminal obeys, hides, or may come to obey."""


numbers = st.integers(0, 3) | st.integers(0, 9) | st.integers(0, 2**16 - 1)


def rows(columns: list[sheet.Column], count: int) -> list[str]:
    return sheet.lines([*columns, b"\n"], count).decode().splitlines()


@given(names)
@example(HOSTILE)
def test_what_is_escaped_has_nothing_to_obey(text: str) -> None:
    safe = escape(text)
    assert not [char for char in safe if unicodedata.category(char) in OBEYED]
    safe.encode()


def test_every_character_that_is_obeyed_is_escaped() -> None:
    obeyed = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in OBEYED]
    assert escape("".join(obeyed)) == "".join(ascii(char)[1:-1] for char in obeyed)


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_text_that_is_harmless_stays(text: str) -> None:
    assert escape(text) == text
    assert escape("a b") == "a b"


@pytest.mark.parametrize(
    ("char", "escaped"), [("\x1b", r"\x1b"), ("\u202e", r"\u202e"), ("\U000e0001", r"\U000e0001")]
)
def test_escapes_are_those_of_python(char: str, escaped: str) -> None:
    assert escape(f"a{char}b") == f"a{escaped}b"


def test_a_name_is_cut_before_it_is_escaped() -> None:
    assert interface_name(Interface(name="\x1b" * 100)) == "\x1b" * LONGEST_NAME


@given(st.integers(0, 2**16 - 1) | st.integers(0, 9))
def test_values_without_a_name_are_numbers(value: int) -> None:
    for kind in (wire.MonOp, wire.Transport, wire.Type, wire.Op):
        assert name_of(kind, value).decode() == name(kind, value)


@given(st.lists(st.lists(st.tuples(numbers, numbers, st.booleans())), max_size=4))
def test_combinations_are_spelled_whatever_the_numbers(
    batches: list[list[tuple[int, int, bool]]],
) -> None:
    combined = Combined(spell, (3, 2, 1))
    for batch in batches:
        keys = zip(*batch, strict=True) if batch else ([], [], [])
        arrays = map(np.array, keys, (np.uint32, np.uint16, np.bool_))
        assert rows([combined.column(*arrays)], len(batch)) == [
            spell(*combination).decode() for combination in batch
        ]


def spell(first: int, second: int, third: bool) -> bytes:
    return b"%d-%d%s" % (first, second, b"!" * third)


def test_combinations_are_spelled_once_and_a_bounded_number_of_them_kept() -> None:
    asked: list[int] = []

    def spell(value: int) -> bytes:
        asked.append(value)
        return b"%d" % value

    combined = Combined(spell, (16,))
    few = np.array([3, 3, 7, 3], np.uint16)
    for _ in range(2):
        assert rows([combined.column(few)], few.size) == ["3", "3", "7", "3"]
    assert sorted(asked) == [3, 7]
    many = np.arange(2**16).astype(np.uint16)
    assert rows([combined.column(many)], many.size) == list(map(str, range(2**16)))
    assert len(combined) == 2


@given(st.lists(st.integers(0, 4) | st.integers(0, 2**64 - 1)))
def test_cids_that_everybody_shares_have_names(values: list[int]) -> None:
    cids = np.array(values, np.uint64)
    named = rows(cid_names(cids, numeric=False), len(values))
    assert named == [wire.CID_NAMES.get(value, str(value)) for value in values]
    assert rows(cid_names(cids, numeric=True), len(values)) == list(map(str, values))


@given(st.lists(batches(), max_size=3), st.booleans(), st.data())
def test_pairs_are_right_whatever_the_ways_say(
    several: list[PacketBatch], numeric: bool, data: st.DataObject
) -> None:
    pairs = pair_texts(numeric=numeric)
    for batch in several:
        way = data.draw(st.none() | tracked(len(batch)).map(lambda figures: figures.way))
        spelled = pairs.column(batch.headers, way)
        for text, packet in zip(rows([spelled], len(batch)), batch, strict=True):
            src, dst = (
                str(cid) if numeric else wire.CID_NAMES.get(cid or 0, str(cid))
                for cid in (packet.src_cid or 0, packet.dst_cid or 0)
            )
            assert text == f"{src}.{packet.src_port or 0} > {dst}.{packet.dst_port or 0}: "


def test_only_the_interfaces_of_a_batch_are_spelled() -> None:
    known = [Interface(name=str(place)) for place in range(1000)]
    frames = FrameBatch.of([b""] * 3, interface=[7, 900, 7], interfaces=known)
    asked: list[str] = []

    def spell(interface: Interface) -> bytes:
        asked.append(interface.name)
        return interface.name.encode()

    assert rows([of_interfaces(frames, spell)], len(frames)) == ["7", "900", "7"]
    assert asked == ["7", "900"]


def test_visible_and_escape_agree() -> None:
    assert visible(HOSTILE) == escape(HOSTILE)
