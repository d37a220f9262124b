"""Dumps: the bytes asked for and no others, in tcpdump's layout, without a control byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from line_cases import batches, whole

from vsockdump import wire
from vsockdump.frames import FrameBatch
from vsockdump.packets import PacketBatch, decode
from vsockdump.sinks.hexdump import Dump, dump

LINE = re.compile(r"\t0x([0-9a-f]{4,}):  ((?:[0-9a-f]{2,4} ?)+)(?: +(.{1,16}))?")
BYTES = bytes(range(256))
styles = st.builds(Dump, hexadecimal=st.booleans(), text=st.booleans(), whole=st.booleans())


def of(payload: bytes) -> PacketBatch:
    header = bytearray(wire.HEADERS_LEN)
    record = wire.HEADERS
    for name, value in (
        ("transport", wire.Transport.VIRTIO),
        ("transport_len", wire.VIRTIO_HDR_LEN),
        ("len", len(payload)),
    ):
        dtype, offset = record.fields[name][:2]  # type: ignore[index]
        header[offset : offset + dtype.itemsize] = int(value).to_bytes(dtype.itemsize, "little")
    return decode(FrameBatch.of([bytes(header) + payload]))


def test_hex_is_laid_out_as_tcpdump_does() -> None:
    style = Dump(hexadecimal=True, text=True)
    assert dump(of(b"The quick brown fox\n"), 0, style).decode() == (
        "\t0x0000:  5468 6520 7175 6963 6b20 6272 6f77 6e20  The quick brown \n"
        "\t0x0010:  666f 780a                                fox.\n"
    )
    assert dump(of(b"odd"), 0, Dump(hexadecimal=True)) == b"\t0x0000:  6f64 64\n"


def test_text_keeps_lines_and_tabs_alone() -> None:
    assert dump(of(b"GET /\r\n\tX\x1b[2J\xff"), 0, Dump(text=True)) == b"GET /.\n\tX.[2J.\n"


@given(batches(), styles)
def test_every_byte_asked_for_is_there(batch: PacketBatch, style: Dump) -> None:
    for row, packet in enumerate(batch):
        data = packet.frame if style.whole else packet.payload
        shown = dump(batch, row, style).decode("ascii")
        if not data:
            assert shown == ""
        elif not style.hexadecimal:
            assert len(shown) == len(data) + 1
        else:
            matches = [LINE.fullmatch(line) for line in shown.splitlines()]
            hexadecimal = "".join(match[2] for match in matches if match)
            assert all(matches)
            assert bytes.fromhex(hexadecimal) == data
            places = [int(match[1], 16) for match in matches if match]
            assert places == list(range(0, len(data), 16))


@pytest.mark.parametrize("style", [Dump(text=True), Dump(hexadecimal=True, text=True)])
@given(frame=whole())
def test_no_control_byte_gets_through(style: Dump, frame: bytes) -> None:
    for batch in (of(frame), of(BYTES)):
        shown = dump(batch, 0, style).decode("ascii")
        assert all(char.isprintable() or char in "\n\t" for char in shown)
