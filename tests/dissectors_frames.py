"""Frames for the tests of dissectors: strategies, and savefiles of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from vsockdump import wire

unhurried = settings(deadline=None)
"""A test takes as long as it takes: the machine may be busy with others."""

USUAL = {
    "mon_op": list(wire.MonOp),
    "transport": [wire.Transport.VIRTIO] * 4 + list(wire.Transport),
    "transport_len": [wire.VIRTIO_HDR_LEN] * 4 + [0, 1, 43, 45, 60],
    "len": [0, 1, 5, 40, 200],
    "type": list(wire.Type),
    "op": list(wire.Op),
    "flags": [0, 1, 2, 3, 4, 7],
}
"""Values with a meaning, drawn as often as any others."""


def field(name: str) -> st.SearchStrategy[int]:
    most = 2 ** (8 * wire.HEADERS[name].itemsize) - 1
    anything = st.integers(0, most)
    return st.sampled_from([int(x) for x in USUAL[name]]) | anything if name in USUAL else anything


@st.composite
def headers(draw: st.DrawFn, plain: bool = False) -> np.void:
    """A record of ``wire.HEADERS``; ``plain``: of a virtio packet with the usual header."""
    record = np.zeros((), wire.HEADERS)
    for name in wire.HEADERS.names or ():
        record[name] = draw(field(name))
    if plain:
        record["transport"] = wire.Transport.VIRTIO
        record["transport_len"] = wire.VIRTIO_HDR_LEN
    return record[()]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Both headers with any values, reserved bytes, payload; cut anywhere in half of the cases."""
    header = bytearray(draw(headers()).tobytes()[: wire.HEADERS_LEN])
    reserved = slice(wire.MON_HDR_LEN - 2, wire.MON_HDR_LEN)
    header[reserved] = draw(st.binary(min_size=2, max_size=2))
    frame = bytes(header) + draw(st.binary(max_size=80))
    return frame[: draw(st.integers(0, len(frame)))] if draw(st.booleans()) else frame


def edges() -> list[bytes]:
    """Frames at every edge the two lengths and the end of the capture make, one by one."""
    found = []
    record = np.zeros((), wire.HEADERS)
    usual = (0, 1, wire.VIRTIO_HDR_LEN - 1, wire.VIRTIO_HDR_LEN, wire.VIRTIO_HDR_LEN + 1, 2**16 - 1)
    sizes = (
        *(0, 1, wire.MON_HDR_LEN - 1, wire.MON_HDR_LEN, wire.MON_HDR_LEN + 1),
        *(wire.HEADERS_LEN - 1, wire.HEADERS_LEN, wire.HEADERS_LEN + 1, wire.HEADERS_LEN + 9),
    )
    for transport, transport_len, length, size in product(
        [*map(int, wire.Transport), max(wire.Transport) + 1], usual, (0, 1, 8, 9, 2**32 - 1), sizes
    ):
        record["transport"], record["transport_len"] = transport, transport_len
        record["len"] = length
        frame = record.tobytes()[: wire.HEADERS_LEN] + bytes(range(1, 10))
        found.append(frame[:size])
    return found


any_bytes = st.binary(max_size=160) | frames()


def write_pcap(
    path: Path,
    data: Sequence[bytes],
    *,
    times_ns: Sequence[int] | None = None,
    wirelens: Sequence[int] | None = None,
    linktype: int = wire.LINKTYPE_VSOCK,
    nano: bool = True,
) -> str:
    """A pcap as anyone might write it, independent of scapy and of our sinks; returns its path."""
    magic, unit = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    with path.open("wb") as file:
        file.write(struct.pack("<IHHIIII", magic, 2, 4, 0, 0, 262144, linktype))
        for place, frame in enumerate(data):
            seconds, rest = divmod(times_ns[place] if times_ns else 0, 10**9)
            wirelen = wirelens[place] if wirelens else len(frame)
            file.write(struct.pack("<IIII", seconds, rest // unit, len(frame), wirelen) + frame)
    return str(path)
