"""The mask, the kernel running the program, and the oracle choose the same packets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from filter_oracle import COOKED, Frame, Kernel, Tracked
from filter_strategies import CODES, captures, filters, numbers, values
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.errors import FilterError
from vsockdump.filters import Filter, compile, names, tree
from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import PacketBatch, decode


def batch_of(captured: Sequence[bytes], linktype: int = wire.LINKTYPE_VSOCK) -> PacketBatch:
    return decode(FrameBatch.of(captured, interfaces=(Interface(linktype=linktype),)))


def program_of(chosen: Filter, linktype: int, snaplen: int = 0) -> list | None:  # type: ignore[type-arg]
    """The program, or None where the kernel cannot calculate what the filter asks for."""
    try:
        return chosen.bpf(snaplen, linktype=linktype)
    except FilterError as error:
        assert "32 bits" in str(error) or "scratch" in str(error)
        return None


@pytest.mark.parametrize("linktype", COOKED)
@settings(max_examples=120)
@given(node=filters(), data=st.data())
def test_mask_kernel_and_oracle_agree(linktype: int, node: tree.Node, data: st.DataObject) -> None:
    captured = data.draw(captures(linktype))
    expected = [Frame(frame, linktype).passes(node) for frame in captured]
    chosen = compile(tree.show(node))
    assert chosen.mask(batch_of(captured, linktype)).tolist() == expected
    program = program_of(chosen, linktype)
    if program is not None:
        with Kernel(program) as kernel:
            passed = [kernel.run(frame) for frame in captured]
        assert passed == [
            frame if passes else None for frame, passes in zip(captured, expected, strict=True)
        ]


@settings(max_examples=100)
@given(
    sides=st.tuples(values(), values()),
    relation=st.sampled_from(tree.RELATIONS),
    captured=captures(),
)
def test_calculations_agree(
    sides: tuple[tree.Value, tree.Value], relation: str, captured: list[bytes]
) -> None:
    node = tree.Compare(relation=relation, left=sides[0], right=sides[1])
    expected = [Frame(frame, wire.LINKTYPE_VSOCK).passes(node) for frame in captured]
    chosen = compile(tree.show(node))
    assert chosen.mask(batch_of(captured)).tolist() == expected
    program = program_of(chosen, wire.LINKTYPE_VSOCK)
    if program is not None:
        with Kernel(program) as kernel:
            assert [kernel.run(frame) is not None for frame in captured] == expected


@settings(max_examples=60)
@given(
    members=st.lists(numbers(32), min_size=1, max_size=60),
    field=st.sampled_from(names.HEADER_FIELDS),
    captured=captures(),
)
def test_sets_agree(members: list[int], field: str, captured: list[bytes]) -> None:
    chosen = compile(f"{field} in {{{', '.join(map(str, members))}}}")
    seen = [Frame(frame, wire.LINKTYPE_VSOCK).field(field) for frame in captured]
    expected = [value in members for value in seen]
    assert chosen.mask(batch_of(captured)).tolist() == expected
    with Kernel(chosen.bpf()) as kernel:
        assert [kernel.run(frame) is not None for frame in captured] == expected


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("apart", [1, 3, 1 << 20])
def test_sets_of_any_size_and_spread_agree(width: int, apart: int) -> None:
    most = 256**width - 1
    for count in (2, 20, 100):
        members = [number for number in range(0, count * apart, apart) if number <= most] + [most]
        near = {number + step for number in members for step in (-1, 0, 1)} | {most // 2}
        captured = [number.to_bytes(width, "little") for number in near if 0 <= number <= most]
        chosen = compile(f"vsock[0:{width}] in {{{', '.join(map(str, members))}}}")
        expected = [int.from_bytes(frame, "little") in members for frame in captured]
        assert chosen.mask(batch_of(captured)).tolist() == expected


@settings(max_examples=100)
@given(
    number=numbers(32),
    relation=st.sampled_from(tree.RELATIONS),
    form=st.sampled_from(
        ("caplen", "caplen * 3", "64 / (caplen - 40)", "caplen - len", "1 << caplen")
    ),
    snaplen=st.integers(1, 130),
    captured=captures(),
)
def test_the_kernel_knows_what_it_will_cut(
    number: int, relation: str, form: str, snaplen: int, captured: list[bytes]
) -> None:
    chosen = compile(f"{form} {relation} {number}")
    # A field that the cut takes away is gone in the file and was there in the kernel.
    whole = [frame for frame in captured if "len" not in form.split() or len(frame) <= snaplen]
    cut = [frame[:snaplen] for frame in whole]
    expected = chosen.mask(batch_of(cut)).tolist()
    assert expected == [Frame(frame, wire.LINKTYPE_VSOCK).passes(chosen.node) for frame in cut]
    with Kernel(chosen.bpf(snaplen)) as kernel:
        passed = [kernel.run(frame) for frame in whole]
    assert passed == [
        frame if passes else None for frame, passes in zip(cut, expected, strict=True)
    ]


@settings(max_examples=30)
@given(snaplen=st.integers(1, 200), captured=captures())
def test_the_snapshot_length_is_what_the_program_returns(
    snaplen: int, captured: list[bytes]
) -> None:
    chosen = compile("src port 5 or not src port 5")
    with Kernel(chosen.bpf(snaplen)) as kernel:
        assert [kernel.run(frame) for frame in captured] == [frame[:snaplen] for frame in captured]


def test_the_longest_frame_passes_whole() -> None:
    frame = bytes(wire.MAX_FRAME)
    with Kernel(compile("").bpf()) as kernel:
        assert kernel.run(frame) == frame
    with Kernel(compile(f"caplen == {wire.MAX_FRAME}").bpf()) as kernel:
        assert kernel.run(frame) == frame
        assert kernel.run(frame[1:]) is None


def test_an_empty_batch_has_an_empty_mask() -> None:
    for text in (
        "",
        "port 5",
        "not port 5",
        "port in {1,2,3}",
        "vsock[0] = 1",
        "payload[len:4] > 3",
    ):
        mask = compile(text).mask(batch_of([]))
        assert (mask.dtype, mask.size) == (np.bool_, 0)


def test_a_mask_is_the_callers_own() -> None:
    batch = batch_of([bytes(wire.HEADERS_LEN)] * 3)
    for text in ("", "src_port == 0", "not caplen == 0", "src_port == 0 and transport == 0"):
        compile(text).mask(batch)[:] = False
        assert compile(text).mask(batch).all()
    assert batch.has_mon.all()


def test_rows_taken_from_a_batch_keep_their_answer() -> None:
    cooked = bytes(wire.SLL_LEN) + bytes(wire.HEADERS_LEN)
    batch = batch_of([cooked, cooked[:4], cooked], wire.LINKTYPE_LINUX_SLL)
    chosen = compile("vsock[0] = 0")
    assert chosen.mask(batch).tolist() == [False] * 3
    assert chosen.mask(batch.take(np.array([0, 2]))).tolist() == [False] * 2


# --- tracking


class TrackedRows:
    """As much of a tracker's columns as filters ask for, from plain rows."""

    def __init__(self, rows: Sequence[Tracked]) -> None:
        self.rows = rows
        self.state = np.array([names.STATES.get(str(row["state"]), -1) for row in rows])
        self.stalled = np.array([row["stalled"] for row in rows], np.bool_)

    def number(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        column = [row[name] for row in self.rows]
        known = np.array([value is not None for value in column], np.bool_)
        return np.array([-1 if value is None else value for value in column], np.int64), known

    def finding(self, code: str) -> NDArray[np.bool_]:
        found = [row["findings"] for row in self.rows]
        return np.array([code in codes if code else bool(codes) for codes in found], np.bool_)  # type: ignore[operator]


_tracked_rows = st.fixed_dictionaries(
    {
        **{name: st.none() | numbers(40) for name in tree.TRACKED_NUMBERS},
        tree.CONNECTION: st.none() | st.integers(1, 2**40),
        "state": st.none() | st.sampled_from(tuple(names.STATES)),
        "stalled": st.booleans(),
        "findings": st.frozensets(st.sampled_from(CODES)),
    }
)


@settings(max_examples=80)
@given(node=filters(tracking=True), data=st.data())
def test_display_filters_agree(node: tree.Node, data: st.DataObject) -> None:
    captured = data.draw(captures())
    drawn = data.draw(st.lists(_tracked_rows, min_size=1, max_size=6))
    rows = [drawn[place % len(drawn)] for place in range(len(captured))]
    expected = [
        Frame(frame, wire.LINKTYPE_VSOCK, row).passes(node)
        for frame, row in zip(captured, rows, strict=True)
    ]
    chosen = compile(tree.show(node))
    assert chosen.needs_tracking == (tree.tracking_in(node) is not None)
    assert chosen.mask(batch_of(captured), TrackedRows(rows)).tolist() == expected


def test_tracking_is_asked_for_only_where_it_is() -> None:
    batch = batch_of([b""])
    for text, caret in (("port 5 and window == 0", 11), ("stalled", 0), ("conn.state reset", 11)):
        chosen = compile(text)
        assert chosen.needs_tracking
        with pytest.raises(FilterError, match="known only where connections are tracked") as caught:
            chosen.mask(batch)
        assert caught.value.column == caret
        with pytest.raises(FilterError, match="the kernel does not know") as caught:
            chosen.bpf()
        assert caught.value.column == caret


# --- what passes whole connections


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", True),
        ("port 1024", True),
        ("port 1-99 or 200", True),
        ("not (cid 3 and port 1024)", True),
        ("conn 3.1024 host.5000", True),
        ("conn 3.1024", True),
        ("(src cid 3 and dst host) or (src host and dst cid 3)", True),
        # Not what it looks like: "and" and "or" bind alike, from the left.
        ("src cid 3 and dst host or src host and dst cid 3", False),
        ("src port 1024", False),
        ("src or dst port 5", True),
        ("src and dst port 5", True),
        ("op rw", False),
        ("port 5 and len > 0", False),
        ("vsock[0:4] = vsock[8:4]", False),
        ("caplen > 5", False),
        ("stalled", False),
        ("conn 3", False),
        ("src_port + dst_port > 5", False),
        ("src_port == dst_port", False),
    ],
)
def test_filters_of_endpoints_keep_connections(text: str, whole: bool) -> None:
    assert compile(text).keeps_connections is whole


@settings(max_examples=60)
@given(node=filters(), captured=captures())
def test_kernel_part_and_rest_are_the_filter(node: tree.Node, captured: list[bytes]) -> None:
    chosen = compile(f"port 1024 and ({tree.show(node)}) and not cid 2")
    kernel, rest = chosen.kernel_part()
    assert kernel is not None
    assert kernel.keeps_connections
    batch = batch_of(captured)
    both = kernel.mask(batch)
    if rest is not None:
        both &= rest.mask(batch)
    assert both.tolist() == chosen.mask(batch).tolist()


def test_kernel_part_of_a_display_filter() -> None:
    kernel, rest = compile("port 1024 and stalled and cid 3 and op rw").kernel_part()
    assert kernel is not None
    assert rest is not None
    assert kernel.text == compile("port 1024 and cid 3").kernel_part()[0].text  # type: ignore[union-attr]
    assert rest.needs_tracking
    assert rest.text == "stalled and op == 5"
    assert compile("").kernel_part() == (None, None)
    assert compile("stalled").kernel_part()[0] is None
    assert compile("port 5").kernel_part()[1] is None
