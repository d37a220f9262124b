"""Split packets that a kernel tapped with their whole buffer, and their payload put right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import Script

from vsockdump.frames import FrameBatch, Interface, Section
from vsockdump.packets import PacketBatch, decode
from vsockdump.tracking import repair
from vsockdump.tracking.tracker import Tracker
from vsockdump.wire import HEADERS_LEN, Op

BROKEN = "Linux 6.12.80-amd64"
MENDED = "Linux 6.12.90-amd64"
BUFFER = 1 << 20


def interfaces(kernel: str) -> tuple[Interface, ...]:
    return (Interface(os=kernel), Interface(section=Section(os=kernel)))


class Split(Script):
    """A connection whose client sends buffers in pieces, as a broken tap shows them."""

    def __init__(self, kernel: str = BROKEN, *, flipped: bool = False) -> None:
        super().__init__(interfaces=interfaces(kernel), flipped=flipped)
        self.open(buf=BUFFER)
        self.pieces: dict[int, bytes] = {}
        """What each packet really carried, by its place."""

    def send(self, buffer: bytes, *lengths: int, interface: int = 0) -> None:
        passed = 0
        for length in lengths:
            self.piece(buffer, passed, length, interface=interface)
            passed += length

    def piece(self, buffer: bytes, passed: int, length: int, *, interface: int = 0) -> None:
        self.pieces[self.count] = buffer[passed : passed + length]
        self.x(Op.RW, len=length, payload=buffer, buf=BUFFER, interface=interface)


def observed(batch: PacketBatch, places: dict[int, bytes]) -> dict[int, bytes]:
    return {row: batch.payload_bytes(row) for row in places}


def buffer(length: int, begin: int = 0) -> bytes:
    """Bytes that tell their place."""
    return bytes((begin + number) % 251 for number in range(length))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("singly", [False, True])
def test_a_piece_s_payload_is_found_behind_the_pieces_before_it(
    singly: bool, flipped: bool
) -> None:
    split = Split(flipped=flipped)
    split.send(buffer(900), 400, 400, 100)
    split.send(buffer(700, 3), 700)
    split.send(buffer(500, 9), 100, 400)
    batch = split.batch()
    tracker = Tracker()
    if singly:
        rows = [batch.take(slice(row, row + 1)) for row in range(len(batch))]
        for row in rows:
            tracker.feed(row)
        told = {place: rows[place].payload_bytes(0) for place in split.pieces}
    else:
        tracker.feed(batch)
        told = observed(batch, split.pieces)
    assert told == split.pieces
    (finding,) = [f for f in tracker.findings() if f.code == "payload-repaired"]
    assert finding.number == 4
    assert split.names[0] in finding.message


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=8))
def test_any_split_is_repaired(splits: list[list[int]]) -> None:
    split = Split()
    for number, lengths in enumerate(splits):
        split.send(buffer(sum(lengths), number), *lengths)
    batch = split.batch()
    Tracker().feed(batch)
    assert observed(batch, split.pieces) == split.pieces


@pytest.mark.parametrize("kernel", [MENDED, "Linux 6.1.0", ""])
def test_other_kernels_are_left_alone(kernel: str) -> None:
    split = Split(kernel)
    split.send(buffer(900), 400, 500)
    batch = split.batch()
    tracker = Tracker()
    tracked = tracker.feed(batch)
    assert observed(batch, split.pieces) == {2: buffer(400), 3: buffer(500)}
    assert "payload-repaired" not in {f.code for f in tracker.findings()}
    assert tracked.tx_cnt[-1] == 900


def test_directions_and_connections_are_followed_apart() -> None:
    split = Split()
    one, other, back = buffer(900), buffer(900, 5), buffer(900, 50)
    far = (split.ends[0]._replace(port=1), split.ends[1])
    split.add(Op.REQUEST, ends=far)
    for passed in (0, 300, 600):
        split.piece(one, passed, 300)
        split.pieces[split.count] = other[passed : passed + 300]
        split.add(Op.RW, ends=far, len=300, payload=other)
        split.pieces[split.count] = back[passed : passed + 300]
        split.add(Op.RW, answer=True, len=300, payload=back)
    batch = split.batch()
    Tracker().feed(batch)
    assert observed(batch, split.pieces) == split.pieces


def test_a_second_device_shows_every_piece_again() -> None:
    split = Split()
    whole = buffer(900)
    for passed in (0, 300, 600):
        split.piece(whole, passed, 300)
        split.piece(whole, passed, 300, interface=1)
    batch = split.batch()
    Tracker().feed(batch)
    assert observed(batch, split.pieces) == split.pieces


def test_what_the_snapshot_length_cut_off_stays_missing() -> None:
    split = Split()
    split.send(buffer(900), 400, 400, 100)
    kept = 500
    whole = split.batch().frames
    snapped = decode(
        FrameBatch.of(
            [frame[: HEADERS_LEN + kept] for frame in split.frames],
            origlen=whole.origlen.tolist(),
            interfaces=split.interfaces,
        )
    )
    tracker = Tracker()
    tracker.feed(snapped)
    told = observed(snapped, split.pieces)
    assert [told[row] for row in split.pieces] == [
        buffer(900)[:400],
        buffer(900)[400:kept],
        b"",
    ]


def test_headers_alone_are_nothing_to_repair() -> None:
    split = Split()
    split.send(buffer(900), 400, 500)
    bare = decode(
        FrameBatch.of(
            [frame[:HEADERS_LEN] for frame in split.frames],
            origlen=split.batch().frames.origlen.tolist(),
            interfaces=split.interfaces,
        )
    )
    tracker = Tracker()
    tracker.feed(bare)
    assert "payload-repaired" not in {f.code for f in tracker.findings()}
    assert not bare.captured.any()
    assert (bare.payload <= bare.frames.offset + bare.frames.caplen).all()


def test_a_lost_piece_spoils_no_later_packet() -> None:
    split = Split()
    split.piece(buffer(900), 0, 400)
    # The rest is lost; another buffer follows.
    split.send(buffer(800, 7), 400, 400)
    batch = split.batch()
    Tracker().feed(batch)
    assert observed(batch, split.pieces) == split.pieces


def test_a_slot_that_another_connection_got_has_no_pieces_before() -> None:
    split = Split()
    split.piece(buffer(900), 0, 400)
    tracker = Tracker(max_connections=1)
    tracker.feed(split.batch())
    after = Split()
    after.ends = (split.ends[0]._replace(port=1), split.ends[1])
    for count in (1, 2):
        after.ends = (split.ends[0]._replace(port=count), split.ends[1])
        after.open(buf=BUFFER)
        after.piece(buffer(900, 9), 0, 400)
        batch = after.batch()
        tracker.feed(batch)
        assert observed(batch, after.pieces) == after.pieces
    assert tracker.left > 0


def test_split_packets_followed_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MOST_OPEN", 5)
    split = Split()
    for port in range(1, 50):
        split.add(
            Op.RW, ends=(split.ends[0]._replace(port=port), split.ends[1]), len=1, payload=b"12"
        )
    tracker = Tracker()
    tracked = tracker.feed(split.batch())
    assert (tracked.conn > 0).all()
    assert len(tracker._repairer._open) == 5
