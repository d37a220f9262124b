"""The wire format is the kernel's: its headers say so, where they are installed."""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockdump import wire

MON = struct.Struct("<QQIIHHH2x")
VIRTIO = struct.Struct("<QQIIIHHIII")
INCLUDE = Path("/usr/include/linux")


def test_the_headers_are_as_long_as_their_structures() -> None:
    assert (MON.size, VIRTIO.size) == (wire.MON_HDR_LEN, wire.VIRTIO_HDR_LEN)
    assert MON.size + VIRTIO.size == wire.HEADERS_LEN
    assert wire.HEADERS.itemsize >= wire.HEADERS_LEN


@given(st.binary(min_size=wire.HEADERS_LEN, max_size=wire.HEADERS_LEN))
def test_a_record_reads_what_the_structures_hold(data: bytes) -> None:
    record = np.zeros(1, wire.HEADERS)
    record.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    values = record[0].item()
    assert values == MON.unpack_from(data) + VIRTIO.unpack_from(data, MON.size)
    assert wire.HEADERS.names == wire.MON_FIELDS + wire.VIRTIO_FIELDS
    assert len(wire.MON_FIELDS) == len(MON.unpack_from(data))


def test_every_field_of_a_record_is_aligned() -> None:
    assert wire.HEADERS.fields is not None
    for name, (dtype, offset, *_) in wire.HEADERS.fields.items():
        assert offset % dtype.itemsize == 0, name
        assert wire.HEADERS.itemsize % dtype.itemsize == 0, name


def enumerators(header: str, prefix: str) -> dict[str, int]:
    """Constants of a kernel header, counted as C counts enumerators that have no value."""
    path = INCLUDE / header
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    found = {}
    for body in re.findall(r"enum\s+\w+\s*{(.*?)}", text, re.DOTALL):
        value = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, given_value = map(str.strip, item.partition("="))
            value = int(given_value, 0) if given_value else value + 1
            found[name] = value
    for name, given_value in re.findall(r"#define\s+(\w+)\s+\(?(-?\w+)\)?", text):
        if re.fullmatch(r"-?(0x)?[0-9a-fA-F]+U?", given_value):
            found[name] = int(given_value.rstrip("U"), 0)
    return {name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("header", "prefix", "ours"),
    [
        ("vsockmon.h", "AF_VSOCK_OP_", wire.MonOp),
        ("vsockmon.h", "AF_VSOCK_TRANSPORT_", wire.Transport),
        ("virtio_vsock.h", "VIRTIO_VSOCK_OP_", wire.Op),
        ("virtio_vsock.h", "VIRTIO_VSOCK_TYPE_", wire.Type),
        ("virtio_vsock.h", "VIRTIO_VSOCK_SHUTDOWN_", wire.ShutdownFlag),
        ("virtio_vsock.h", "VIRTIO_VSOCK_SEQ_", wire.RwFlag),
    ],
)
def test_names_and_numbers_are_the_kernels(
    header: str, prefix: str, ours: type[IntEnum] | type[IntFlag]
) -> None:
    theirs = enumerators(header, prefix)
    assert theirs
    known = {member.name: int(member) for member in ours}
    assert {name: known.get(name) for name in theirs} == theirs
    # A proposed type is all we name that the kernel does not.
    assert set(known) - set(theirs) <= {wire.Type.DGRAM.name}


def test_cids_are_the_kernels() -> None:
    theirs = enumerators("vm_sockets.h", "VMADDR_CID_")
    assert theirs["ANY"] & 0xFFFF_FFFF == wire.CID_ANY
    for cid, name in wire.CID_NAMES.items():
        assert theirs[name.upper()] == cid


def test_the_hardware_type_is_the_kernels() -> None:
    assert enumerators("if_arp.h", "ARPHRD_VSOCKMON")[""] == wire.ARPHRD_VSOCKMON


def test_every_op_but_the_invalid_one_has_a_meaning_to_the_tap() -> None:
    assert set(wire.MON_OP_OF) == set(wire.Op) - {wire.Op.INVALID}


u32 = st.integers(0, 2**32 - 1)


@given(st.integers(0, 2**16 - 1) | st.sampled_from(wire.Op), st.integers(0, 4), u32)
def test_flag_names_tell_every_bit_once(op: int, type_: int, flags: int) -> None:
    names = wire.flag_names(op, type_, flags)
    assert len(names) == flags.bit_count()
    total = 0
    for name in names:
        if name.startswith("0x"):
            total |= int(name, 16)
        elif op == wire.Op.SHUTDOWN:
            total |= wire.ShutdownFlag[name]
        else:
            assert (op, type_) == (wire.Op.RW, wire.Type.SEQPACKET)
            total |= wire.RwFlag[name]
    assert total == flags


@pytest.mark.parametrize(
    ("op", "type_", "known"),
    [
        (wire.Op.SHUTDOWN, wire.Type.STREAM, wire.ShutdownFlag),
        (wire.Op.SHUTDOWN, wire.Type.SEQPACKET, wire.ShutdownFlag),
        (wire.Op.RW, wire.Type.SEQPACKET, wire.RwFlag),
    ],
)
def test_flags_have_the_names_of_their_op_and_type(
    op: wire.Op, type_: wire.Type, known: type[IntFlag]
) -> None:
    everything = sum(known)
    assert wire.flag_names(op, type_, everything) == [member.name for member in known]


def test_flags_of_a_stream_of_data_have_no_names() -> None:
    assert wire.flag_names(wire.Op.RW, wire.Type.STREAM, 3) == ["0x1", "0x2"]
