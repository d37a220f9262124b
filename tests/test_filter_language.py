"""What expressions mean, that any text is one or is refused in its place, and how it is refused."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filter_strategies import CODES, filters
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockdump import filters as language
from vsockdump import wire
from vsockdump.errors import FilterError
from vsockdump.filters import compile, names, tree
from vsockdump.filters.parser import parse
from vsockdump.frames import FrameBatch
from vsockdump.packets import PacketBatch, decode
from vsockdump.wire import CID_ANY, CID_HOST, CID_LOCAL, Op, Transport, Type

ERRORS = Path(__file__).with_name("golden") / "filter-errors.txt"
GRAMMAR = Path(language.__file__).with_name("grammar.lark")

# --- what expressions mean, on packets that differ in everything they ask for

_PORTS = (80, 1024, 1025, 5000)
_CIDS = (CID_LOCAL, CID_HOST, 3, 4, CID_ANY, 2**32 + 3)


def packets() -> np.ndarray:
    """Header records: every pair of CIDs and of ports, and every op, type and flag."""
    addresses = list(itertools.product(_CIDS, _CIDS, _PORTS, _PORTS))
    rest = list(itertools.product(Op, Type, range(4)))
    rows = np.zeros(max(len(addresses), len(rest)), wire.HEADERS)
    for row in range(rows.size):
        src_cid, dst_cid, src_port, dst_port = addresses[row % len(addresses)]
        op, type_, flags = rest[row % len(rest)]
        rows[row]["src_cid"], rows[row]["dst_cid"] = src_cid, dst_cid
        rows[row]["src_port"], rows[row]["dst_port"] = src_port, dst_port
        rows[row]["op"], rows[row]["type"], rows[row]["flags"] = op, type_, flags
        rows[row]["mon_op"] = wire.MON_OP_OF.get(op, wire.MonOp.UNKNOWN)
        rows[row]["len"] = row
        rows[row]["buf_alloc"] = row << 12
        rows[row]["fwd_cnt"] = row % 3
    rows["transport"] = Transport.VIRTIO
    rows["transport_len"] = wire.VIRTIO_HDR_LEN
    return rows


ROWS = packets()
BATCH: PacketBatch = decode(
    FrameBatch.of([row.tobytes()[: wire.HEADERS_LEN] + b"GET /" for row in ROWS])
)
PLAIN = [
    SimpleNamespace(**dict(zip(ROWS.dtype.names or (), row.item(), strict=True))) for row in ROWS
]


def guest(cid: int) -> bool:
    return cid >= wire.FIRST_GUEST_CID and cid != CID_ANY


def either(p: SimpleNamespace, cid: int | None = None, port: int | None = None) -> bool:
    ends = ((p.src_cid, p.src_port), (p.dst_cid, p.dst_port))
    return any(cid in (None, end[0]) and port in (None, end[1]) for end in ends)


MEANINGS: dict[str, Callable[[SimpleNamespace], bool]] = {
    "": lambda p: True,
    "  # nothing but a comment": lambda p: True,
    "port 1024": lambda p: either(p, port=1024),
    "src port 1024": lambda p: p.src_port == 1024,
    "dst port 1024 # a comment": lambda p: p.dst_port == 1024,
    "src or dst port 1024": lambda p: either(p, port=1024),
    "dst and src port 1024": lambda p: p.src_port == p.dst_port == 1024,
    "src || dst port 1024": lambda p: either(p, port=1024),
    "src && dst port 1024": lambda p: p.src_port == p.dst_port == 1024,
    "src or src port 1024": lambda p: p.src_port == 1024,
    "port 1024 or 80": lambda p: either(p, port=1024) or either(p, port=80),
    "port 1024 and 80": lambda p: either(p, port=1024) and either(p, port=80),
    "port 1024 and not 80": lambda p: either(p, port=1024) and not either(p, port=80),
    "port (1024 or 80)": lambda p: either(p, port=1024) or either(p, port=80),
    "src port (1024 or not 80)": lambda p: p.src_port == 1024 or p.src_port != 80,
    "port in {1024, 80}": lambda p: either(p, port=1024) or either(p, port=80),
    "not src port 1024 and not 80": lambda p: p.src_port not in (1024, 80),
    "portrange 81-1024": lambda p: any(81 <= port <= 1024 for port in (p.src_port, p.dst_port)),
    "src portrange 1024-81": lambda p: 81 <= p.src_port <= 1024,
    "src port 81-1024 or 5000-6000": lambda p: 81 <= p.src_port <= 1024 or p.src_port == 5000,
    "src port in {80, 1024-1025}": lambda p: p.src_port in (80, 1024, 1025),
    "port > 1024": lambda p: max(p.src_port, p.dst_port) > 1024,
    "port != 1024": lambda p: not either(p, port=1024),
    "dst port >= 0x400": lambda p: p.dst_port >= 1024,
    "src_port = 02000": lambda p: p.src_port == 1024,
    "src_port == 0b10000000000": lambda p: p.src_port == 1024,
    "src_port == 1k": lambda p: p.src_port == 1024,
    "cid 3": lambda p: either(p, cid=3),
    "src cid 3": lambda p: p.src_cid == 3,
    "src 3": lambda p: p.src_cid == 3,
    "dst cid host": lambda p: p.dst_cid == CID_HOST,
    "host": lambda p: either(p, cid=CID_HOST),
    "dst host": lambda p: p.dst_cid == CID_HOST,
    "local": lambda p: either(p, cid=CID_LOCAL),
    "guest": lambda p: guest(p.src_cid) or guest(p.dst_cid),
    "src guest": lambda p: guest(p.src_cid),
    "cid guest and host": lambda p: (
        (guest(p.src_cid) or guest(p.dst_cid)) and either(p, cid=CID_HOST)
    ),
    "dst cid any": lambda p: p.dst_cid == CID_ANY,
    "src host or guest": lambda p: p.src_cid == CID_HOST or guest(p.src_cid),
    "cid 3 and port 1024": lambda p: either(p, cid=3) and either(p, port=1024),
    "cid 3 port 1024": lambda p: either(p, cid=3) and either(p, port=1024),
    "cid 4294967299": lambda p: either(p, cid=2**32 + 3),
    "src cid > 4294967295": lambda p: p.src_cid > CID_ANY,
    "src 3.1024": lambda p: (p.src_cid, p.src_port) == (3, 1024),
    "src 3.1024 or host.80": lambda p: (p.src_cid, p.src_port) in ((3, 1024), (CID_HOST, 80)),
    "cid 3.1024": lambda p: either(p, 3, 1024),
    "conn 3.1024": lambda p: either(p, 3, 1024),
    "conn 3.1024 host.80": lambda p: (
        (p.src_cid, p.src_port, p.dst_cid, p.dst_port)
        in ((3, 1024, CID_HOST, 80), (CID_HOST, 80, 3, 1024))
    ),
    "op rw": lambda p: p.op == Op.RW,
    "op RW": lambda p: p.op == Op.RW,
    "op credit-update": lambda p: p.op == Op.CREDIT_UPDATE,
    "op 5": lambda p: p.op == Op.RW,
    "op request or response": lambda p: p.op in (Op.REQUEST, Op.RESPONSE),
    "op in {rw, rst}": lambda p: p.op in (Op.RW, Op.RST),
    "op (rw or rst)": lambda p: p.op in (Op.RW, Op.RST),
    "op != rw": lambda p: p.op != Op.RW,
    "op == rw || op == rst": lambda p: p.op in (Op.RW, Op.RST),
    "mon_op control": lambda p: p.mon_op == wire.MonOp.CONTROL,
    "type stream": lambda p: p.type == Type.STREAM,
    "type seqpacket or dgram": lambda p: p.type in (Type.SEQPACKET, Type.DGRAM),
    "flags eom": lambda p: p.op == Op.RW and p.type == Type.SEQPACKET and bool(p.flags & 1),
    "flags eor": lambda p: p.op == Op.RW and p.type == Type.SEQPACKET and bool(p.flags & 2),
    "flags rcv": lambda p: p.op == Op.SHUTDOWN and bool(p.flags & 1),
    "flags rcv and send": lambda p: p.op == Op.SHUTDOWN and p.flags & 3 == 3,
    "flags & 1 != 0": lambda p: bool(p.flags & 1),
    "flags & (eom | eor) == eom": lambda p: p.flags & 3 == 1,
    "transport virtio": lambda p: True,
    "transport no_info": lambda p: False,
    "len > 100": lambda p: p.len > 100,
    "100 < len": lambda p: p.len > 100,
    "less 100": lambda p: p.len <= 100,
    "greater 100": lambda p: p.len >= 100,
    "caplen == 81": lambda p: True,
    "buf_alloc < 65536": lambda p: p.buf_alloc < 65536,
    "buf_alloc < 64k": lambda p: p.buf_alloc < 65536,
    "buf_alloc <= 1M": lambda p: p.buf_alloc <= 2**20,
    "fwd_cnt == 0": lambda p: p.fwd_cnt == 0,
    "src_port == dst_port": lambda p: p.src_port == p.dst_port,
    "src_cid == dst_cid": lambda p: p.src_cid == p.dst_cid,
    "src_cid < dst_cid": lambda p: p.src_cid < p.dst_cid,
    "src_cid != virtio_src_cid": lambda p: p.src_cid != 0,
    "src_cid >> 32 == 1": lambda p: p.src_cid >> 32 == 1,
    "len - 5 > 100": lambda p: (p.len - 5) % 2**32 > 100,
    "len + 2 * 3 == 10": lambda p: p.len == 4,
    "(len + 2) * 3 == 12": lambda p: p.len == 2,
    "len % 10 == 3": lambda p: p.len % 10 == 3,
    "len / 10 == 3": lambda p: p.len // 10 == 3,
    "100 / fwd_cnt == 50": lambda p: p.fwd_cnt == 2,
    "not 100 / fwd_cnt == 50": lambda p: p.fwd_cnt != 2,
    "1 << fwd_cnt == 4": lambda p: p.fwd_cnt == 2,
    "len ^ 1 | 2 == 3": lambda p: (p.len ^ 1) | 2 == 3,
    "len == -1": lambda p: False,
    "-len > 4294967000": lambda p: 0 < p.len < 296,
    "vsock[16:4] == 1024": lambda p: p.src_port == 1024,
    "vsock[16] == 0 and vsock[17] == 4": lambda p: p.src_port == 1024,
    "vsock[vsock[28:2] + 32] == 0x47": lambda p: True,
    "payload[0] == 0x47": lambda p: p.len > 0,
    "payload[len - 1] == 0x45": lambda p: p.len == 2,
    "not port 1024": lambda p: not either(p, port=1024),
    "! port 1024": lambda p: not either(p, port=1024),
    "not not port 1024": lambda p: either(p, port=1024),
    "! (src port 1024 && op rw)": lambda p: not (p.src_port == 1024 and p.op == Op.RW),
    # As in pcap-filter, and unlike most else, "and" binds no closer than "or".
    "op rw or op rst and src port 80": lambda p: p.op in (Op.RW, Op.RST) and p.src_port == 80,
    "op rw or (op rst and src port 80)": lambda p: (
        p.op == Op.RW or (p.op == Op.RST and p.src_port == 80)
    ),
    "op rw or op rst src port 80": lambda p: p.op == Op.RW or (p.op == Op.RST and p.src_port == 80),
    "op rw\n  src port 80 # two\n": lambda p: p.op == Op.RW and p.src_port == 80,
    "port 1024 or op rw": lambda p: either(p, port=1024) or p.op == Op.RW,
    "1 == 1": lambda p: True,
    "1 > 2 or op rw": lambda p: p.op == Op.RW,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_expressions_mean_what_the_manual_says(text: str) -> None:
    expected = [MEANINGS[text](packet) for packet in PLAIN]
    assert compile(text).mask(BATCH).tolist() == expected
    assert compile(text).text == text


def test_the_packets_tell_most_expressions_apart() -> None:
    masks = {text: compile(text).mask(BATCH) for text in MEANINGS}
    telling = [text for text, mask in masks.items() if 0 < mask.sum() < len(BATCH)]
    assert len(telling) > 0.85 * len(MEANINGS)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("conn == 3", "conn.id == 3"),
        ("conn 3", "conn == 3"),
        ("conn.state reset", "conn.state == reset"),
        ("conn.state != reset", "not conn.state reset"),
        ("conn.state reset or refused", "conn.state in {reset, refused}"),
        ("conn.state half_closed", "conn.state half-closed"),
        ("finding stall or fwd-ahead", "finding stall or finding fwd_ahead"),
        ("finding stall or host", "finding stall or cid host"),
        ("finding and host", "(finding) and cid host"),
        ("stalled", "(stalled)"),
        ("in_flight > window / 2", "(in_flight) > (window / 2)"),
    ],
)
def test_tracking_can_be_asked_for_in_several_ways(text: str, same: str) -> None:
    assert parse(text) == parse(same)
    assert compile(text).needs_tracking


# --- text to tree and back


@settings(max_examples=200)
@given(filters(tracking=True))
def test_a_tree_printed_and_parsed_is_the_tree(node: tree.Node) -> None:
    assert parse(tree.show(node)) == node


@pytest.mark.parametrize("text", MEANINGS)
def test_an_expression_printed_and_parsed_is_the_expression(text: str) -> None:
    assert parse(tree.show(parse(text))) == parse(text)


def _soup() -> st.SearchStrategy[str]:
    """Expressions that nearly make sense: words of the language in any order."""
    keywords = re.findall(r'"([^"]+)"', GRAMMAR.read_text(encoding="utf-8"))
    words = (*keywords, *names.NUMBERS, *names.SIDES, *names.STATES, *CODES, "stalled", "any")
    given_names = [name for known in names.NAMES.values() for name in known]
    literals = ("0", "1", "1024", "0x10", "08", "4k", "3.1024", "host.5", "5-9", "4294967296", "x")
    return st.lists(st.sampled_from((*words, *given_names, *literals)), max_size=12).map(" ".join)


@settings(max_examples=200)
@given(st.text(max_size=60) | _soup())
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    try:
        chosen = compile(text)
    except FilterError as error:
        assert_points_into(error, text)
        return
    assert parse(tree.show(chosen.node)) == chosen.node
    if not chosen.needs_tracking:
        assert chosen.mask(BATCH.take(slice(0, 5))).size == 5
        try:
            assert chosen.bpf()
        except FilterError as error:
            assert_points_into(error, text)


def assert_points_into(error: FilterError, text: str) -> None:
    """The caret stands below the character that ``column`` says, and all of it can be printed."""
    assert error.column is not None
    assert 0 <= error.column <= len(text)
    lines = str(error).split("\n")
    assert all(line.isprintable() for line in lines)
    if text.strip():
        reason, line, caret = lines
        assert reason
        assert set(caret) <= {" ", "^"}
        pointed = line[caret.index("^") : caret.rindex("^") + 1]
        wanted = text[error.column :]
        if pointed and wanted[:1].isprintable() and "..." not in pointed:
            assert wanted.startswith(pointed[0])


@pytest.mark.parametrize(
    ("unit", "joint"),
    [("port 5", " or "), ("op rw", " and "), ("src port 5", " or "), ("5", " or ")],
)
def test_ten_thousand_terms_are_a_filter(unit: str, joint: str) -> None:
    terms = [unit.replace("5", str(number)) for number in range(10_000)]
    head = "port " if unit == "5" else ""
    chosen = compile(head + joint.join(terms))
    assert chosen.mask(BATCH).any() == (joint == " or " or BATCH.headers["op"].any())
    if joint == " or ":
        with pytest.raises(FilterError, match="4096"):
            chosen.bpf()


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + "port 5" + ")" * 10_000,
        "(" * 10_000,
        "not " * 9_999 + "port 5",
        "!" * 10_000 + "port 5",
        "!(port 5 or " * 10_000 + "port 6" + ")" * 10_000,
        "port 5 and op rw or " * 10_000 + "port 6",
        "port " + "(" * 10_000 + "5" + ")" * 10_000,
        "len " + "+ 1" * 10_000 + " > 5",
        "len > " + "-" * 10_000 + "5",
        "len > " + "(" * 10_000 + "5" + ")" * 10_000,
        "vsock[" * 10_000 + "0" + "]" * 10_000 + " = 1",
        "port " + "9" * 10_000,
        "x" * 10_000,
        "port 5 or\n" * 10_000,
    ],
    ids=lambda text: text[:12],
)
def test_deep_and_long_expressions_work_or_are_refused(text: str) -> None:
    try:
        chosen = compile(text)
    except FilterError as error:
        assert_points_into(error, text)
        assert len(str(error)) < 500
        return
    chosen.mask(BATCH)
    chosen.bpf()


@pytest.mark.parametrize("depth", [10, tree.MAX_BRACKETS - 2])
@pytest.mark.parametrize(
    ("opening", "inner"),
    [("(len > 1 and not op rw or ", "port 5"), ("!(", "port 5"), ("vsock[2 * (1 | 3 - ", "")],
)
def test_nesting_within_the_limit_works(opening: str, inner: str, depth: int) -> None:
    if inner:
        # Every bracket here opens up to three levels of the tree.
        depth = min(depth, tree.MAX_DEPTH // 4)
        text = opening * depth + inner + ")" * depth
    else:
        depth //= 4
        text = opening * depth + "0" + ")]" * depth + " = 1"
    chosen = compile(text)
    chosen.mask(BATCH)
    try:
        chosen.bpf()
    except FilterError as error:
        assert "scratch" in str(error)


# --- errors


def golden() -> dict[str, str]:
    """The golden file: an expression behind each ``> ``, and the error below it."""
    blocks = ERRORS.read_text(encoding="utf-8").split("\n> ")[1:]
    return {
        block.split("\n", 1)[0].encode().decode("unicode_escape"): block.split("\n", 1)[1].strip(
            "\n"
        )
        for block in blocks
    }


def told(text: str) -> str:
    """The error of an expression or of its program."""
    with pytest.raises(FilterError) as caught:
        compile(text).bpf()
    assert_points_into(caught.value, text)
    return str(caught.value)


@pytest.mark.parametrize("word", names.IN_LINES)
def test_a_word_of_the_printed_lines_is_no_word_but_has_one(word: str) -> None:
    assert word not in names.NUMBERS
    fields = [field for field in names.NUMBERS if re.search(rf"\b{field}\b", names.IN_LINES[word])]
    assert fields
    for field in fields:
        parse(f"{field} > 0")
    with pytest.raises(FilterError, match=re.escape(names.IN_LINES[word])):
        parse(f"{word} > 0")


@pytest.mark.parametrize("text", golden())
def test_errors_say_what_is_wrong_and_where(text: str) -> None:
    assert told(text) == golden()[text]


def test_the_grammar_is_loaded_when_a_filter_is() -> None:
    code = "import sys, vsockdump.filters; print('lark' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


if __name__ == "__main__":
    # Writes the golden file anew, for the expressions that are in it.
    head = ERRORS.read_text(encoding="utf-8").split("\n> ")[0]
    entries = [f"> {text.encode('unicode_escape').decode()}\n{told(text)}\n" for text in golden()]
    ERRORS.write_text("\n".join([head, *entries]), encoding="utf-8")
