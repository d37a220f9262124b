"""Traffic for the tests of tracking, from well-behaved to hostile.

Strategy: traffic is a list of small steps. A `Talk` plays the steps of one pair of endpoints and
keeps honest books for both sides (bytes sent, bytes read, buffers), so that steps of the honest
kinds give what a kernel would send; the other kinds break one rule each. Hypothesis draws steps,
and a seed draws many. What comes of a step on its way to the capture (lost, seen twice, cut) is
part of it. A third source draws every header field without asking for sense.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import DEFAULT_STALL_THRESHOLD_NS, WRAP, Endpoint, Packet

from vsockdump import wire
from vsockdump.frames import FrameBatch, Interface
from vsockdump.packets import PacketBatch, decode
from vsockdump.wire import CID_HOST, CID_LOCAL, Op, ShutdownFlag, Type

EPOCH_NS: Final = 1_780_000_000_000_000_000
MOST: Final = WRAP - 1
T = TypeVar("T")
INTERFACES: Final = (Interface(name="vsockmon0"), Interface(name="vsockmon1"))
GUEST: Final = wire.FIRST_GUEST_CID


class Pair(NamedTuple):
    """Two ends as each one's packets show them: (source, destination) from either side."""

    shown: tuple[tuple[Endpoint, Endpoint], tuple[Endpoint, Endpoint]]
    type: int


def pair(one: tuple[int, int], other: tuple[int, int], type_: int = Type.STREAM) -> Pair:
    a, b = Endpoint(*one), Endpoint(*other)
    return Pair(((a, b), (b, a)), type_)


PAIRS: Final = (
    pair((GUEST, 1000), (CID_HOST, 20)),
    pair((GUEST, 1000), (CID_HOST, 20), Type.SEQPACKET),
    pair((GUEST, 20), (CID_HOST, 1000)),
    pair((CID_LOCAL, 1000), (CID_LOCAL, 20), Type.SEQPACKET),
    # A connection of this machine to itself by CID 2 is answered from CID 1.
    Pair(
        (
            (Endpoint(CID_LOCAL, 1001), Endpoint(CID_HOST, 20)),
            (Endpoint(CID_LOCAL, 20), Endpoint(CID_LOCAL, 1001)),
        ),
        Type.STREAM,
    ),
    pair((GUEST, 7), (GUEST + 1, 7)),
    pair((GUEST, 7), (GUEST, 7), Type.SEQPACKET),
    pair((2**64 - 1, MOST), (0, 0)),
)

HONEST: Final = ("go",) * 6 + ("read",) * 3 + ("ask", "shut", "close", "reset", "reset", "wait")
HOSTILE: Final = ("go", "read", "shut", "reset", "request", "response", "force", "force") + (
    "ahead",
    "back",
    "resize",
    "odd op",
    "odd type",
)
AMOUNTS: Final = (0, 1, 7, 10, 100, 5000, wire.MAX_PAYLOAD, WRAP // 2, MOST)
BUFFERS: Final = (0, 10, 100, 8192, 262_144, WRAP // 2, MOST)
MS: Final = 1_000_000
GAPS: Final = (0, 1, MS, 60 * MS, 100 * MS - 1, 100 * MS, 150 * MS, -1, -120 * MS)
FATES: Final = ("seen",) * 8 + ("lost", "twice", "elsewhere", "cut")


class Step(NamedTuple):
    """One move: who (a place in PAIRS, and which side), what, how much; then its fate."""

    pair: int
    side: int
    kind: str
    amount: int
    flags: int
    gap_ns: int
    fate: str


@dataclass(slots=True)
class Talk:
    """The books of one pair: everything is by side, 0 or 1, the side that sent it."""

    pair: Pair
    buf_alloc: list[int]
    state: str = "new"
    client: int = 0
    owes: bool = False
    """An RST that ends a connection is still to come; another one may be asked for before it."""
    sent: list[int] = field(default_factory=lambda: [0, 0])
    read: list[int] = field(default_factory=lambda: [0, 0])
    """Of what each side has sent, how much the other has read."""

    def play(self, step: Step) -> Packet | None:
        """The packet of a step, without number and time; None when there is nothing to say."""
        side, other = step.side, 1 - step.side
        kind = step.kind
        if kind in ("go", "read"):
            match self.state:
                case "new":
                    kind = "request"
                case "requested":
                    kind, side = "answer", 1 - self.client
                case "closing":
                    kind = "request" if step.flags == 0 else "reset"
        window = min(self.buf_alloc) - self.sent[side] + self.read[side]
        match kind:
            case "request":
                self.state, self.client, self.sent, self.read = "requested", side, [0, 0], [0, 0]
                return self.packet(side, Op.REQUEST)
            case "answer" if self.owes and step.flags:
                self.owes = False
                return self.packet(side, Op.RST)
            case "response" | "answer":
                self.state, self.owes = "open", False
                return self.packet(side, Op.RESPONSE)
            case "go" if window > 0:
                return self.data(side, min(step.amount, window), step.flags)
            case "force":
                return self.data(side, step.amount, step.flags)
            case "go" | "read":
                queued = self.sent[other] - self.read[other]
                self.read[other] += min(step.amount, queued)
                return self.packet(side, Op.CREDIT_UPDATE)
            case "ask":
                return self.packet(side, Op.CREDIT_REQUEST)
            case "shut":
                return self.packet(side, Op.SHUTDOWN, flags=step.flags)
            case "close":
                self.state, self.owes = "closing", True
                return self.packet(side, Op.SHUTDOWN, flags=ShutdownFlag.RCV | ShutdownFlag.SEND)
            case "reset":
                self.state, self.owes = "new", False
                return self.packet(side, Op.RST, known=step.flags > 0)
            case "ahead":
                return self.packet(side, Op.CREDIT_UPDATE, wrong=step.amount)
            case "back":
                return self.packet(side, Op.CREDIT_UPDATE, wrong=-step.amount)
            case "resize":
                self.buf_alloc[side] = step.amount
                return self.packet(side, Op.CREDIT_UPDATE)
            case "odd op":
                odd = (Op.INVALID, max(Op) + 1, 2**16 - 1)[step.flags % 3]
                return self.packet(side, odd, length=step.amount)
            case "odd type":
                odd = (0, Type.DGRAM, 2**16 - 1)[step.flags % 3]
                return self.packet(side, Op.RW, length=step.amount, type_=odd)
            case _:
                return None

    def data(self, side: int, length: int, flags: int) -> Packet:
        self.sent[side] += length
        flags = flags if self.pair.type == Type.SEQPACKET else 0
        return self.packet(side, Op.RW, length=length, flags=flags)

    def packet(
        self,
        side: int,
        op: int,
        *,
        length: int = 0,
        flags: int = 0,
        wrong: int = 0,
        known: bool = True,
        type_: int | None = None,
    ) -> Packet:
        source, destination = self.pair.shown[side]
        return Packet(
            number=0,
            time_ns=0,
            src_cid=source.cid,
            dst_cid=destination.cid,
            src_port=source.port,
            dst_port=destination.port,
            op=op,
            type=self.pair.type if type_ is None else type_,
            len=length,
            flags=flags,
            buf_alloc=self.buf_alloc[side] if known else 0,
            fwd_cnt=(self.read[1 - side] + wrong) % WRAP if known else 0,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets as a capture has them, where its batches are cut, and how it is tracked."""

    packets: tuple[Packet, ...]
    cuts: tuple[int, ...] = ()
    end_ns: int | None = None
    stall_threshold_ns: int = DEFAULT_STALL_THRESHOLD_NS
    lie: bool = False
    """Whether second headers name other endpoints than the first, by which the model goes."""

    def batches(self) -> Iterator[PacketBatch]:
        """The traffic decoded from real frames, a batch for each piece (an empty one, too)."""
        edges = [0, *sorted(self.cuts), len(self.packets)]
        for start, stop in pairwise(edges):
            part = self.packets[start:stop]
            yield decode(frames(part, first_number=start + 1, lie=self.lie))

    def __repr__(self) -> str:
        lines = [
            f"{p.number:4} {p.time_ns - EPOCH_NS:+} on {p.interface}: {p.src_cid}.{p.src_port} > "
            f"{p.dst_cid}.{p.dst_port} type {p.type} op {p.op} flags {p.flags} len {p.len} "
            f"buf_alloc {p.buf_alloc} fwd_cnt {p.fwd_cnt}{'' if p.decoded else ' CUT'}"
            for p in self.packets
        ]
        end = None if self.end_ns is None else self.end_ns - EPOCH_NS
        return "\n".join(
            [f"Traffic cut at {self.cuts}, end {end}, from {self.stall_threshold_ns}", *lines]
        )


def records(packets: Sequence[Packet], *, lie: bool = False) -> NDArray[Any]:
    """The headers of these packets; ``lie``: the second one names other endpoints."""
    records = np.zeros(len(packets), wire.HEADERS)
    for name in ("src_cid", "dst_cid", "src_port", "dst_port"):
        records[name] = [getattr(packet, name) for packet in packets]
        # The model goes by the first header, whatever the second one says of addresses.
        records[f"virtio_{name}"] = records[name] ^ lie
    for name in ("len", "type", "op", "flags", "buf_alloc", "fwd_cnt"):
        records[name] = [getattr(packet, name) for packet in packets]
    meanings = {int(op): int(meaning) for op, meaning in wire.MON_OP_OF.items()}
    records["mon_op"] = [meanings.get(packet.op, wire.MonOp.UNKNOWN) for packet in packets]
    records["transport"] = wire.Transport.VIRTIO
    records["transport_len"] = wire.VIRTIO_HDR_LEN
    return records


def frames(packets: Sequence[Packet], *, first_number: int = 1, lie: bool = False) -> FrameBatch:
    """Frames of these packets, headers only; one that cannot be decoded lacks its last byte."""
    return FrameBatch.of(
        [
            record.tobytes()[: wire.HEADERS_LEN - (not packet.decoded)]
            for packet, record in zip(packets, records(packets, lie=lie), strict=True)
        ],
        time_ns=[packet.time_ns for packet in packets],
        origlen=[wire.HEADERS_LEN + packet.len for packet in packets],
        interface=[packet.interface for packet in packets],
        interfaces=INTERFACES,
        first_number=first_number,
    )


def played(
    steps: Iterable[Step], *, midstream: Iterable[int] = (), buffers: Sequence[int] = BUFFERS
) -> tuple[Packet, ...]:
    """What a capture shows of these steps.

    Pairs in ``midstream`` have been talking when it begins, and their counters are about to wrap;
    a talk's buffers are those of ``buffers`` that stand at the place of its pair and behind it.
    """
    talks: dict[int, Talk] = {}
    packets: list[Packet] = []
    now = EPOCH_NS
    for step in steps:
        now += step.gap_ns
        if step.pair not in talks:
            sizes = [buffers[(step.pair + side) % len(buffers)] for side in (0, 1)]
            talk = talks[step.pair] = Talk(PAIRS[step.pair], sizes)
            if step.pair in midstream:
                talk.state, talk.sent, talk.read = "open", [MOST, MOST - 50], [MOST - 9, MOST - 50]
        said = talks[step.pair].play(step)
        if said is None:
            continue
        for interface in {"lost": (), "twice": (0, 1), "elsewhere": (1,)}.get(step.fate, (0,)):
            packets.append(
                _stamped(said, len(packets) + 1, now, interface, decoded=step.fate != "cut")
            )
    return tuple(packets)


def _stamped(packet: Packet, number: int, time_ns: int, interface: int, *, decoded: bool) -> Packet:
    # dataclasses.replace takes four times as long, and this is most of what is spent on traffic.
    return Packet(
        number=number,
        time_ns=time_ns,
        interface=interface,
        src_cid=packet.src_cid,
        dst_cid=packet.dst_cid,
        src_port=packet.src_port,
        dst_port=packet.dst_port,
        op=packet.op,
        type=packet.type,
        len=packet.len,
        flags=packet.flags,
        buf_alloc=packet.buf_alloc,
        fwd_cnt=packet.fwd_cnt,
        decoded=decoded,
    )


def _steps(
    pairs: Sequence[int], kinds: Sequence[str], fates: Sequence[str], gaps: Sequence[int]
) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        st.sampled_from(pairs),
        st.integers(0, 1),
        st.sampled_from(kinds),
        st.sampled_from(AMOUNTS),
        st.integers(0, 3),
        st.sampled_from(gaps),
        st.sampled_from(fates),
    )


_FORWARD: Final = tuple(gap for gap in GAPS if gap >= 0)
_THRESHOLDS: Final = (DEFAULT_STALL_THRESHOLD_NS, 0, 1, 10**12)


@st.composite
def _captured(
    draw: st.DrawFn, packets: st.SearchStrategy[tuple[Packet, ...]], *, lie: bool = False
) -> Traffic:
    """These packets as a capture: perhaps begun late, ended at some time, in any batches."""
    whole = draw(packets)
    late = draw(st.integers(0, len(whole) // 2)) if draw(st.booleans()) else 0
    kept = tuple(
        _stamped(packet, number, packet.time_ns, packet.interface, decoded=packet.decoded)
        for number, packet in enumerate(whole[late:], 1)
    )
    last = kept[-1].time_ns if kept else EPOCH_NS
    return Traffic(
        packets=kept,
        cuts=tuple(draw(st.lists(st.integers(0, len(kept)), max_size=8))),
        end_ns=draw(st.sampled_from((None, last, last + 10**9, last - 10 * MS))),
        stall_threshold_ns=draw(st.sampled_from(_THRESHOLDS)),
        lie=lie,
    )


@st.composite
def _played(
    draw: st.DrawFn, kinds: Sequence[str], fates: Sequence[str], gaps: Sequence[int]
) -> tuple[Packet, ...]:
    pairs = draw(_few(range(len(PAIRS))))
    steps = draw(_long(_steps(pairs, kinds, fates, gaps)))
    midstream = draw(st.sets(st.sampled_from(pairs)))
    return played(steps, midstream=midstream, buffers=draw(st.permutations(BUFFERS)))


def _few(things: Sequence[T]) -> st.SearchStrategy[list[T]]:
    return st.lists(st.sampled_from(things), min_size=1, max_size=3, unique=True)


def _long(things: st.SearchStrategy[T]) -> st.SearchStrategy[list[T]]:
    """Lists that are often long: left alone, Hypothesis draws a handful."""
    return st.sampled_from((0, 10, 50)).flatmap(lambda n: st.lists(things, min_size=n, max_size=80))


_u32 = st.sampled_from((0, 1, 9, 10, 4096, WRAP // 2 - 1, WRAP // 2, MOST)) | st.integers(0, MOST)


@st.composite
def _nonsense(draw: st.DrawFn) -> tuple[Packet, ...]:
    cid = st.sampled_from(draw(_few((0, CID_LOCAL, CID_HOST, GUEST, GUEST + WRAP, 2**64 - 1))))
    port = st.sampled_from(draw(_few((0, 7, 20, MOST))))
    packet = st.builds(
        Packet,
        number=st.just(0),
        time_ns=st.sampled_from(GAPS).map(EPOCH_NS.__add__),
        src_cid=cid,
        dst_cid=cid,
        src_port=port,
        dst_port=port,
        op=st.sampled_from([int(op) for op in Op] * 2 + [max(Op) + 1, 2**16 - 1]),
        type=st.sampled_from([int(Type.STREAM)] * 6 + [int(Type.SEQPACKET)] * 3 + [0, Type.DGRAM]),
        len=_u32,
        flags=st.integers(0, 3) | _u32,
        buf_alloc=_u32,
        fwd_cnt=_u32,
        interface=st.sampled_from((0, 0, 0, 1)),
        decoded=st.sampled_from((True,) * 9 + (False,)),
    )
    return tuple(draw(_long(packet)))


def honest() -> st.SearchStrategy[Traffic]:
    """Sides that keep to the protocol, seen whole but perhaps from the middle on."""
    return _captured(_played(HONEST, ("seen",), _FORWARD))


def imperfect() -> st.SearchStrategy[Traffic]:
    """The same through an imperfect capture: losses, two devices, cut headers, clocks set back."""
    return _captured(_played(HONEST, FATES, GAPS))


def hostile() -> st.SearchStrategy[Traffic]:
    """Sides that break the rules, through an imperfect capture."""
    return _captured(_played(HONEST + HOSTILE * 2, FATES, GAPS), lie=True)


def nonsense() -> st.SearchStrategy[Traffic]:
    """Any values in every header field, between few endpoints."""
    return _captured(_nonsense(), lie=True)


def seeded(seed: int, count: int, *, wild: bool = True) -> Traffic:
    """Some ``count`` packets drawn by a seed: long traffic without Hypothesis's costs."""
    rng = random.Random(seed)
    kinds = HONEST * 4 + HOSTILE if wild else HONEST
    fates = ("seen",) * 40 + FATES if wild else ("seen",)
    gaps = GAPS if wild else _FORWARD
    packets = played(
        (
            Step(
                rng.randrange(len(PAIRS)),
                rng.randrange(2),
                rng.choice(kinds),
                rng.choice(AMOUNTS),
                rng.randrange(4),
                rng.choice(gaps),
                rng.choice(fates),
            )
            for _ in range(count)
        ),
        midstream=rng.sample(range(len(PAIRS)), 3),
        buffers=rng.sample(BUFFERS, len(BUFFERS)),
    )
    return Traffic(packets, tuple(rng.randrange(len(packets)) for _ in range(rng.randrange(20))))
