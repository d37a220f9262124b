"""Batches for tests of savefiles: drawn by hypothesis, laid out as awkwardly as a source may."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.frames import SLACK, FrameBatch, Interface, Option, Section
from vsockdump.sinks.assemble import INLINE

TIME_MAX = 2**63 - 1
PCAP_TIME_MAX = 2**32 * 10**9 - 1
U32 = 2**32 - 1

# What a reader gives is UTF-8 without a NUL at its end.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
comments = st.lists(texts, max_size=2).map(tuple)


@dataclass(frozen=True)
class Row:
    data: bytes
    origlen: int
    time_ns: int
    interface: int
    options: tuple[Option, ...] = ()


sections = st.builds(Section, hardware=texts, os=texts, comments=comments)


any_linktype = st.sampled_from([wire.LINKTYPE_VSOCK, wire.LINKTYPE_LINUX_SLL2])


def interfaces(linktypes: st.SearchStrategy[int] = any_linktype) -> st.SearchStrategy[Interface]:
    return st.builds(
        Interface,
        linktype=linktypes,
        snaplen=st.sampled_from([0, 68, 262_144]),
        name=texts,
        description=texts,
        filter=texts,
        os=texts,
        comments=comments,
        section=sections,
    )


# Lengths around each power of two and around what is copied, and some in between.
lengths = st.one_of(
    st.integers(0, 200),
    st.sampled_from([0, 1, 2, 3, 4, 75, 76, 77, INLINE - 1, INLINE, INLINE + 1, wire.MAX_FRAME]),
)
options = st.lists(
    st.builds(Option, code=st.integers(1, 2**16 - 1), value=st.binary(max_size=9)), max_size=3
).map(tuple)


@st.composite
def rows(draw: st.DrawFn, count: int, time_max: int = TIME_MAX) -> Row:
    length = draw(lengths)
    return Row(
        # Cheap to draw and to shrink, and no two bytes in a row are the same.
        data=bytes((np.arange(length) + draw(st.integers(0, 255))).astype(np.uint8)),
        origlen=draw(st.integers(length, U32)),
        time_ns=draw(st.integers(0, time_max)),
        interface=draw(st.integers(0, count - 1)),
        options=draw(st.one_of(st.just(()), st.just(()), options)),
    )


def laid_out(rows: list[Row], interfaces: list[Interface], *, number: int = 1) -> FrameBatch:
    """The rows as a batch whose buffer holds them last to first, with gaps of odd lengths."""
    offset = np.zeros(len(rows), np.int64)
    parts: list[bytes] = []
    at = 0
    for index in reversed(range(len(rows))):
        gap = b"\xee" * (1 + index % 5)
        parts += [gap, rows[index].data]
        offset[index] = at + len(gap)
        at += len(gap) + len(rows[index].data)
    column = {
        name: np.array([getattr(row, name) for row in rows], np.int64)
        for name in ("origlen", "time_ns", "interface")
    }
    return FrameBatch(
        buf=np.frombuffer(b"".join(parts) + b"\xee" * SLACK, np.uint8),
        offset=offset,
        caplen=np.array([len(row.data) for row in rows], np.int64),
        number=np.arange(number, number + len(rows), dtype=np.int64),
        interfaces=interfaces,
        options={place: row.options for place, row in enumerate(rows) if row.options},
        **column,
    )


@st.composite
def captures(
    draw: st.DrawFn,
    linktypes: st.SearchStrategy[int] = any_linktype,
    time_max: int = TIME_MAX,
    snaplen: int | None = None,
) -> tuple[list[Interface], list[tuple[int, list[Row]]]]:
    """Interfaces, and batches of rows with how many of the interfaces are known by then."""
    known = draw(st.lists(interfaces(linktypes), min_size=1, max_size=4))
    if snaplen is not None:
        known = [replace(each, snaplen=snaplen) for each in known]
    batches = []
    count = draw(st.integers(1, len(known)))
    for _ in range(draw(st.integers(0, 3))):
        batches.append((count, draw(st.lists(rows(count, time_max), max_size=8))))
        count = draw(st.integers(count, len(known)))
    return known, batches


def comment(text: str) -> tuple[Option, ...]:
    """A packet comment as options."""
    return (Option(code=1, value=text.encode()),)
