"""Options are read as far as they go, and cost what they are worth."""

from __future__ import annotations

import struct
import tracemalloc

import plain_blocks
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_blocks import CUSTOM_TEXT

from vsockdump.frames import Option
from vsockdump.sources import options
from vsockdump.sources.options import MAX_OPTIONS, Chosen, of_packet, pairs

orders = st.sampled_from("<>")
drawn = st.lists(st.tuples(st.integers(1, 2**16 - 1), st.binary(max_size=9)), max_size=6)


@given(orders, drawn, st.booleans())
def test_options_are_those_that_were_written(
    order: str, some: list[tuple[int, bytes]], ended: bool
) -> None:
    data = plain_blocks.options(order, some, ended=ended)
    assert list(pairs(data, order)) == some


@given(orders, st.binary(max_size=60))
def test_any_bytes_are_options_as_far_as_they_go(order: str, data: bytes) -> None:
    found = list(pairs(data, order))
    assert data.startswith(plain_blocks.options(order, found, ended=False)) or any(
        len(value) % 4 for _, value in found
    )
    assert sum(len(value) + 4 for _, value in found) <= len(data)


def test_nothing_follows_the_end_mark_or_an_option_that_does_not_fit() -> None:
    one = plain_blocks.options("<", [(1, b"text")], ended=False)
    assert len(list(pairs(one + bytes(4) + one, "<"))) == 1
    assert len(list(pairs(one + struct.pack("<HH", 1, len(one) + 1) + one, "<"))) == 1


@pytest.mark.parametrize(
    ("code", "layout", "numbers", "rest"),
    [
        (2, "I", (0x01020304,), b""),
        (4, "Q", (0x0102030405060708,), b""),
        (5, "Q", (7,), b""),
        (6, "I", (9,), b""),
        (CUSTOM_TEXT, "I", (32473,), b"text"),
        (19373, "I", (32473,), b""),
    ],
)
def test_the_integers_of_a_packets_options_become_little_endian(
    code: int, layout: str, numbers: tuple[int, ...], rest: bytes
) -> None:
    for order in "<>":
        value = struct.pack(order + layout, *numbers) + rest
        data = plain_blocks.options(order, [(code, value), (1, b"abcd")])
        expected = struct.pack("<" + layout, *numbers) + rest
        assert of_packet(data, order) == (
            Option(code=code, value=expected),
            Option(code=1, value=b"abcd"),
        )


def test_an_integer_of_another_width_is_left_as_it_is() -> None:
    data = plain_blocks.options(">", [(2, b"abc"), (CUSTOM_TEXT, b"abc")])
    assert of_packet(data, ">") == (
        Option(code=2, value=b"abc"),
        Option(code=CUSTOM_TEXT, value=b"abc"),
    )


def test_a_packet_may_have_many_options_but_not_any_number() -> None:
    empty = plain_blocks.options("<", [(1, b"")], ended=False)
    most = of_packet(empty * MAX_OPTIONS, "<")
    assert most is not None and len(most) == MAX_OPTIONS
    assert of_packet(empty * (MAX_OPTIONS + 1), "<") is None


def test_chosen_options_are_the_first_of_their_code_and_all_comments() -> None:
    some = [(3, b"first\0\0"), (1, b"one"), (3, b"second"), (9, b"x"), (1, b"t\xc3\xa9\xff")]
    found = Chosen(plain_blocks.options("<", some), "<", (3, 4))
    assert (found.get(3), found.get(4), found.get(9)) == (b"first\0\0", None, None)
    assert (found.text(3), found.text(4)) == ("first", "")
    assert found.comments == ("one", "té\N{REPLACEMENT CHARACTER}")
    assert options.text(b"\0") == ""


def test_options_nobody_asked_for_cost_no_memory() -> None:
    data = plain_blocks.options("<", [(77, b"")], ended=False) * 40_000
    tracemalloc.start()
    try:
        Chosen(data, "<", (3,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(data) // 10
