"""Raw frames in batches: bytes, times and lengths as columns, before anyone looks inside.

A source makes FrameBatches, decode reads them, a savefile sink writes them. Rows point into one
shared buffer by offset, so selecting rows copies no payload.

Invariants:

- every frame lies inside ``buf``: ``offset + caplen <= buf.size - SLACK``. The slack bytes behind
  the last frame belong to nobody; they let fixed-width columns be gathered without a length check
  per row (decode blanks what lies past a frame's end);
- time is integer nanoseconds since the epoch, UTC;
- a batch is valid until its source is asked for the next one, because sources reuse their
  buffer. ``copy()`` is for keeping one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump import wire

SLACK: Final = 128
"""Readable bytes a source guarantees behind the last frame of ``buf``."""

_HELD: Final = 24 << 20
"""Just below the 32 MiB up to which glibc lets the size of a freed block move its limits."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One pcapng option of a packet: its code, and its value with integers little-endian."""

    code: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a pcapng section header says of where it was made; empty where it says nothing."""

    hardware: str = ""
    os: str = ""
    application: str = ""
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatistics:
    """Counters of one interface; None where nobody counted. Packets, and nanoseconds."""

    received: int | None = None
    dropped: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Where frames came from: link type, snapshot length in bytes (0: none), names, section."""

    linktype: int = wire.LINKTYPE_VSOCK
    snaplen: int = 0
    name: str = ""
    description: str = ""
    filter: str = ""
    os: str = ""
    comments: tuple[str, ...] = ()
    section: Section = Section()
    nanoseconds: bool = True
    """Whether the source's clock is finer than microseconds (text prints that many digits)."""

    @property
    def kernel(self) -> str:
        """The operating system the frames were captured on, e.g. ``Linux 6.12.117``; may be ""."""
        return self.os or self.section.os


NO_OPTIONS: Final[Mapping[int, tuple[Option, ...]]] = {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameBatch:
    """Frames as columns, each of shape (n,).

    ``buf`` uint8 (any size); ``offset`` of each frame in it, ``caplen`` (bytes present),
    ``origlen`` (bytes the frame had), ``time_ns`` and ``number`` (from 1, counted by the source)
    int64; ``interface`` int64, an index into ``interfaces``, which a source may append to, never
    change. ``options`` holds the pcapng options of the few rows that have any.
    """

    buf: Bytes
    offset: Ints
    caplen: Ints
    origlen: Ints
    time_ns: Ints
    interface: Ints
    number: Ints
    interfaces: Sequence[Interface]
    options: Mapping[int, tuple[Option, ...]] = field(default_factory=lambda: NO_OPTIONS)

    def __len__(self) -> int:
        return self.offset.size

    def frame(self, row: int) -> bytes:
        """The captured bytes of one frame."""
        start = int(self.offset[row])
        return self.buf[start : start + int(self.caplen[row])].tobytes()

    def take(self, rows: Ints | Bools | slice) -> FrameBatch:
        """The frames of ``rows`` (a mask, indices or a slice), over the same buffer."""
        kept: dict[int, tuple[Option, ...]] = {}
        if self.options:
            chosen = np.arange(len(self))[rows]
            places = np.flatnonzero(np.isin(chosen, list(self.options)))
            kept = {
                place: self.options[row]
                for place, row in zip(places.tolist(), chosen[places].tolist(), strict=True)
            }
        return replace(
            self,
            offset=self.offset[rows],
            caplen=self.caplen[rows],
            origlen=self.origlen[rows],
            time_ns=self.time_ns[rows],
            interface=self.interface[rows],
            number=self.number[rows],
            options=kept or NO_OPTIONS,
        )

    def copy(self) -> FrameBatch:
        """The same frames in a buffer of their own, packed: for keeping past the next batch."""
        ends = np.cumsum(self.caplen)
        starts = ends - self.caplen
        size = int(ends[-1]) if len(self) else 0
        buf = np.zeros(size + SLACK, np.uint8)
        for start, offset, length in zip(
            starts.tolist(), self.offset.tolist(), self.caplen.tolist(), strict=True
        ):
            buf[start : start + length] = self.buf[offset : offset + length]
        return replace(
            self,
            buf=buf,
            offset=starts,
            caplen=self.caplen.copy(),
            origlen=self.origlen.copy(),
            time_ns=self.time_ns.copy(),
            interface=self.interface.copy(),
            number=self.number.copy(),
        )

    @classmethod
    def of(
        cls,
        frames: Sequence[bytes],
        *,
        time_ns: Sequence[int] | None = None,
        origlen: Sequence[int] | None = None,
        interface: Sequence[int] | None = None,
        interfaces: Sequence[Interface] = (Interface(),),
        first_number: int = 1,
    ) -> FrameBatch:
        """A batch of these frames, for scripts and tests; times default to 0."""
        count = len(frames)
        caplen = np.fromiter(map(len, frames), np.int64, count)
        zeros = np.zeros(count, np.int64)
        return cls(
            buf=np.frombuffer(b"".join(frames) + bytes(SLACK), np.uint8),
            offset=np.cumsum(caplen) - caplen,
            caplen=caplen,
            origlen=caplen.copy() if origlen is None else np.array(origlen, np.int64),
            time_ns=zeros if time_ns is None else np.array(time_ns, np.int64),
            interface=zeros if interface is None else np.array(interface, np.int64),
            number=np.arange(first_number, first_number + count, dtype=np.int64),
            interfaces=interfaces,
        )


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed columns instead of giving it back to the kernel.

    Columns of one batch, some hundred KiB each, are freed and wanted again a moment later. As long
    as glibc takes them for rare giants each costs a hundred page faults, more than all the copying.
    Freeing one bigger block tells it otherwise (see M_MMAP_THRESHOLD in mallopt(3)); the block
    itself is never touched, so it costs no memory.
    """
    np.empty(_HELD, np.uint8)


def gather(buf: Bytes, offsets: Ints, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Records of ``dtype`` read at ``offsets`` (any alignment), shape (n,).

    Fancy indexing of an opaque void type copies each record with one memcpy, twenty times
    cheaper than the same indexing on a structured type.
    """
    width = dtype.itemsize
    if buf.size < width:
        return np.zeros(offsets.size, dtype)
    void = np.ndarray((buf.size - width + 1,), f"V{width}", buf, strides=(1,))
    return void[offsets].view(dtype)
