"""Filters on the bundled captures of real kernels: columns, the kernel and tracking together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import vsockdump.captures as captures
from filter_oracle import Kernel

from vsockdump import wire
from vsockdump.filters import compile, names
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.savefile import Savefile
from vsockdump.tracking.tracker import Tracker

# What a capture is like all the way through.
ALIKE = (
    *("local", "src host", "guest and host"),
    "src_cid == virtio_src_cid and dst_port == virtio_dst_port",
)
EXPRESSIONS = (
    "src_port > dst_port",
    "op rw and len > 100",
    "not op rw",
    "op request or rst",
    "flags rcv and send",
    "type seqpacket and flags eom",
    "buf_alloc < 64k",
    "fwd_cnt == 0 and not op request",
    "len % 16 == 0 and payload[0] != 0",
)


def batches(name: str) -> Iterator[PacketBatch]:
    with closing(Savefile(captures.path(name))) as savefile:
        for frames in savefile.batches():
            yield decode(frames)


@pytest.mark.parametrize("name", captures.names())
def test_the_kernel_passes_what_the_mask_passes(name: str) -> None:
    for packets in batches(name):
        frames = [packets.frames.frame(row) for row in range(len(packets))]
        for text in (*ALIKE, *EXPRESSIONS):
            chosen = compile(text)
            with Kernel(chosen.bpf()) as kernel:
                passed = [kernel.run(frame) is not None for frame in frames]
            assert chosen.mask(packets).tolist() == passed, text


def test_every_expression_tells_some_packets_apart() -> None:
    seen = {
        (text, bool(passes))
        for name in captures.names()
        for packets in batches(name)
        for text in EXPRESSIONS
        for passes in compile(text).mask(packets)
    }
    assert {text for text, passes in seen if passes} == set(EXPRESSIONS)
    assert {text for text, passes in seen if not passes} == set(EXPRESSIONS)


def test_display_filters_see_what_was_tracked() -> None:
    found: dict[str, int] = {}
    asked = [f"conn.state {state}" for state in names.STATES]
    asked += ["stalled", "finding", "effective_window == 0", "in_flight > 8k", "conn > 1"]
    for name in captures.names():
        tracker = Tracker()
        for packets in batches(name):
            tracked = tracker.feed(packets)
            for text in asked:
                found[text] = found.get(text, 0) + int(compile(text).mask(packets, tracked).sum())
            reset = compile("conn.state reset and not op rst").mask(packets, tracked)
            assert (tracked.state[reset] == names.STATES["reset"]).all()
            assert (packets.headers["op"][reset] != wire.Op.RST).all()
            both = compile("stalled and effective_window > 0").mask(packets, tracked)
            assert not both.any()
    assert [text for text, count in found.items() if not count and text != "conn.state stray"] == []
