"""docs/filters.md tells the truth: its examples are filters, its words are the language's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from filter_strategies import captures
from hypothesis import given, settings

from vsockdump import filters
from vsockdump.errors import FilterError
from vsockdump.filters import bpf, names, tree
from vsockdump.frames import FrameBatch
from vsockdump.packets import PacketBatch, decode

MANUAL = (Path(__file__).parents[1] / "docs" / "filters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```filter\n(.*?)```", MANUAL, re.DOTALL)
EXAMPLES = [line for block in BLOCKS for line in block.splitlines()]
SESSIONS = re.findall(r"    \$ vsockdump (.+)\n((?:    .*\n)+)", MANUAL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_filters(text: str) -> None:
    chosen = filters.compile(text)
    if not chosen.needs_tracking:
        assert chosen.bpf()


def test_tracking_begins_where_the_manual_says() -> None:
    first = next(place for place, text in enumerate(EXAMPLES) if "only where" in text)
    count = len(BLOCKS[0].splitlines())
    needs = [filters.compile(text).needs_tracking for text in EXAMPLES]
    assert needs == [first <= place < count for place in range(len(EXAMPLES))]


def test_sessions_print_what_they_print() -> None:
    assert len(SESSIONS) == 2
    for command, printed in SESSIONS:
        shown = "\n".join(line[4:] for line in printed.splitlines())
        expression = re.sub(r"^-d |^-i \w+ ", "", command)
        try:
            assert filters.dump(filters.compile(expression).bpf()) == shown
        except FilterError as error:
            assert str(error) == shown


def test_every_word_of_the_language_is_in_the_manual() -> None:
    grammar = Path(filters.__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    words = [*re.findall(r'^[A-Z_]+: "([a-z_.]+)"', grammar, re.MULTILINE), *names.NUMBERS]
    words += [*names.SIDES, *names.STATES, names.ANY_NAME, *tree.OPERATORS, *tree.RELATIONS]
    words += [name for known in names.NAMES.values() for name in known]
    told = set(re.findall(r"[a-z_.-]+|[^\s\w`\"]+", MANUAL))
    assert [word for word in words if word not in told] == []


def test_limits_are_those_in_the_manual() -> None:
    for limit in (bpf.MAX_INSTRUCTIONS, tree.MAX_BRACKETS, tree.MAX_DEPTH):
        assert re.search(rf"\b{limit}\b", MANUAL)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("port A-B", "portrange A-B"),
        ("src or dst port A", "port A"),
        ("port != A", "not port A"),
        ("less A", "len <= A"),
        ("greater A", "len >= A"),
        ("host", "cid host"),
        ("src host", "src cid host"),
        ("op rw or op rst and port A", "(op rw or op rst) and port A"),
        ("op rw or op rst port A", "op rw or (op rst and port A)"),
        ("vsock[A]", "vsock[A:1]"),
    ],
)
def test_what_the_manual_calls_the_same_is_the_same(one: str, other: str) -> None:
    pair = [text.replace("A", "10").replace("B", "20") for text in (one, other)]
    if "[" in one:
        pair = [f"{text} == 0" for text in pair]
    assert filters.compile(pair[0]).node == filters.compile(pair[1]).node


@settings(max_examples=30)
@given(captures())
def test_not_passes_all_that_is_not_passed(captured: list[bytes]) -> None:
    batch: PacketBatch = decode(FrameBatch.of(captured))
    equal, differs, complement = (
        filters.compile(text).mask(batch) for text in ("op == rw", "op != rw", "not op rw")
    )
    assert (complement == ~equal).all()
    assert (differs == (complement & batch.has_virtio)).all()
