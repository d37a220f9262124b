"""What a packet looks like as a line of text and as JSON, one packet at a time with f-strings.

The tests hold the sheets of text.py and jsonlines.py against this. It reads packets through the
view of a single row and knows nothing of columns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vsockdump import wire
from vsockdump.packets import Layer, Packet, PacketBatch, Status
from vsockdump.sinks.clock import Stamp
from vsockdump.sinks.text import TextStyle
from vsockdump.tracking.columns import NULL, TrackedBatch

SECOND = 10**9
GREEN, RED, YELLOW, DIM, CYAN, STALLED = ("32", "31", "33", "2", "36", "1;31")
COLORS = {
    "REQUEST": GREEN,
    "RESPONSE": GREEN,
    "RST": RED,
    "SHUTDOWN": YELLOW,
    "CREDIT_UPDATE": DIM,
    "CREDIT_REQUEST": CYAN,
}


def name(kind: type[IntEnum], value: int | None) -> str:
    assert value is not None
    return kind(value).name if value in list(kind) else str(value)


def visible(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def whole_characters(text: str) -> str:
    return "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)


def fraction(ns: int, digits: int) -> str:
    return f"{ns:09}"[:digits]


@dataclass
class PlainText:
    """One run's lines, in a style."""

    style: TextStyle
    first_ns: int | None = None
    last_ns: int = 0
    first_interface: int | None = None
    several: bool = False

    def lines(self, batch: PacketBatch, tracked: TrackedBatch | None = None) -> str:
        rows = range(len(batch))
        return "".join(self.line(batch.packet(row), row, tracked) + "\n" for row in rows)

    def line(self, packet: Packet, row: int, tracked: TrackedBatch | None) -> str:
        batch, style = packet.batch, self.style
        interface = int(batch.frames.interface[row])
        self.first_interface = interface if self.first_interface is None else self.first_interface
        self.several = self.several or interface != self.first_interface
        of = batch.frames.interfaces[interface]
        text = f"{packet.number:5}  " if style.numbered else ""
        text += self.time(packet.time_ns, style.digits or (9 if of.nanoseconds else 6))
        if style.link or style.interface or self.several:
            device = visible(of.name[:64]).replace(" ", "\\x20")
            text += f"{device or '-'} "
        if packet.src_cid is None:
            text += "vsock"
        else:
            mon_op = name(wire.MonOp, packet.mon_op)
            transport = name(wire.Transport, packet.transport)
            frame = int(batch.frames.origlen[row])
            if style.link:
                text += f"{mon_op} via {transport}, header {packet.transport_len}, frame {frame}: "
            text += f"{self.cid(packet.src_cid)}.{packet.src_port} > "
            text += f"{self.cid(packet.dst_cid)}.{packet.dst_port}: "
            if packet.op is None:
                cooked = int(batch.start[row] - batch.frames.offset[row])
                behind = frame - cooked - wire.MON_HDR_LEN - (packet.transport_len or 0)
                text += f"{mon_op}, transport {transport}, length {max(behind, 0)}"
            else:
                text += self.virtio(packet, row, tracked)
        if packet.stop is not None:
            snapped = (packet.stop.status, packet.stop.layer) == (Status.TRUNCATED, Layer.PAYLOAD)
            if style.verbose or style.dump is not None or not snapped:
                text += f" [{packet.stop}]"
        return text

    def cid(self, value: int) -> str:
        return str(value) if self.style.numeric else wire.CID_NAMES.get(value, str(value))

    def virtio(self, packet: Packet, row: int, tracked: TrackedBatch | None) -> str:
        style = self.style
        assert packet.op is not None and packet.type is not None and packet.flags is not None
        assert packet.len is not None
        op = name(wire.Op, packet.op)
        text = "" if packet.type == wire.Type.STREAM else f"{name(wire.Type, packet.type)} "
        text += f"\x1b[{COLORS[op]}m{op}\x1b[0m" if style.color and op in COLORS else op
        if packet.flags:
            text += f" [{'|'.join(wire.flag_names(packet.op, packet.type, packet.flags))}]"
        if not style.quiet:
            if tracked is not None and op == "RW" and tracked.tx_cnt[row] != NULL:
                end = int(tracked.tx_cnt[row])
                text += f", seq {max(end - packet.len, 0)}:{end}"
            text += f", fwd {packet.fwd_cnt}, win {packet.buf_alloc}"
        text += f", length {packet.len}"
        if not style.quiet and tracked is not None and tracked.stalled[row]:
            text += f"\x1b[{STALLED}m, stalled\x1b[0m" if style.color else ", stalled"
        if style.verbose and tracked is not None:
            if tracked.conn[row]:
                text += f", conn {tracked.conn[row]}"
            told = {"in flight": tracked.in_flight, "window": tracked.window}
            if style.verbose > 1:
                told["effective"] = tracked.effective_window
                told["outstanding"] = tracked.outstanding
            for label, figures in told.items():
                text += f", {label} {figures[row]}" if figures[row] != NULL else ""
        if style.verbose > 1:
            text += f", type {name(wire.Type, packet.type)}, flags {packet.flags}"
            text += f", captured {len(packet.payload)}"
            excess = int(packet.batch.excess[row])
            text += f", beyond length {excess}" if excess else ""
        if style.verbose > 2:
            text += f", virtio {packet.virtio_src_cid}.{packet.virtio_src_port}"
            text += f" > {packet.virtio_dst_cid}.{packet.virtio_dst_port}"
        return text

    def time(self, ns: int, digits: int) -> str:
        stamp = self.style.stamp
        if stamp is Stamp.NONE:
            return ""
        if stamp in (Stamp.DELTA, Stamp.SINCE_FIRST):
            before = ns if self.first_ns is None else self.last_ns
            self.first_ns = ns if self.first_ns is None else self.first_ns
            self.last_ns = ns
            apart = ns - (before if stamp is Stamp.DELTA else self.first_ns)
            seconds, rest = divmod(abs(apart), SECOND)
            spelled = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            return f"{'-' if apart < 0 else ' '}{spelled}.{fraction(rest, digits)} "
        seconds, rest = divmod(ns, SECOND)
        if stamp is Stamp.EPOCH:
            return f"{seconds}.{fraction(rest, digits)} "
        there = time.localtime(seconds)
        date = f"{there.tm_year}-{there.tm_mon:02}-{there.tm_mday:02} "
        clock = f"{there.tm_hour:02}:{there.tm_min:02}:{there.tm_sec:02}"
        return f"{date if stamp is Stamp.DATE else ''}{clock}.{fraction(rest, digits)} "


def as_dict(packet: Packet, tracked: TrackedBatch | None = None) -> dict[str, Any]:
    """The object that JSON shows of a packet, with its keys in their order."""
    batch, row = packet.batch, packet.row
    seconds, ns = divmod(packet.time_ns, SECOND)
    utc = time.gmtime(seconds)
    interface = batch.frames.interfaces[int(batch.frames.interface[row])]

    def named(kind: type[IntEnum], value: int | None) -> str | int | None:
        return kind(value).name if value in list(kind) else value

    stop = packet.stop
    flags = packet.flags
    shown: dict[str, Any] = {
        "number": packet.number,
        "time": f"{utc.tm_year}-{utc.tm_mon:02}-{utc.tm_mday:02}"
        f"T{utc.tm_hour:02}:{utc.tm_min:02}:{utc.tm_sec:02}.{ns:09}Z",
        "time_ns": packet.time_ns,
        "interface": whole_characters(interface.name[:64]) or None,
        **{key: getattr(packet, key) for key in ("src_cid", "src_port", "dst_cid", "dst_port")},
        "mon_op": named(wire.MonOp, packet.mon_op),
        "transport": named(wire.Transport, packet.transport),
        "op": named(wire.Op, packet.op),
        "type": named(wire.Type, packet.type),
        "flags": flags,
        "flag_names": wire.flag_names(packet.op or 0, packet.type or 0, flags or 0),
        "length": packet.len,
        "captured": len(packet.payload),
        "buf_alloc": packet.buf_alloc,
        "fwd_cnt": packet.fwd_cnt,
        "status": packet.status.name.lower(),
        "stop": None,
    }
    if stop is not None:
        shown["stop"] = {
            "layer": stop.layer.name.lower(),
            "offset": stop.offset,
            "needed": stop.needed,
            "had": stop.had,
        }
    shown["conn"] = None if tracked is None else int(tracked.conn[row]) or None
    for key in ("tx_cnt", "in_flight", "window", "effective_window"):
        value = NULL if tracked is None else int(getattr(tracked, key)[row])
        shown[key] = None if value == NULL else value
    shown["stalled"] = None if tracked is None else bool(tracked.stalled[row])
    return shown
