"""Packets as lines, in tcpdump's habits; docs/output.md is the grammar of what is printed here.

Strategy: a batch becomes one sheet of columns (sheet.py). Rows that lack a header get the same
columns blanked and one more that says what is wrong; nothing is formatted row by row except
payload, when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vsockdump.frames import Bools, FrameBatch, Interface, Ints
from vsockdump.packets import STOPS, Layer, PacketBatch, Status
from vsockdump.sinks.clock import Clock, Stamp
from vsockdump.sinks.hexdump import Dump, dump
from vsockdump.sinks.names import (
    Combined,
    escape,
    interface_name,
    name_of,
    of_interfaces,
    pair_texts,
)
from vsockdump.sinks.sheet import Column, choose, distinct, lines, number, only, unique
from vsockdump.tracking.columns import NULL, TrackedBatch
from vsockdump.wire import MON_HDR_LEN, MonOp, Op, Transport, Type, flag_names

_RESET: Final = b"\x1b[0m"
_COLORS: Final[dict[int, bytes]] = {
    Op.REQUEST: b"\x1b[32m",
    Op.RESPONSE: b"\x1b[32m",
    Op.RST: b"\x1b[31m",
    Op.SHUTDOWN: b"\x1b[33m",
    Op.CREDIT_UPDATE: b"\x1b[2m",
    Op.CREDIT_REQUEST: b"\x1b[36m",
}
_STALLED: Final = b", stalled"
_STALLED_COLOR: Final = b"\x1b[1;31m"
_NANO: Final = 9
_COMMENT: Final = 1
"""opt_comment, the pcapng option that a packet's comment is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStyle:
    """What to print.

    ``verbose`` 0 to 3; ``interface``: its name from the first line on; ``digits`` 6 or 9 of a
    second, None: as the source has.
    """

    numeric: bool = False
    verbose: int = 0
    quiet: bool = False
    link: bool = False
    interface: bool = False
    numbered: bool = False
    stamp: Stamp = Stamp.TIME
    digits: int | None = None
    dump: Dump | None = None
    color: bool = False


class TextPrinter:
    """Renders batches of one run; feed it every batch in order."""

    def __init__(self, style: TextStyle) -> None:
        self._style = style
        self._clock = Clock(style.stamp)
        self._pairs = pair_texts(numeric=style.numeric)
        self._ops = Combined(self._op, (4, 4, 4, 1))
        self._kinds = Combined(_kind, (4, 4))
        self._transports = Combined(_transport, (4, 4))
        self._others = Combined(_other, (4, 4))
        self._first_interface: int | None = None
        self._several = False

    def render(self, batch: PacketBatch, tracked: TrackedBatch | None = None) -> bytes:
        """The lines of a batch; each ends in a newline."""
        count = len(batch)
        if not count:
            return b""
        columns = [*self._prefix(batch), *self._body(batch, tracked), b"\n"]
        text = lines(columns, count)
        below = self._below(batch)
        if below is None:
            return text
        shown = text.splitlines(keepends=True)
        return b"".join(part for pair in zip(shown, below, strict=True) for part in pair)

    def _below(self, batch: PacketBatch) -> list[bytes] | None:
        """What stands below each packet's line; None if nothing does anywhere."""
        style = self._style
        commented = style.verbose >= 3 and bool(batch.frames.options)
        if style.dump is None and not commented:
            return None
        below = [b""] * len(batch)
        if commented:
            for row, options in batch.frames.options.items():
                comments = [
                    o.value.decode("utf-8", "replace") for o in options if o.code == _COMMENT
                ]
                below[row] = "".join(f"\tcomment: {escape(c)}\n" for c in comments).encode()
        if style.dump is not None:
            return [text + dump(batch, row, style.dump) for row, text in enumerate(below)]
        return below if any(below) else None

    def _prefix(self, batch: PacketBatch) -> list[Column]:
        style, frames = self._style, batch.frames
        columns: list[Column] = []
        if style.numbered:
            columns += [_spaces(frames.number, 5), *number(frames.number), b"  "]
        columns += self._clock.columns(frames.time_ns, self._nano(frames))
        columns += self._interface(frames)
        if style.link:
            columns += self._link(batch)
        return columns

    def _nano(self, frames: FrameBatch) -> Bools:
        """Rows whose time has nine digits."""
        digits = self._style.digits
        if digits is not None:
            return np.full(len(frames), digits == _NANO)
        kinds = {interface.nanoseconds for interface in frames.interfaces}
        if len(kinds) == 1:
            return np.full(len(frames), kinds.pop())
        found, which = unique(frames.interface)
        fine = [frames.interfaces[place].nanoseconds for place in found.tolist()]
        return np.array(fine, np.bool_)[which]

    def _interface(self, frames: FrameBatch) -> list[Column]:
        """The interface's name: if it is asked for, and from the packet on that shows a second one.

        Looking at packets, not at how many interfaces the source knows so far, a line is the same
        however the packets came in batches.
        """
        if self._first_interface is None:
            self._first_interface = int(frames.interface[0])
        other = frames.interface != self._first_interface
        named = np.full(len(frames), self._style.link or self._style.interface or self._several)
        if other.any():
            self._several = True
            named[int(np.argmax(other)) :] = True
        if not named.any():
            return []
        return only(named, [of_interfaces(frames, _interface_text)])

    def _link(self, batch: PacketBatch) -> list[Column]:
        headers = batch.headers
        return only(
            batch.has_mon,
            [
                self._transports.column(headers["mon_op"], headers["transport"]),
                *number(headers["transport_len"]),
                b", frame ",
                *number(batch.frames.origlen),
                b": ",
            ],
        )

    def _body(self, batch: PacketBatch, tracked: TrackedBatch | None) -> list[Column]:
        way = tracked.way if tracked is not None else None
        pairs = self._pairs.column(batch.headers, way)
        if batch.has_virtio.all():
            return [pairs, *self._virtio(batch, tracked), *self._stops(batch)]
        other = batch.has_mon & ~batch.has_virtio
        return [
            *only(batch.has_mon, [pairs]),
            *only(batch.has_virtio, self._virtio(batch, tracked)),
            *only(other, self._without_virtio(batch)),
            *only(~batch.has_mon, [b"vsock"]),
            *self._stops(batch),
        ]

    def _virtio(self, batch: PacketBatch, tracked: TrackedBatch | None) -> list[Column]:
        style, headers = self._style, batch.headers
        op = headers["op"]
        data = np.zeros(len(batch), np.bool_)
        if tracked is not None and not style.quiet:
            data = (op == int(Op.RW)) & (tracked.tx_cnt != NULL)
        columns = [self._ops.column(headers["type"], op, headers["flags"], data)]
        if not style.quiet:
            if tracked is not None:
                columns += only(data, self._sequence(batch, tracked))
            columns += [b", fwd ", *number(headers["fwd_cnt"])]
            columns += [b", win ", *number(headers["buf_alloc"])]
        columns += [b", length ", *number(headers["len"])]
        if not style.quiet and tracked is not None and tracked.stalled.any():
            mark = _STALLED_COLOR + _STALLED + _RESET if style.color else _STALLED
            columns += only(tracked.stalled, [mark])
        if style.verbose:
            columns += self._details(batch, tracked)
        return columns

    def _op(self, type_: int, op: int, flags: int, data: bool) -> bytes:
        """What stands of the type, the op and the flags, and before the sequence numbers."""
        text = name_of(Op, op)
        color = _COLORS.get(op, b"") if self._style.color else b""
        if color:
            text = color + text + _RESET
        if type_ != Type.STREAM:
            text = name_of(Type, type_) + b" " + text
        if flags:
            text += f" [{'|'.join(flag_names(op, type_, flags))}]".encode()
        return text + b", seq " if data else text

    def _sequence(self, batch: PacketBatch, tracked: TrackedBatch) -> list[Column]:
        end = np.maximum(tracked.tx_cnt, 0)
        begin = np.maximum(end - batch.headers["len"], 0)
        return [*number(begin), b":", *number(end)]

    def _details(self, batch: PacketBatch, tracked: TrackedBatch | None) -> list[Column]:
        columns: list[Column] = []
        headers, verbose = batch.headers, self._style.verbose
        if tracked is not None:
            known = tracked.conn != 0
            columns += only(known, [b", conn ", *number(tracked.conn)])
            figures = [(b", in flight ", tracked.in_flight), (b", window ", tracked.window)]
            if verbose >= 2:
                figures += [
                    (b", effective ", tracked.effective_window),
                    (b", outstanding ", tracked.outstanding),
                ]
            for label, values in figures:
                columns += only(values != NULL, [label, *number(np.maximum(values, 0))])
        if verbose >= 2:
            columns += [self._kinds.column(headers["type"], headers["flags"])]
            columns += [b", captured ", *number(batch.captured)]
            columns += only(batch.excess > 0, [b", beyond length ", *number(batch.excess)])
        if verbose >= 3:
            for side in ("src", "dst"):
                columns += [b", virtio " if side == "src" else b" > "]
                columns += number(headers[f"virtio_{side}_cid"])
                columns += [b".", *number(headers[f"virtio_{side}_port"])]
        return columns

    def _without_virtio(self, batch: PacketBatch) -> list[Column]:
        headers = batch.headers
        return [
            self._others.column(headers["mon_op"], headers["transport"]),
            *number(_length(batch)),
        ]

    def _stops(self, batch: PacketBatch) -> list[Column]:
        """What is wrong, in brackets.

        Payload cut by the snapshot length only when verbose, or when bytes are shown below.
        """
        if not batch.stop_rows.size:
            return []
        stops = batch.stops
        snapped = (stops["layer"] == Layer.PAYLOAD) & (stops["status"] == Status.TRUNCATED)
        all_ = self._style.verbose > 0 or self._style.dump is not None
        shown = np.flatnonzero(~snapped) if not all_ else np.arange(stops.size)
        if not shown.size:
            return []
        rows, stops = batch.stop_rows[shown], stops[shown]
        first, which = distinct(*(stops[name].astype(np.int64) for name in STOPS.names or ()))
        index = np.zeros(len(batch), np.int64)
        index[rows] = which + 1
        said = [f" [{batch.stop(row)}]".encode() for row in rows[first].tolist()]
        return [choose([b"", *said], index)]


def _kind(type_: int, flags: int) -> bytes:
    return b", type %b, flags %d" % (name_of(Type, type_), flags)


def _transport(mon_op: int, transport: int) -> bytes:
    return b"%b via %b, header " % (name_of(MonOp, mon_op), name_of(Transport, transport))


def _other(mon_op: int, transport: int) -> bytes:
    return b"%b, transport %b, length " % (name_of(MonOp, mon_op), name_of(Transport, transport))


def _interface_text(interface: Interface) -> bytes:
    # No space within: whoever reads the line by its parts has to find them.
    name = escape(interface_name(interface)).replace(" ", r"\x20")
    return (name or "-").encode() + b" "


def _length(batch: PacketBatch) -> Ints:
    """Bytes behind the transport header on the wire, by the frame's original length."""
    frames, claimed = batch.frames, batch.headers["transport_len"].astype(np.int64)
    headers = batch.start - frames.offset + MON_HDR_LEN + claimed
    length: Ints = np.maximum(np.maximum(frames.origlen, frames.caplen) - headers, 0)
    return length


def _spaces(values: Ints, width: int) -> Column:
    """As many spaces as each number lacks to ``width`` digits."""
    missing = sum((values < 10**digits).astype(np.intp) for digits in range(1, width))
    return choose([b" " * count for count in range(width)], np.asarray(missing))
