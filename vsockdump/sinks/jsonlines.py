"""Packets as JSON, one object a line; docs/json.md is the schema.

Strategy: the same sheet of columns as text (sheet.py). Every object has every key, in the same
order; what is not known is null.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Final

import numpy as np

from vsockdump.frames import Bools, Interface
from vsockdump.packets import Layer, PacketBatch, Status
from vsockdump.sinks.clock import integers, rfc3339
from vsockdump.sinks.names import Combined, interface_name, name_of, of_interfaces
from vsockdump.sinks.sheet import Column, choose, lines, number, only
from vsockdump.tracking.columns import NULL, TrackedBatch
from vsockdump.wire import MonOp, Op, Transport, Type, flag_names

_STATUS: Final = [status.name.lower().encode() for status in Status]
_FIGURES: Final = ("tx_cnt", "in_flight", "window", "effective_window")
_LAYERS: Final = [layer.name.lower().encode() for layer in Layer]


def render(batch: PacketBatch, tracked: TrackedBatch | None = None) -> bytes:
    """The objects of a batch, each on a line of its own."""
    frames, headers = batch.frames, batch.headers
    mon, virtio = batch.has_mon, batch.has_virtio
    length = headers["len"] if virtio.all() else np.where(virtio, headers["len"], 0)
    fields = ("mon_op", "transport", "op", "type", "flags")
    columns: list[Column] = [
        *(b'{"number":', *number(frames.number)),
        *(b',"time":"', *rfc3339(frames.time_ns)),
        *(b'","time_ns":', *integers(frames.time_ns)),
        *(b',"interface":', of_interfaces(frames, _interface)),
        *(b',"src_cid":', *_or_null(mon, number(headers["src_cid"]))),
        *(b',"src_port":', *_or_null(mon, number(headers["src_port"]))),
        *(b',"dst_cid":', *_or_null(mon, number(headers["dst_cid"]))),
        *(b',"dst_port":', *_or_null(mon, number(headers["dst_port"]))),
        _KINDS.column(mon, virtio, *(headers[name] for name in fields)),
        *_or_null(virtio, number(length)),
        *(b',"captured":', *number(batch.captured)),
        *(b',"buf_alloc":', *_or_null(virtio, number(headers["buf_alloc"]))),
        *(b',"fwd_cnt":', *_or_null(virtio, number(headers["fwd_cnt"]))),
        *(b',"status":"', choose(_STATUS, batch.status), b'"'),
        *(b',"stop":', *_stops(batch)),
    ]
    return lines([*columns, *_tracked(tracked), b"}\n"], len(batch))


def _kind(
    mon: bool, virtio: bool, mon_op: int, transport: int, op: int, type_: int, flags: int
) -> bytes:
    """What the object says from ``mon_op`` to the name of ``length``."""
    values = {
        "mon_op": _enum(MonOp, mon_op) if mon else None,
        "transport": _enum(Transport, transport) if mon else None,
        "op": _enum(Op, op) if virtio else None,
        "type": _enum(Type, type_) if virtio else None,
        "flags": flags if virtio else None,
        "flag_names": flag_names(op, type_, flags) if virtio else [],
    }
    return f',{json.dumps(values, separators=(",", ":"))[1:-1]},"length":'.encode()


def _enum(kind: type[IntEnum], value: int) -> str | int:
    name = name_of(kind, value).decode()
    return value if name.isdecimal() else name


_KINDS: Final = Combined(_kind, (1, 1, 3, 2, 4, 2, 3))


def _tracked(tracked: TrackedBatch | None) -> list[Column]:
    if tracked is None:
        return [f',"{name}":null'.encode() for name in ("conn", *_FIGURES, "stalled")]
    columns = [b',"conn":', *_or_null(tracked.conn != 0, number(tracked.conn))]
    for name in _FIGURES:
        values = getattr(tracked, name)
        known = values != NULL
        columns += [f',"{name}":'.encode(), *_or_null(known, number(np.maximum(values, 0)))]
    columns += [b',"stalled":', choose([b"false", b"true"], tracked.stalled.astype(np.intp))]
    return columns


def _interface(interface: Interface) -> bytes:
    # Half a surrogate pair is text for Python, and for nobody else.
    name = interface_name(interface).encode("utf-8", "replace").decode()
    # JSON lets DEL stand as it is, a terminal may not.
    return json.dumps(name or None).replace("\x7f", "\\u007f").encode()


def _or_null(known: Bools, columns: list[Column]) -> list[Column]:
    if known.all():
        return columns
    return [*only(known, columns), *only(~known, [b"null"])]


def _stops(batch: PacketBatch) -> list[Column]:
    stopped = batch.status != Status.OK
    if not stopped.any():
        return [b"null"]
    stops = np.zeros(len(batch), batch.stops.dtype)
    stops[batch.stop_rows] = batch.stops
    told: list[Column] = [b'{"layer":"', choose(_LAYERS, stops["layer"]), b'"']
    for name in ("offset", "needed", "had"):
        told += [f',"{name}":'.encode(), *number(stops[name])]
    return _or_null(stopped, [*told, b"}"])
