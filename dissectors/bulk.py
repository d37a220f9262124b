"""Savefiles to scapy packets and back, in batches: ``load``, ``iterate``, ``to_frames``; filters.

Strategy: a FrameBatch is decoded as columns, and a plain packet (both headers whole and of the
usual length) is put together from its row: slots that are alike in all packets are copied from a
packet scapy dissected, the others are set. Everything else goes through scapy's own dissection.
Nobody can tell the packets of both ways apart.

Invariants:

- what scapy is told is respected: layers bound above VirtioVsock, ``conf.raw_layer``,
  ``conf.padding``, another layer registered for the link type;
- ``time`` is an EDecimal that holds every nanosecond, ``wirelen`` is the original length, and
  ``comments``, ``direction`` and ``sniffed_on`` are what the file says;
- frames longer than the 65,535 bytes that scapy's readers stop at are whole;
- the garbage collector rests while packets are made and at no other time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from vsockdump import wire
from vsockdump.errors import VsockdumpError
from vsockdump.filters import compile
from vsockdump.frames import Bools, FrameBatch, Interface, Option
from vsockdump.packets import PacketBatch, decode
from vsockdump.sources.options import COMMENT
from vsockdump.sources.savefile import Savefile
from vsockdump.tracking.tracker import Tracker

from .layers import VirtioVsock, VSockMon
from .optional import MissingLibraryError

try:
    from scapy.compat import bytes_encode
    from scapy.config import conf
    from scapy.packet import Packet, Raw
    from scapy.plist import PacketList
    from scapy.utils import EDecimal
except ImportError as missing:
    raise MissingLibraryError("scapy", missing) from missing

__all__ = ["from_frames", "iterate", "load", "passes", "to_frames"]

_CHUNK: Final = 256
"""Packets ``iterate`` makes at a time. A packet's layers refer to each other, so that it waits for
the garbage collector, which gets round to the eldest every hundred chunks: so many are in memory.
"""
_EPB_FLAGS: Final = 2
_DIRECTION: Final = 3
"""The bits of the flags option (a u32) that tell the direction."""
_NANO: Final = Decimal("1e-9")
_RESERVED: Final = slice(
    sum(wire.HEADERS[name].itemsize for name in wire.MON_FIELDS), wire.MON_HDR_LEN
)
"""The reserved bytes of the first header, which ``wire.HEADERS`` has no column for."""

_OWN: Final = {"fields", "original", "raw_packet_cache"}
"""Slots that are different in every packet, so that no layer copies them."""
_CONTAINERS: Final = {"overloaded_fields", "post_transforms", "raw_packet_cache_fields"}
"""Slots that hold a container of the packet's own (unless it is a class's, which is not empty)."""
_put_fields: Final = Packet.fields.__set__
_put_original: Final = Packet.original.__set__
_put_cache: Final = Packet.raw_packet_cache.__set__
_put_payload: Final = Packet.payload.__set__
_put_underlayer: Final = Packet.underlayer.__set__
_put_time: Final = Packet.time.__set__
_put_wirelen: Final = Packet.wirelen.__set__


class _Layer:
    """Makes packets of one layer that lack but what ``_OWN`` names."""

    __slots__ = ("_cls", "_fresh", "_same")

    def __init__(self, like: Any) -> None:
        """``like``: a packet of the layer, as dissection leaves it."""
        self._cls = type(like)
        self._same = []
        self._fresh = []
        for name in self._cls.__all_slots__ - _OWN:
            slot = getattr(Packet, name)
            try:
                value = slot.__get__(like)
            except AttributeError:
                continue
            if name in _CONTAINERS and not value:
                self._fresh.append((slot.__set__, type(value)))
            else:
                self._same.append((slot.__set__, value))

    def __call__(self) -> Any:
        packet = object.__new__(self._cls)
        for put, value in self._same:
            put(packet, value)
        for put, kind in self._fresh:
            put(packet, kind())
        return packet


class _Recipe:
    """How to make packets, as scapy is configured right now."""

    def __init__(self) -> None:
        usual = VSockMon(bytes(VSockMon() / VirtioVsock() / b"payload"))
        virtio = usual.payload
        self.usable = (
            type(virtio) is VirtioVsock
            and conf.l2types.num2layer.get(wire.LINKTYPE_VSOCK) is VSockMon
        )
        if not self.usable:
            return
        self._mon_names = tuple(usual.fields)
        self._virtio_names = tuple(virtio.fields)
        self._mon = _Layer(usual)
        self._virtio = _Layer(VSockMon(bytes(VSockMon() / VirtioVsock())).payload)
        bound = any(layer.payload_guess for layer in VirtioVsock.aliastypes)
        raw = conf.raw_layer is Raw and not bound
        self._raw = _Layer(Raw(b"payload", _internal=1)) if raw else None

    def make(self, frame: bytes, header: tuple[int, ...], captured: int, excess: int) -> Any:
        """A packet of ``frame``; ``header`` is its row of ``wire.HEADERS``."""
        upper = frame[wire.MON_HDR_LEN :]
        mon, virtio = self._mon(), self._virtio()
        split = len(wire.MON_FIELDS)
        reserved = frame[_RESERVED]
        _put_fields(mon, dict(zip(self._mon_names, (*header[:split], reserved), strict=True)))
        _put_original(mon, frame)
        _put_cache(mon, frame[: wire.MON_HDR_LEN])
        _put_payload(mon, virtio)
        _put_fields(virtio, dict(zip(self._virtio_names, header[split:], strict=True)))
        _put_original(virtio, upper)
        _put_cache(virtio, upper[: wire.VIRTIO_HDR_LEN])
        _put_underlayer(virtio, mon)
        if captured:
            load = frame[wire.HEADERS_LEN : wire.HEADERS_LEN + captured]
            if self._raw is None:
                virtio.do_dissect_payload(load)
            else:
                raw = self._raw()
                _put_fields(raw, {"load": load})
                _put_original(raw, load)
                _put_cache(raw, load)
                _put_underlayer(raw, virtio)
                _put_payload(virtio, raw)
        if excess and conf.padding:
            virtio.add_payload(conf.padding_layer(frame[wire.HEADERS_LEN + captured :]))
        if self._raw is None:
            mon.dissection_done(mon)
        return mon


def _dissect(linktype: int, frame: bytes) -> Any:
    """A packet of ``frame`` the way scapy's readers make it."""
    try:
        return conf.l2types.num2layer.get(linktype, conf.raw_layer)(frame)
    except Exception:
        # What scapy's readers make of any failure of a dissector.
        if conf.debug_dissector:
            raise
        return conf.raw_layer(frame)


@contextmanager
def _collector_resting() -> Iterator[None]:
    """No garbage collection inside: it would walk every packet made so far, again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def from_frames(frames: FrameBatch) -> list[Packet]:
    """A scapy packet for every frame of the batch, in order; they outlive the batch."""
    return _make(frames, _Recipe())


def _make(frames: FrameBatch, recipe: _Recipe) -> list[Packet]:
    packets = decode(frames)
    view = frames.buf.data
    linktypes = [interface.linktype for interface in frames.interfaces]
    made = []
    with _collector_resting():
        for plain, at, size, header, captured, excess, time_ns, wirelen, interface in zip(
            _plain(packets, recipe).tolist(),
            frames.offset.tolist(),
            frames.caplen.tolist(),
            packets.headers.tolist(),
            packets.captured.tolist(),
            packets.excess.tolist(),
            frames.time_ns.tolist(),
            frames.origlen.tolist(),
            frames.interface.tolist(),
            strict=True,
        ):
            frame = view[at : at + size].tobytes()
            if plain:
                packet = recipe.make(frame, header, captured, excess)
            else:
                packet = _dissect(linktypes[interface], frame)
            _put_time(packet, EDecimal(Decimal(time_ns) * _NANO))
            _put_wirelen(packet, wirelen)
            made.append(packet)
        _annotate(made, frames)
    return made


def _plain(packets: PacketBatch, recipe: _Recipe) -> Bools:
    """Which rows the recipe is for."""
    if not recipe.usable:
        return np.zeros(len(packets), np.bool_)
    usual: Bools = packets.headers["transport_len"] == wire.VIRTIO_HDR_LEN
    usual &= packets.has_virtio
    usual &= packets.start == packets.frames.offset
    return usual


def _annotate(made: list[Any], frames: FrameBatch) -> None:
    """Give packets their interface's name and what their options say."""
    names = [interface.name for interface in frames.interfaces]
    if any(names):
        for packet, interface in zip(made, frames.interface.tolist(), strict=True):
            packet.sniffed_on = names[interface] or None
    for row, options in frames.options.items():
        comments = [option.value for option in options if option.code == COMMENT]
        made[row].comments = comments or None
        for option in options:
            if option.code == _EPB_FLAGS:
                made[row].direction = int.from_bytes(option.value, "little") & _DIRECTION


class _Selection:
    """What a filter passes of batches that come in order; a tracker runs along where it asks."""

    def __init__(self, expression: str) -> None:
        self._filter = compile(expression)
        self._tracker = Tracker() if self._filter.needs_tracking else None

    def of(self, frames: FrameBatch) -> FrameBatch:
        batch = decode(frames)
        tracked = self._tracker.feed(batch) if self._tracker is not None else None
        return frames.take(self._filter.mask(batch, tracked))


def _batches(path: str | Path, filter: str | None) -> Iterator[FrameBatch]:
    selection = _Selection(filter) if filter is not None else None
    savefile = Savefile(path)
    try:
        for batch in savefile.batches():
            yield selection.of(batch) if selection is not None else batch
    finally:
        savefile.close()


def iterate(path: str | Path, filter: str | None = None) -> Iterator[Packet]:
    """Yield the packets of a savefile (any that ``vsockdump -r`` reads), in constant memory.

    ``filter`` is an expression of vsockdump's own language: only what it passes is made. Raises
    FilterError if it is none, and SavefileError behind the last whole packet of a damaged file.
    """
    recipe = _Recipe()
    for batch in _batches(path, filter):
        for start in range(0, len(batch), _CHUNK):
            yield from _make(batch.take(slice(start, start + _CHUNK)), recipe)


def load(path: str | Path, filter: str | None = None) -> PacketList:
    """All packets of a savefile that ``filter`` passes, like scapy's ``rdpcap``, only faster.

    Raises FilterError, and SavefileError when the file is damaged, where ``rdpcap`` returns what
    came before.
    """
    recipe = _Recipe()
    made: list[Packet] = []
    with _collector_resting():
        for batch in _batches(path, filter):
            made += _make(batch, recipe)
    return PacketList(made, name=Path(path).name)


def passes(filter: str) -> Callable[[Packet], bool]:
    """A function that says of each packet whether ``filter`` passes it, for scapy's ``lfilter``.

    Where the filter asks for tracking the function has to be given every packet, in order. Raises
    FilterError if it is no filter.
    """
    selection = _Selection(filter)

    def one(packet: Packet) -> bool:
        return len(selection.of(to_frames([packet]))) == 1

    return one


def to_frames(packets: Iterable[Packet]) -> FrameBatch:
    """The packets built, as a batch that any of vsockdump's sinks writes.

    Keeps time, ``wirelen``, ``comments``, ``direction`` and ``sniffed_on``. Time that is a float,
    which has no nanoseconds, is rounded to microseconds. Raw packets (frames too short to be more)
    are written as vsock frames. Raises VsockdumpError for a packet that has no link type, such as a
    VirtioVsock without its VSockMon.
    """
    data: list[bytes] = []
    times: list[int] = []
    wirelens: list[int] = []
    places: list[int] = []
    interfaces: dict[tuple[int, str], int] = {}
    options: dict[int, tuple[Option, ...]] = {}
    for row, packet in enumerate(packets):
        kind = type(packet)
        linktype = conf.l2types.layer2num.get(kind)
        if linktype is None:
            if kind is not conf.raw_layer:
                raise VsockdumpError(f"packet {row + 1}: {kind.__name__} has no link type")
            linktype = wire.LINKTYPE_VSOCK
        frame = bytes(packet)
        data.append(frame)
        times.append(_nanoseconds(packet.time))
        wirelens.append(max(packet.wirelen or 0, len(frame)))
        place = (linktype, str(packet.sniffed_on or ""))
        places.append(interfaces.setdefault(place, len(interfaces)))
        if found := _options(packet):
            options[row] = found
    described = [Interface(linktype=linktype, name=name) for linktype, name in interfaces]
    frames = FrameBatch.of(
        data,
        time_ns=times,
        origlen=wirelens,
        interface=places,
        interfaces=described or (Interface(),),
    )
    return replace(frames, options=options) if options else frames


def _nanoseconds(time: Any) -> int:
    if isinstance(time, float):
        return round(time * 10**6) * 1000
    return round(Decimal(time) * 10**9)


def _options(packet: Any) -> tuple[Option, ...]:
    found = [Option(code=COMMENT, value=bytes_encode(text)) for text in packet.comments or ()]
    if packet.direction is not None:
        value = (packet.direction & _DIRECTION).to_bytes(4, "little")
        found.append(Option(code=_EPB_FLAGS, value=value))
    return tuple(found)
