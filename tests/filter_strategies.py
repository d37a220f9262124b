"""Random filters, and random frames that they have a chance to tell apart.

Numbers of both come from one small pool, so that comparisons come out either way.
"""

from __future__ import annotations

import random
import struct
from typing import Final

from filter_oracle import COOKED
from hypothesis import strategies as st

from vsockdump import wire
from vsockdump.filters import names, tree

POOL: Final = (0, 1, 2, 3, 4, 5, 7, 8, 32, 43, 44, 45, 76, 255, 256, 257, 1024, 0x1234) + (
    *(0xFFFF, 0x1_0000, 0x10_0000, 0x0102_0304, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF),
    *(2**32, 2**32 + 3, 2**63, 2**64 - 2, 2**64 - 1),
)
CODES: Final = names.FINDINGS[:2]


def numbers(bits: int) -> st.SearchStrategy[int]:
    """Numbers of so many bits, most of them from the pool."""
    most = 2**bits - 1
    return st.sampled_from([number for number in POOL if number <= most]) | st.integers(0, most)


# --- filters

# A few fields come often, so that one filter asks for the same bytes in several places.
_often = ("src_port", "src_cid", "op")
_headers = (st.sampled_from(_often) | st.sampled_from(names.HEADER_FIELDS)).map(
    lambda name: tree.Header(name=name)
)
_constants = (numbers(32) | numbers(64)).map(lambda number: tree.Number(value=number))
_tracked_numbers = st.sampled_from(tree.TRACKED_NUMBERS).map(lambda name: tree.Tracked(name=name))


def _raws(offsets: st.SearchStrategy[tree.Value]) -> st.SearchStrategy[tree.Value]:
    narrow = offsets.filter(
        lambda value: not tree.is_wide(value) and tree.tracking_in(value) is None
    )
    return st.builds(
        lambda base, offset, size: tree.Raw(base=base, offset=offset, size=size),
        st.sampled_from(("vsock", "payload")),
        narrow,
        st.sampled_from((1, 2, 4)),
    )


def _binaries(operands: st.SearchStrategy[tree.Value]) -> st.SearchStrategy[tree.Value]:
    def sound(value: tree.Binary) -> bool:
        # What the parser refuses, because no packet could make sense of it.
        if not isinstance(value.right, tree.Number):
            return True
        if value.operator in "/%":
            return value.right.value != 0
        bits = tree.WIDE_BITS if tree.is_wide(value) else tree.NARROW_BITS
        return value.operator not in ("<<", ">>") or value.right.value < bits

    return st.builds(
        lambda operator, left, right: tree.Binary(operator=operator, left=left, right=right),
        st.sampled_from(tree.OPERATORS),
        operands,
        operands,
    ).filter(sound)


def values(*, tracking: bool = False) -> st.SearchStrategy[tree.Value]:
    offsets = st.integers(0, 130).map(lambda number: tree.Number(value=number)) | _constants
    leaves: st.SearchStrategy[tree.Value] = (
        _headers | _constants | _raws(offsets) | st.just(tree.Caplen())
    )
    if tracking:
        leaves |= _tracked_numbers
    return st.recursive(leaves, lambda inner: _binaries(inner) | _raws(inner), max_leaves=5)


def _comparisons(*, tracking: bool) -> st.SearchStrategy[tree.Node]:
    one = values(tracking=tracking)
    simple = st.tuples(_headers, _constants)
    few = st.tuples(_headers, st.integers(1, 5).map(lambda number: tree.Number(value=number)))
    masked = st.tuples(st.tuples(_headers, _constants).map(_masked), _constants)
    return st.builds(
        lambda relation, sides: tree.Compare(relation=relation, left=sides[0], right=sides[1]),
        st.sampled_from(tree.RELATIONS),
        few | simple | masked | st.tuples(one, one),
    )


def _masked(sides: tuple[tree.Header, tree.Number]) -> tree.Value:
    return tree.Binary(operator="&", left=sides[0], right=sides[1])


def filters(*, tracking: bool = False) -> st.SearchStrategy[tree.Node]:
    """Trees as the parser would make them."""
    leaves = _comparisons(tracking=tracking)
    if tracking:
        leaves |= st.one_of(
            st.sampled_from(tuple(names.STATES)).map(lambda state: tree.InState(state=state)),
            st.just(tree.Stalled()),
            st.sampled_from(("", *CODES)).map(lambda code: tree.Finding(code=code)),
        )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=4).map(tree.all_of),
            st.lists(inner, min_size=2, max_size=4).map(tree.any_of),
            inner.map(tree.negated),
        ),
        max_leaves=10,
    )


# --- frames

_TRANSPORT_LENGTHS: Final = (wire.VIRTIO_HDR_LEN,) * 3 + (0, 1, 43, 45, 60, 0xFFFF)
_TRANSPORTS: Final = (wire.Transport.VIRTIO,) * 3 + (*wire.Transport, 3, 0x0200)
_LONGEST_PAYLOAD: Final = 40


def _number(rng: random.Random, bits: int) -> int:
    number = rng.choice(POOL) if rng.random() < 0.8 else rng.getrandbits(bits)
    return number % 2**bits


def vsock_frame(rng: random.Random) -> bytes:
    """A frame of any sense: fields from the pool, any transport, cut anywhere or not."""

    def addresses() -> tuple[int, ...]:
        return tuple(_number(rng, bits) for bits in (64, 64, 32, 32))

    transport, transport_len = rng.choice(_TRANSPORTS), rng.choice(_TRANSPORT_LENGTHS)
    frame = struct.pack("<QQIIHHH2x", *addresses(), _number(rng, 16), transport, transport_len)
    frame += struct.pack(
        "<QQIIIHHIII",
        *addresses(),
        rng.randrange(_LONGEST_PAYLOAD) if rng.random() < 0.7 else _number(rng, 32),
        rng.choice(list(wire.Type)) if rng.random() < 0.7 else _number(rng, 16),
        rng.choice(list(wire.Op)) if rng.random() < 0.7 else _number(rng, 16),
        *(_number(rng, 32) for _ in range(3)),
    )
    frame += rng.randbytes(rng.randrange(_LONGEST_PAYLOAD))
    return frame if rng.random() < 0.5 else frame[: rng.randrange(len(frame) + 1)]


def frame_of(rng: random.Random, linktype: int) -> bytes:
    """The same behind the cooked header of a link type, which may be another device's."""
    frame = vsock_frame(rng)
    length, place = COOKED[linktype]
    if place is None:
        return frame
    header = bytearray(rng.randbytes(length))
    hatype = rng.choice((wire.ARPHRD_VSOCKMON,) * 3 + (1,))
    header[place : place + 2] = hatype.to_bytes(2, "big")
    whole = bytes(header) + frame
    return whole if rng.random() < 0.8 else whole[: rng.randrange(length + 3)]


@st.composite
def captures(draw: st.DrawFn, linktype: int = wire.LINKTYPE_VSOCK) -> list[bytes]:
    """Some frames; drawn by a seed, because drawing each field costs more than all tests of it."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    return [frame_of(rng, linktype) for _ in range(draw(st.integers(1, 40)))]
