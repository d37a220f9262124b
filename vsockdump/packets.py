"""Decode: frames to columns of both headers, lax and without exceptions.

Strategy: one gather copies the 76 header bytes of every row into a record array; the rest is a
handful of comparisons. Rows that are not plain (cooked, cut, another transport) are looked at
again, vectorised too, and only when there are any.

Invariants:

- decode has a row for every frame, in order, whatever its bytes are;
- ``status`` tells how it ended: OK; TRUNCATED, the capture cut the frame (captured length below
  original length); MALFORMED, the frame as sent contradicts itself; UNSUPPORTED, well formed but
  of a kind nobody here knows. These are three different things;
- a field that is not there reads 0 in ``headers``; ``has_mon`` and ``has_virtio`` tell whether
  each header was there whole. A row whose payload alone is cut has both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire
from vsockdump.frames import Bools, FrameBatch, Ints, gather


class Status(IntEnum):
    """How decoding a packet ended."""

    OK = 0
    TRUNCATED = 1
    MALFORMED = 2
    UNSUPPORTED = 3


class Layer(IntEnum):
    """Where decoding stopped."""

    LINK = 0
    VSOCKMON = 1
    VIRTIO = 2
    PAYLOAD = 3


class Stop(NamedTuple):
    """Why a packet was not decoded to its end.

    ``offset`` is where the layer (or the field that is not known) starts in the frame, ``needed``
    and ``had`` are bytes from there; both are 0 where no length is at fault.
    """

    status: Status
    layer: Layer
    offset: int
    needed: int
    had: int

    def __str__(self) -> str:
        where = f"{self.layer.name.lower()} at offset {self.offset}"
        if self.status is Status.UNSUPPORTED:
            return f"unsupported {where}"
        return f"{self.status.name.lower()} {where}: needed {self.needed}, had {self.had}"


STOPS: Final = np.dtype(
    [
        ("status", np.uint8),
        ("layer", np.uint8),
        ("offset", np.int64),
        ("needed", np.int64),
        ("had", np.int64),
    ]
)

_TRANSPORT_OFFSET: Final = 26
_FIELDS: Final = struct.Struct("<QQIIHHH2xQQIIIHHIII4x")
"""A record of ``wire.HEADERS`` as plain integers, several times faster than numpy makes them."""
_MON: Final = wire.MON_FIELDS
_SHOWN: Final = ("src_cid", "src_port", "dst_cid", "dst_port")
_OPS: Final = frozenset(wire.Op)
_NO_VIRTIO: Final = (None,) * len(wire.VIRTIO_FIELDS)
_NOTHING: Final = (None,) * (len(_MON) + len(wire.VIRTIO_FIELDS))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PacketBatch:
    """Decoded packets as columns, each of shape (n,).

    ``headers`` has dtype ``wire.HEADERS``; ``start`` int64 is where the vsockmon header starts in
    ``frames.buf`` (behind a cooked header, if there is one); ``payload`` int64 is where payload
    starts in ``frames.buf`` and ``captured`` how many bytes of it are there: never more than
    ``virtio.len``, and ``excess`` counts what the frame holds beyond that (a kernel tap bug, when
    not 0). ``status`` uint8. ``stops`` holds one STOPS record for each row that is not OK, at
    ``stop_rows`` (int64, ascending).
    """

    frames: FrameBatch
    headers: NDArray[Any]
    start: Ints
    has_mon: Bools
    has_virtio: Bools
    payload: Ints
    captured: Ints
    excess: Ints
    status: NDArray[np.uint8]
    stop_rows: Ints
    stops: NDArray[Any]

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, rows: Ints | Bools | slice) -> PacketBatch:
        """The packets of ``rows`` (a mask, indices or a slice), over the same buffer."""
        place = np.full(len(self), -1, np.int64)
        place[self.stop_rows] = np.arange(self.stop_rows.size)
        place = place[rows]
        kept = np.flatnonzero(place >= 0)
        return PacketBatch(
            frames=self.frames.take(rows),
            headers=self.headers[rows],
            start=self.start[rows],
            has_mon=self.has_mon[rows],
            has_virtio=self.has_virtio[rows],
            payload=self.payload[rows],
            captured=self.captured[rows],
            excess=self.excess[rows],
            status=self.status[rows],
            stop_rows=kept,
            stops=self.stops[place[kept]],
        )

    def payload_bytes(self, row: int) -> bytes:
        """The captured payload of one packet, at most ``virtio.len`` bytes."""
        start = int(self.payload[row])
        return self.frames.buf[start : start + int(self.captured[row])].tobytes()

    def stop(self, row: int) -> Stop | None:
        """Why this packet was not decoded to its end; None if it was."""
        at = int(np.searchsorted(self.stop_rows, row))
        if at == self.stop_rows.size or self.stop_rows[at] != row:
            return None
        status, layer, offset, needed, had = self.stops[at].item()
        return Stop(Status(status), Layer(layer), offset, needed, had)

    def packet(self, row: int) -> Packet:
        """A light view of one row."""
        (fields,) = self._fields(slice(row, row + 1))
        return Packet(fields, self, row)

    def __iter__(self) -> Iterator[Packet]:
        # tuple.__new__ makes the same as Packet(...) without a call in Python: a third of the time.
        rows = zip(self._fields(slice(None)), repeat(self), range(len(self)), strict=False)
        return map(partial(tuple.__new__, Packet), rows)

    def _fields(self, rows: slice) -> Iterator[tuple[int | None, ...]]:
        """The fields of both headers of each row; None in place of those that are not there."""
        plain = _FIELDS.iter_unpack(self.headers[rows].tobytes())
        if self.has_virtio[rows].all():
            return plain
        mon, virtio = self.has_mon[rows].tolist(), self.has_virtio[rows].tolist()
        return (
            found if both else found[: len(_MON)] + _NO_VIRTIO if one else _NOTHING
            for found, one, both in zip(plain, mon, virtio, strict=True)
        )


class _Row(NamedTuple):
    fields: tuple[int | None, ...]
    batch: PacketBatch
    row: int


class Packet(_Row):
    """One row of a batch, its header fields as plain integers.

    The names of ``wire.HEADERS`` are attributes (``packet.src_cid``, ``packet.buf_alloc``); those
    of a header that is not there are None. What else it tells is looked up in its batch, as long
    as that is valid. ``fields`` holds them all, in that order.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int | None: ...

    def __repr__(self) -> str:
        """Number, addresses, op and length by their attributes' names; the status if not OK."""
        shown = [f"number={self.number}"]
        shown += [f"{name}={getattr(self, name)}" for name in _SHOWN]
        op = self.op
        shown.append(f"op={wire.Op(op).name if op in _OPS else op}")
        shown.append(f"len={self.len}")
        if self.status is not Status.OK:
            shown.append(f"status={self.status.name}")
        return f"Packet({', '.join(shown)})"

    @property
    def number(self) -> int:
        """The packet's number in its source, from 1."""
        return int(self.batch.frames.number[self.row])

    @property
    def time_ns(self) -> int:
        """Nanoseconds since the epoch, UTC."""
        return int(self.batch.frames.time_ns[self.row])

    @property
    def payload(self) -> bytes:
        """The captured payload, at most ``len`` bytes."""
        return self.batch.payload_bytes(self.row)

    @property
    def frame(self) -> bytes:
        """The captured bytes of the whole frame."""
        return self.batch.frames.frame(self.row)

    @property
    def status(self) -> Status:
        """How decoding ended."""
        return Status(self.batch.status[self.row])

    @property
    def stop(self) -> Stop | None:
        """Where and why decoding ended early; None if it did not."""
        return self.batch.stop(self.row)


def _field(place: int) -> property:
    return property(lambda packet: packet[0][place])


for _place, _name in enumerate((*wire.MON_FIELDS, *wire.VIRTIO_FIELDS)):
    setattr(Packet, _name, _field(_place))


class _Stops:
    """Collects at most one stop a row, vectorised: the first one said of a row stands."""

    def __init__(self, frames: FrameBatch) -> None:
        self.cut = frames.caplen < frames.origlen
        self.at = np.zeros(len(frames), STOPS)

    def say(
        self, rows: Bools, status: Status | None, layer: Layer, offset: Any, needed: Any, had: Any
    ) -> None:
        """Stop ``rows`` here; without a status they are truncated or malformed by their length."""
        rows = rows & (self.at["status"] == Status.OK)
        if status is None:
            chosen = np.where(self.cut, Status.TRUNCATED, Status.MALFORMED).astype(np.uint8)
            self.at["status"][rows] = chosen[rows]
        else:
            self.at["status"][rows] = status
        self.at["layer"][rows] = layer
        for name, value in (("offset", offset), ("needed", needed), ("had", had)):
            self.at[name][rows] = np.broadcast_to(value, rows.shape)[rows]


def decode(frames: FrameBatch) -> PacketBatch:
    """Decode every frame of the batch; raises nothing, whatever the bytes are."""
    linktypes = [interface.linktype for interface in frames.interfaces]
    if all(linktype == wire.LINKTYPE_VSOCK for linktype in linktypes):
        start, available, stops = frames.offset, frames.caplen, None
    else:
        stops = _Stops(frames)
        start, available = _link(frames, linktypes, stops)
    headers = gather(frames.buf, start, wire.HEADERS)
    plain = (available >= wire.HEADERS_LEN) & (headers["transport"] == wire.Transport.VIRTIO)
    plain &= headers["transport_len"] == wire.VIRTIO_HDR_LEN
    if stops is None and plain.all():
        has_mon = has_virtio = plain
        payload = start + wire.HEADERS_LEN
        left = available - wire.HEADERS_LEN
    else:
        stops = stops or _Stops(frames)
        has_mon, has_virtio, left = _headers(headers, start - frames.offset, available, stops)
        payload = frames.offset + frames.caplen - left
    length = headers["len"].astype(np.int64)
    captured = np.minimum(length, left)
    excess = left - captured
    short = captured < length
    if stops is None:
        if not short.any():
            return PacketBatch(
                frames=frames,
                headers=headers,
                start=start,
                has_mon=has_mon,
                has_virtio=has_virtio,
                payload=payload,
                captured=captured,
                excess=excess,
                status=np.zeros(len(frames), np.uint8),
                stop_rows=np.zeros(0, np.int64),
                stops=np.zeros(0, STOPS),
            )
        stops = _Stops(frames)
    # Without a virtio header nobody says how long the payload is: it is all that is left.
    captured = np.where(has_virtio, captured, left)
    excess = np.where(has_virtio, excess, 0)
    stops.say(short & has_virtio, None, Layer.PAYLOAD, payload - frames.offset, length, captured)
    status = stops.at["status"].copy()
    rows = np.flatnonzero(status)
    return PacketBatch(
        frames=frames,
        headers=headers,
        start=start,
        has_mon=has_mon,
        has_virtio=has_virtio,
        payload=payload,
        captured=captured,
        excess=excess,
        status=status,
        stop_rows=rows,
        stops=stops.at[rows],
    )


def _link(frames: FrameBatch, linktypes: list[int], stops: _Stops) -> tuple[Ints, Ints]:
    """Skip cooked headers: where each vsockmon header starts, and the bytes there from it on.

    Rows that have none (another link type, or a cooked frame of another device) have 0 bytes.
    """
    linktype = np.array(linktypes, np.int64)[frames.interface]
    skip = np.zeros(len(frames), np.int64)
    known = linktype == wire.LINKTYPE_VSOCK
    for cooked, length, hatype_offset in (
        (wire.LINKTYPE_LINUX_SLL, wire.SLL_LEN, wire.SLL_HATYPE),
        (wire.LINKTYPE_LINUX_SLL2, wire.SLL2_LEN, wire.SLL2_HATYPE),
    ):
        rows = linktype == cooked
        if not rows.any():
            continue
        whole = frames.caplen >= length
        stops.say(rows & ~whole, None, Layer.LINK, 0, length, frames.caplen)
        hatype = gather(frames.buf, frames.offset + hatype_offset, np.dtype(">u2"))
        vsock = hatype == wire.ARPHRD_VSOCKMON
        stops.say(rows & whole & ~vsock, Status.UNSUPPORTED, Layer.LINK, hatype_offset, 0, 0)
        skip[rows & whole & vsock] = length
        known |= rows & whole & vsock
    stops.say(~known, Status.UNSUPPORTED, Layer.LINK, 0, 0, 0)
    return frames.offset + skip, np.where(known, frames.caplen - skip, 0)


def _headers(
    headers: NDArray[Any], skip: Ints, available: Ints, stops: _Stops
) -> tuple[Bools, Bools, Ints]:
    """Judge rows that are not plain; blank the fields that are not there.

    Returns which rows have each header whole, and the bytes left behind the transport header.
    """
    at = skip
    has_mon = available >= wire.MON_HDR_LEN
    stops.say(~has_mon, None, Layer.VSOCKMON, at, wire.MON_HDR_LEN, available)
    for name in wire.MON_FIELDS:
        headers[name][~has_mon] = 0
    transport = headers["transport"]
    virtio = has_mon & (transport == wire.Transport.VIRTIO)
    unknown = has_mon & ~virtio & (transport != wire.Transport.NO_INFO)
    transport_len = headers["transport_len"].astype(np.int64)
    behind = np.maximum(available - wire.MON_HDR_LEN, 0)
    at = skip + wire.MON_HDR_LEN
    # A header that claims to be shorter than the structure it is contradicts itself, cut or not.
    brief = virtio & (transport_len < wire.VIRTIO_HDR_LEN)
    stops.say(brief, Status.MALFORMED, Layer.VIRTIO, at, wire.VIRTIO_HDR_LEN, transport_len)
    stops.say(unknown, Status.UNSUPPORTED, Layer.VSOCKMON, skip + _TRANSPORT_OFFSET, 0, 0)
    cut = has_mon & (behind < transport_len)
    stops.say(cut, None, Layer.VIRTIO, at, transport_len, behind)
    has_virtio = virtio & ~brief & (behind >= wire.VIRTIO_HDR_LEN)
    for name in wire.VIRTIO_FIELDS:
        headers[name][~has_virtio] = 0
    left = np.where(has_mon, np.maximum(behind - transport_len, 0), 0)
    return has_mon, has_virtio, left
