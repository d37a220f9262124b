"""Batches for tests of what is printed: any frames, from interfaces with any names, at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from dissectors_frames import any_bytes, headers
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface, Option
from vsockdump.packets import PacketBatch, decode
from vsockdump.tracking.columns import COLUMNS, NULL, TrackedBatch
from vsockdump.tracking.states import State

I64 = 2**63
EPOCH_NS = 1_780_000_000_000_000_000


HOSTILE = (
    "\x00\x07\b\t\n\x0b\r\x1b[2J\x7f"  # C0 controls and DEL
    "\x80\x85\x9b31m\x9d\x9c"  # C1 controls, among them CSI, OSC and ST in one character
    "\u00ad\u061c\u180e\u200b\u200d\u200e\u200f"  # format characters, and what hides
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what turns the direction of text
    "\u2028\u2029\ufeff\ufff9\U000e0001\U000e0041"  # separators, marks, tags
    "\ud800\udfff\udc80\ufffe\U0010ffff\ue000"  # surrogates, no characters, private use
)
"""Characters that a terminal might obey, or that hide what is there."""

names = st.text(st.characters() | st.sampled_from(HOSTILE), max_size=80)
times = st.one_of(
    st.integers(EPOCH_NS, EPOCH_NS + 4 * 10**9),
    st.integers(-(10**12), 10**12),
    st.integers(-I64, I64 - 1),
)
linktypes = st.sampled_from(
    [wire.LINKTYPE_VSOCK] * 6 + [wire.LINKTYPE_LINUX_SLL, wire.LINKTYPE_LINUX_SLL2, 1]
)
interfaces = st.builds(Interface, linktype=linktypes, name=names, nanoseconds=st.booleans())


@st.composite
def whole(draw: st.DrawFn) -> bytes:
    """A virtio packet with any values in its fields, and all of the payload it tells of or more."""
    record = draw(headers(plain=True))
    payload = draw(st.binary(max_size=40))
    record["len"] = draw(st.sampled_from([len(payload)] * 3 + [len(payload) // 2]))
    return record.tobytes()[: wire.HEADERS_LEN] + payload


def cooked(linktype: int, frame: bytes) -> bytes:
    """The frame behind the header that a cooked link type puts before it."""
    at, length = {
        wire.LINKTYPE_LINUX_SLL: (wire.SLL_HATYPE, wire.SLL_LEN),
        wire.LINKTYPE_LINUX_SLL2: (wire.SLL2_HATYPE, wire.SLL2_LEN),
    }.get(linktype, (0, 0))
    header = bytearray(length)
    if length:
        header[at : at + 2] = wire.ARPHRD_VSOCKMON.to_bytes(2, "big")
    return bytes(header) + frame


@st.composite
def batches(draw: st.DrawFn, max_size: int = 12) -> PacketBatch:
    """A decoded batch, seldom plain; a few packets have comments."""
    known = draw(st.lists(interfaces, min_size=1, max_size=3))
    frame = draw(st.sampled_from([whole(), whole() | any_bytes]))
    rows = draw(
        st.lists(
            st.tuples(frame, st.integers(0, len(known) - 1), times, st.integers(0, 200)),
            max_size=max_size,
        )
    )
    data = [cooked(known[at].linktype, frame) for frame, at, _, _ in rows]
    frames = FrameBatch.of(
        data,
        time_ns=[row[2] for row in rows],
        origlen=[len(frame) + row[3] // 4 * 4 for frame, row in zip(data, rows, strict=True)],
        interface=[row[1] for row in rows],
        interfaces=known,
        first_number=draw(st.sampled_from([1, 9, 99_998, 10**10])),
    )
    commented = draw(st.sets(st.integers(0, max(len(rows) - 1, 0)), max_size=2))
    options = {
        row: tuple(Option(code=1, value=text.encode("utf-8", "replace")) for text in texts)
        for row in sorted(commented)
        if row < len(rows) and (texts := draw(st.lists(names, max_size=2)))
    }
    if options:
        frames = replace(frames, options=options)
    return decode(frames)


@st.composite
def tracked(draw: st.DrawFn, count: int) -> TrackedBatch:
    """Any figures for so many packets, known or not."""

    def column(values: st.SearchStrategy[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), np.int64)

    figure = st.sampled_from([NULL, 0, 1, 6, 2**32 - 1]) | st.integers(NULL, I64 - 1)
    special = {
        "conn": st.sampled_from([0, 1, 2, 1000]),
        "way": st.integers(0, 2),
        "state": st.integers(NULL, max(State)),
        "found": st.integers(0, 3),
        "stalled": st.integers(0, 1),
    }
    columns = {name: column(special.get(name, figure)) for name in COLUMNS}
    kinds = {"stalled": np.bool_, "found": np.uint64}
    return TrackedBatch(**columns | {name: columns[name].astype(to) for name, to in kinds.items()})


@contextmanager
def zone(name: str) -> Iterator[None]:
    """The local time zone of this process, for as long as the block runs."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
