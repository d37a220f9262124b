"""Bytes of a packet below its line, as tcpdump's -x, -xx, -X, -XX and -A show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vsockdump.packets import PacketBatch

_WIDTH: Final = 16
_HEX_COLUMNS: Final = 40
# Whatever is not printable ASCII becomes a dot: control bytes never reach a terminal.
_DOTS: Final = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256))
_LINES: Final = bytes(
    byte if 0x20 <= byte < 0x7F or byte in b"\n\t" else ord(".") for byte in range(256)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """Which bytes (payload, or ``whole`` frames) and how: in hex, as text, or both side by side."""

    hexadecimal: bool = False
    text: bool = False
    whole: bool = False


def dump(batch: PacketBatch, row: int, style: Dump) -> bytes:
    """The dump of one packet, b"" if it has none of the bytes asked for; ends in a newline."""
    data = batch.frames.frame(row) if style.whole else batch.payload_bytes(row)
    if not data:
        return b""
    if not style.hexadecimal:
        return data.translate(_LINES) + b"\n"
    out = []
    for at in range(0, len(data), _WIDTH):
        part = data[at : at + _WIDTH]
        line = f"\t0x{at:04x}:  {part.hex(' ', -2)}"
        if style.text:
            gap = _HEX_COLUMNS + 1 - len(part.hex(" ", -2))
            line += " " * gap + part.translate(_DOTS).decode("ascii")
        out.append(line + "\n")
    return "".join(out).encode()
