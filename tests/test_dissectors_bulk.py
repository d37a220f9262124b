from __future__ import annotations

import gc
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import vsockdump.captures as captures
import vsockdump.dissectors.bulk as bulk
from command import run
from dissectors_frames import any_bytes, edges, unhurried, write_pcap
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Ether
from scapy.packet import Packet, Padding, Raw, bind_layers, split_layers
from scapy.utils import EDecimal, rdpcap, wrpcapng
from vsockdump.dissectors.bulk import from_frames, iterate, load, passes, to_frames
from vsockdump.dissectors.layers import VirtioVsock, VSockMon

from vsockdump import wire
from vsockdump.errors import FilterError, SavefileError, VsockdumpError
from vsockdump.frames import FrameBatch, Interface, Option

DAY_NS = 86_400 * 10**9
batches = st.lists(
    st.tuples(any_bytes, st.integers(0, 20_000 * DAY_NS), st.integers(0, 2**31)), max_size=12
)


def slots(packet: Any) -> dict[str, Any]:
    return {name: getattr(packet, name) for name in type(packet).__all_slots__ if has(packet, name)}


def has(packet: Any, name: str) -> bool:
    try:
        object.__getattribute__(packet, name)
    except AttributeError:
        return False
    return True


def same(ours: Any, stock: Any, *, outer: bool = True) -> None:
    """Every slot of every layer is alike, down to the objects that packets share."""
    assert type(ours) is type(stock)
    mine, theirs = slots(ours), slots(stock)
    assert list(mine["fields"]) == list(theirs["fields"])
    # Below the first layer, time is that of the dissection where it is anything.
    ignored = {"payload", "underlayer", "process_information"} | (set() if outer else {"time"})
    for name in mine.keys() | theirs.keys():
        if name not in ignored:
            assert mine[name] == theirs[name], name
            assert type(mine[name]) is type(theirs[name]), name
    for name in ("default_fields", "fieldtype", "packetfields", "overload_fields"):
        assert mine[name] is theirs[name]
    for name in ("fields", "post_transforms", "raw_packet_cache_fields"):
        assert mine[name] is None or mine[name] is not theirs[name]
    if outer:
        assert ours.show(dump=True) == stock.show(dump=True)
        assert ours.summary() == stock.summary()
        assert repr(ours) == repr(stock)
        assert bytes(ours) == bytes(stock)
        assert ours.underlayer is None and stock.underlayer is None
    above, theirs_above = ours.payload, stock.payload
    if above:
        assert (above.underlayer is ours) == (theirs_above.underlayer is stock)
        same(above, theirs_above, outer=False)
    else:
        assert above is theirs_above


def check(path: str) -> list[Any]:
    """What load and iterate make of a file is what rdpcap makes of it."""
    stock = rdpcap(path)
    for ours in (load(path), list(iterate(path))):
        assert len(ours) == len(stock)
        for mine, theirs in zip(ours, stock, strict=True):
            same(mine, theirs)
    return list(stock)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bulk")


@unhurried
@given(batches, st.booleans())
def test_packets_are_those_of_scapys_reader(folder: Path, drawn: Any, nano: bool) -> None:
    path = write_pcap(
        folder / "x.pcap",
        [frame for frame, _, _ in drawn],
        times_ns=[time for _, time, _ in drawn],
        wirelens=[len(frame) + more for frame, _, more in drawn],
        nano=nano,
    )
    stock = check(path)
    assert [type(packet.time) for packet in stock] == [EDecimal] * len(drawn)
    if nano:
        expected = [Decimal(time) / 10**9 for _, time, _ in drawn]
        assert [packet.time for packet in load(path)] == expected


def test_packets_are_those_of_scapys_reader_at_every_edge(tmp_path: Path) -> None:
    check(write_pcap(tmp_path / "x.pcap", edges()))


@unhurried
@given(
    st.lists(any_bytes, max_size=6),
    st.sampled_from(
        [(wire.LINKTYPE_LINUX_SLL, CookedLinux), (wire.LINKTYPE_LINUX_SLL2, CookedLinuxV2)]
    ),
)
def test_cooked_packets_are_those_of_scapys_reader(folder: Path, drawn: Any, cooked: Any) -> None:
    linktype, layer = cooked
    head = bytes(layer(lladdrtype=wire.ARPHRD_VSOCKMON, proto=0))
    data = [head + frame for frame in drawn]
    stock = check(write_pcap(folder / "x.pcap", data, linktype=linktype))
    assert {type(packet) for packet in stock} <= {layer}


def test_packets_of_another_kind_are_those_of_scapys_reader(tmp_path: Path) -> None:
    ethernet = conf.l2types.layer2num[Ether]
    stock = check(write_pcap(tmp_path / "x.pcap", [bytes(Ether() / b"payload")], linktype=ethernet))
    assert type(stock[0]) is Ether
    short = write_pcap(tmp_path / "y.pcap", [b"short"], linktype=ethernet)
    assert type(check(short)[0]) is Raw
    check(write_pcap(tmp_path / "z.pcap", [b"payload"], linktype=max(conf.l2types.num2layer) + 1))
    conf.debug_dissector = True
    try:
        with pytest.raises(struct.error):
            load(short)
    finally:
        conf.debug_dissector = False
    assert gc.isenabled()


@pytest.mark.parametrize("name", captures.names())
def test_real_captures_are_those_of_scapys_reader(name: str) -> None:
    path = str(captures.path(name))
    stock, ours = rdpcap(path), load(path)
    assert ours.listname == stock.listname
    assert len(ours) == len(stock)
    for mine, theirs in zip(ours, stock, strict=True):
        if len(mine.original) == len(theirs.original):
            same(mine, theirs)
        else:
            # scapy's reader stops in the middle of the longest frames.
            assert mine.original[: len(theirs.original)] == theirs.original
            assert len(mine.original) == mine.wirelen


@pytest.fixture
def plain(tmp_path: Path) -> str:
    packet = VSockMon(src_cid=3) / VirtioVsock(dst_port=4711) / b"payload" / Padding(b"padding")
    other = VSockMon(src_cid=3) / VirtioVsock(dst_port=4712) / b"payload"
    return write_pcap(tmp_path / "x.pcap", [bytes(packet), bytes(other)])


class Upper(Raw):
    """A layer some user has for what runs over vsock."""

    done: ClassVar[list[Any]] = []

    def post_dissection(self, pkt: Any) -> None:
        self.done.append(pkt)


def test_plain_packets_do_not_take_the_slow_way(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_dissect", lambda *_: pytest.fail("dissected"))
    assert [type(packet) for packet in load(plain)] == [VSockMon] * 2


def test_layers_bound_above_are_respected(plain: str) -> None:
    bind_layers(VirtioVsock, Upper, dst_port=4711)
    try:
        stock = check(plain)
        assert [Upper in packet for packet in stock] == [True, False]
        Upper.done.clear()
        packets = load(plain)
        assert [Upper in packet for packet in packets] == [True, False]
        assert [packet is packets[0] for packet in Upper.done] == [True]
    finally:
        split_layers(VirtioVsock, Upper, dst_port=4711)


def test_another_layer_bound_in_place_of_ours_is_respected(plain: str) -> None:
    before = VSockMon.payload_guess
    VSockMon.payload_guess = [({"transport": wire.Transport.VIRTIO}, Upper)]
    try:
        assert all(Upper in packet for packet in check(plain))
    finally:
        VSockMon.payload_guess = before


@pytest.mark.parametrize(
    ("name", "value"), [("padding", 0), ("raw_layer", Upper), ("padding_layer", Upper)]
)
def test_configuration_is_respected(
    plain: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conf, name, value)
    stock = check(plain)
    assert (Padding in stock[0]) == (name == "raw_layer")
    assert (Upper in stock[1]) == (name == "raw_layer")


def test_another_layer_registered_for_the_link_type_is_respected(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf.l2types.num2layer, wire.LINKTYPE_VSOCK, Upper)
    assert {type(packet) for packet in check(plain)} == {Upper}


def test_changing_one_packet_changes_no_other(plain: str) -> None:
    one, other = load(plain)
    before = bytes(other)
    one.src_cid = 99
    one[VirtioVsock].fwd_cnt = 99
    one[Raw].load = b"changed"
    del one[VirtioVsock].len
    one.post_transforms.append(lambda data: data)
    assert bytes(other) == before
    changed = VSockMon(bytes(one))
    assert (changed.src_cid, changed[VirtioVsock].fwd_cnt) == (99, 99)
    assert changed[Raw].load == b"changed"
    assert not other.post_transforms


def test_the_longest_frames_are_whole(tmp_path: Path) -> None:
    frame = bytes(VSockMon() / VirtioVsock() / bytes(wire.MAX_PAYLOAD))
    assert len(frame) == wire.MAX_FRAME
    path = write_pcap(tmp_path / "x.pcap", [frame])
    [packet] = load(path)
    assert bytes(packet) == frame
    assert len(packet.load) == wire.MAX_PAYLOAD


def test_comments_direction_and_interface_come_along(tmp_path: Path) -> None:
    packets = []
    for number, (name, comments, direction) in enumerate(
        [("vsockmon0", [b"one", b"two"], 2), ("vsockmon1", None, None), ("vsockmon0", None, 1)]
    ):
        packet = VSockMon(src_port=number) / VirtioVsock() / b"payload"
        packet.sniffed_on, packet.comments, packet.direction = name, comments, direction
        packet.time = EDecimal(1_700_000_000 + number)
        packets.append(packet)
    path = str(tmp_path / "x.pcapng")
    wrpcapng(path, packets)
    stock = check(path)
    for name in ("sniffed_on", "comments", "direction", "time"):
        told = [getattr(packet, name) for packet in packets]
        assert [getattr(packet, name) for packet in stock] == told
        assert [getattr(packet, name) for packet in from_frames(to_frames(packets))] == told


def test_packets_outlive_their_batch() -> None:
    frame = bytes(VSockMon() / VirtioVsock() / b"payload")
    batch = FrameBatch.of([frame]).copy()
    [packet] = from_frames(batch)
    batch.buf[:] = 0xFF
    assert bytes(packet) == frame


@contextmanager
def collector(running: bool) -> Iterator[None]:
    before = gc.isenabled()
    (gc.enable if running else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("running", [True, False])
def test_the_garbage_collector_is_left_as_it_was(
    running: bool, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.pcap"
    damaged.write_bytes(Path(plain).read_bytes()[:-1])
    while_made = []
    monkeypatch.setattr(
        bulk, "EDecimal", lambda value: while_made.append(gc.isenabled()) or EDecimal(value)
    )
    with collector(running):
        load(plain)
        assert gc.isenabled() == running
        with pytest.raises(SavefileError):
            load(damaged)
        assert gc.isenabled() == running
        for _ in iterate(plain):
            assert gc.isenabled() == running
        iterate(plain).close()
        assert gc.isenabled() == running
    assert set(while_made) == {False}


def test_a_damaged_file_gives_what_came_before_the_damage(plain: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pcap"
    damaged.write_bytes(Path(plain).read_bytes()[:-1])
    got: list[bytes] = []
    with pytest.raises(SavefileError, match=r"damaged\.pcap"):
        got.extend(bytes(packet) for packet in iterate(damaged))
    assert got == [bytes(load(plain)[0])]


@pytest.mark.parametrize("name", captures.names())
@pytest.mark.parametrize(
    "filter", ["", "op rst", "len > 0 and src port > 20000", "conn.state == closed", "window == 0"]
)
def test_a_filter_passes_what_the_command_passes(name: str, filter: str) -> None:
    path = captures.path(name)
    numbers = {json.loads(line)["number"] for line in run("--json", "-r", path, filter).lines}
    expected = [packet for number, packet in enumerate(load(path), 1) if number in numbers]
    assert load(path, filter).res == expected
    assert list(iterate(path, filter=filter)) == expected
    one = passes(filter)
    assert [packet for packet in load(path) if one(packet)] == expected


@pytest.mark.parametrize(
    "use", [load, lambda *given: next(iterate(*given)), lambda _, f: passes(f)]
)
def test_what_is_no_filter_is_refused(use: Any, plain: str) -> None:
    with pytest.raises(FilterError):
        use(plain, "port")


def test_more_packets_than_iterate_makes_at_a_time(tmp_path: Path) -> None:
    count = 2 * bulk._CHUNK + 1
    data = [bytes(VSockMon(src_port=number) / VirtioVsock()) for number in range(count)]
    path = write_pcap(tmp_path / "x.pcap", data)
    assert [packet.src_port for packet in iterate(path)] == list(range(count))


@unhurried
@given(batches)
def test_to_frames_and_back(drawn: Any) -> None:
    made = FrameBatch.of(
        [frame for frame, _, _ in drawn],
        time_ns=[time for _, time, _ in drawn],
        origlen=[len(frame) + more for frame, _, more in drawn],
    )
    again = to_frames(from_frames(made))
    assert [again.frame(row) for row in range(len(again))] == [frame for frame, _, _ in drawn]
    for name in ("caplen", "origlen", "time_ns", "interface", "number"):
        assert getattr(again, name).tolist() == getattr(made, name).tolist()
    assert list(again.interfaces) == list(made.interfaces)
    assert not again.options


def test_to_frames_keeps_interfaces_and_options() -> None:
    interfaces = (
        Interface(name="vsockmon0"),
        Interface(linktype=wire.LINKTYPE_LINUX_SLL, name="any"),
        Interface(),
    )
    packet = VSockMon() / VirtioVsock() / b"payload"
    frame = bytes(packet)
    options = {
        0: (Option(code=1, value=b"comment"), Option(code=1, value=b"more")),
        2: (Option(code=2, value=(1).to_bytes(4, "little")),),
    }
    made = FrameBatch.of(
        [frame, bytes(CookedLinux() / packet), frame], interface=[0, 1, 2], interfaces=interfaces
    )
    made = FrameBatch(**{x: getattr(made, x) for x in FrameBatch.__slots__} | {"options": options})
    again = to_frames(from_frames(made))
    assert list(again.interfaces) == list(interfaces)
    assert again.interface.tolist() == made.interface.tolist()
    assert dict(again.options) == options


def test_to_frames_of_packets_built_by_hand() -> None:
    packet = VSockMon() / VirtioVsock() / b"payload"
    packet.time = 1_700_000_000.123457
    frames = to_frames([packet])
    assert frames.time_ns.tolist() == [1_700_000_000_123_457_000]
    assert frames.origlen.tolist() == frames.caplen.tolist() == [len(packet)]
    assert len(to_frames([])) == 0
    packet.wirelen = 1
    assert to_frames([packet]).origlen.tolist() == [len(packet)]
    packet.wirelen = 1000
    assert to_frames([packet]).origlen.tolist() == [1000]


def test_to_frames_refuses_a_packet_without_a_link_type() -> None:
    good: Packet = VSockMon() / VirtioVsock()
    with pytest.raises(VsockdumpError, match="packet 2: VirtioVsock has no link type"):
        to_frames([good, VirtioVsock()])
