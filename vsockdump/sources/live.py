"""Capture live: the packet rings of one or more vsockmon devices as one source.

Strategy: everything is made ready before any socket is bound (filter, ring, memory; and this module
has imported what a capture needs), because the kernel starts to fill rings at that moment. A batch
is what is ready in all rings, the ring memory itself being its buffer; blocks go back to the
kernel when the consumer asks for the next batch.

Invariants:

- frames of one interface come in the kernel's order, with its nanosecond times. Frames of several
  interfaces are put in order of time within a batch;
- ``stop`` only leaves a note (a flag, and an event to wake the reader): it may be called from a
  signal handler or another thread, and no wake-up is lost;
- an end, by ``stop`` or by a failing interface, first shuts the door (a filter that rejects every
  frame), then delivers what is in the rings, so it comes even while traffic goes on.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import numpy as np

from vsockdump import __version__, device, wire
from vsockdump.errors import CaptureError
from vsockdump.frames import (
    FrameBatch,
    Interface,
    InterfaceStatistics,
    Ints,
    Section,
    keep_freed_memory,
)
from vsockdump.privileges import setcap_command
from vsockdump.sources.packetsocket import REJECT, PacketSocket, Program, snapped
from vsockdump.sources.ring import Geometry, Region, Ring, columns, geometry

RING_BYTES: Final = 8 << 20
"""Ring of each interface: a tenth of a second of the fastest traffic measured."""
TICK_MS: Final = 100
"""How often an idle capture yields an empty batch, in milliseconds."""
RETIRE_MS: Final = 50
"""How long a frame may wait in a block that is not full, in milliseconds."""
IMMEDIATE_RETIRE_MS: Final = 4
"""The same in immediate mode: about a clock tick of older kernels, below what people notice."""
ROWS: Final = 8192
"""Frames to a batch, where so many are ready: large enough for columns, small enough for caches."""
_DRAIN_S: Final = 1.0
"""Bound on waiting for the last block at the end; it comes within RETIRE_MS and a tick or two."""
_DRAIN_STEP_S: Final = 0.002


class LiveCapture:
    """A Source of what passes vsockmon devices from its making on.

    ``interfaces`` describes each device; ``batches()`` ends after ``stop()``, or with a
    CaptureError when a device goes down or away, in both cases after the last frame. Every
    reason why capturing cannot begin is a CaptureError of one line.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        snaplen: int = 0,
        ring_bytes: int = RING_BYTES,
        immediate: bool = False,
        program: Program | None = None,
        filter_text: str = "",
        hardware_types: Collection[int] = (wire.ARPHRD_VSOCKMON,),
    ) -> None:
        """Capture from the devices ``names``, each with a ring of at least ``ring_bytes``.

        ``snaplen`` is the most bytes to keep of a frame (0: all). ``immediate`` hands frames over
        within IMMEDIATE_RETIRE_MS instead of RETIRE_MS. ``program`` is a classic BPF program that
        the kernel applies from the first frame on, ``filter_text`` what it was made from, for the
        record. ``hardware_types`` are the ARPHRD_* taken; others than vsockmon's are for tests.
        """
        keep_freed_memory()
        if not names:
            raise CaptureError("no interface to capture from")
        for name in names:
            if names.count(name) > 1:
                raise CaptureError(f"{name} is given twice: every packet would be captured twice")
        self.name = ", ".join(names)
        self.interfaces: Sequence[Interface] = _describe(names, snaplen, filter_text)
        self._sockets: list[PacketSocket] = []
        self._rings: list[Ring] = []
        self._seen = 0
        self._failure: CaptureError | None = None
        self._stopping = False
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._region = Region(0)
        self._start_ns = self._end_ns = 0
        try:
            for name in names:
                with _explained(name):
                    opened = PacketSocket(name)
                    self._sockets.append(opened)
                    hardware_type = opened.hardware_type()
                if hardware_type not in hardware_types:
                    raise CaptureError(
                        f"{name} is not a vsockmon device (hardware type {hardware_type})"
                    )
            shape = geometry(ring_bytes)
            retire_ms = IMMEDIATE_RETIRE_MS if immediate else RETIRE_MS
            self._make_rings(shape, retire_ms, snapped(program, snaplen))
            self._start_ns = time.time_ns()
            for opened in self._sockets:
                with _explained(opened.name):
                    opened.bind()
        except BaseException:
            self._discard()
            raise

    def _make_rings(self, shape: Geometry, retire_ms: int, program: Program | None) -> None:
        """Make each socket ready to be bound."""
        total = shape.size * len(self._sockets)
        with _explained(self.name, total):
            self._region = Region(total)
        for index, opened in enumerate(self._sockets):
            begin = index * shape.size
            if program is not None:
                with _explained(opened.name, instructions=len(program)):
                    opened.attach(program)
            with _explained(opened.name, shape.size):
                opened.make_ring(shape, retire_ms)
                self._region.place(begin, shape.size, opened.fileno())
            self._rings.append(Ring(self._region.bytes, begin, shape))
            self._poll.register(opened.fileno(), select.POLLIN)

    def batches(self) -> Iterator[FrameBatch]:
        """Yield what arrives; an empty batch every TICK_MS while nothing does."""
        try:
            while not (self._stopping or self._failure or self._closed):
                batch = self._take()
                if batch is not None:
                    yield batch
                    self._release()
                elif not self._wait():
                    yield self._batch([np.zeros(0, np.int64)], [0])
            yield from self._drain()
        finally:
            self._release()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End ``batches()`` after what has arrived by now; safe in a signal handler."""
        self._stopping = True
        if not self._closed:
            os.eventfd_write(self._wake, 1)

    def statistics(self) -> Mapping[int, InterfaceStatistics]:
        """Packets that passed the filter (received, with the dropped ones) and those dropped."""
        if not self._closed:
            self._count()
        return {
            index: InterfaceStatistics(
                received=counted.received,
                dropped=counted.dropped,
                start_ns=self._start_ns,
                end_ns=self._end_ns,
            )
            for index, counted in enumerate(self._sockets)
        }

    def close(self) -> None:
        """Give back sockets and rings; batches that are still held then read as zeros."""
        if not self._closed:
            self._count()
            self._discard()

    def _discard(self) -> None:
        self._closed = True
        for opened in self._sockets:
            opened.close()
        self._region.clear()
        os.close(self._wake)

    def _count(self) -> None:
        for opened in self._sockets:
            opened.count()
        self._end_ns = time.time_ns()

    def _take(self) -> FrameBatch | None:
        """What is ready in all rings, None where nothing is."""
        headers: list[Ints] = []
        counts = []
        for ring in self._rings:
            found = ring.take(ROWS)
            headers += found
            counts.append(sum(map(len, found)))
        return self._batch(headers, counts) if headers else None

    def _batch(self, headers: Sequence[Ints], counts: Sequence[int]) -> FrameBatch:
        """A batch of the frames of these headers, ``counts`` of them from each interface."""
        at = headers[0] if len(headers) == 1 else np.concatenate(headers)
        found = columns(self._region.view, at)
        size = found.offset.size
        first = self._seen + 1
        self._seen += size
        batch = FrameBatch(
            buf=self._region.view,
            offset=found.offset,
            caplen=found.caplen,
            origlen=found.origlen,
            time_ns=found.time_ns,
            interface=np.zeros(size, np.int64),
            number=np.arange(first, first + size),
            interfaces=self.interfaces,
        )
        if len(counts) == 1:
            return batch
        batch = replace(batch, interface=np.repeat(np.arange(len(counts)), counts))
        in_order = batch.take(np.argsort(batch.time_ns, kind="stable"))
        return replace(in_order, number=batch.number)

    def _release(self) -> None:
        """Give the blocks of the last batch back."""
        around = [ring.release() for ring in self._rings]
        if any(around) and not self._closed:
            # The kernel counts in 32 bits: fetch its counters long before they wrap.
            self._count()

    def _wait(self) -> bool:
        """Wait for a block, a note from ``stop`` or a failure; False when TICK_MS passed."""
        events = self._poll.poll(TICK_MS)
        if any(event & ~select.POLLIN for _, event in events):
            for opened in self._sockets:
                try:
                    opened.check()
                except OSError as error:
                    self._failure = _lost(opened, error)
        return bool(events)

    def _drain(self) -> Iterator[FrameBatch]:
        """Let nothing more in, and yield what is in the rings."""
        for opened in [] if self._closed else self._sockets:
            opened.attach(REJECT)
        # Frames in a block that is not full are the kernel's until it retires the block.
        deadline = time.monotonic() + _DRAIN_S
        while not self._closed and any(ring.waiting() for ring in self._rings):
            batch = self._take()
            if batch is not None:
                yield batch
                self._release()
                # However long the consumer took, the last block has its time.
                deadline = time.monotonic() + _DRAIN_S
            elif time.monotonic() < deadline:
                time.sleep(_DRAIN_STEP_S)
            else:
                return


def _describe(names: Sequence[str], snaplen: int, filter_text: str) -> tuple[Interface, ...]:
    """The record of each interface, and of the machine they are on."""
    system = os.uname()
    section = Section(
        hardware=system.machine,
        os=f"{system.sysname} {system.release}",
        application=f"vsockdump {__version__}",
    )
    return tuple(
        Interface(
            snaplen=snaplen,
            name=name,
            description="vsockmon device",
            filter=filter_text,
            section=section,
        )
        for name in names
    )


@contextmanager
def _explained(name: str, ring_bytes: int = 0, instructions: int = 0) -> Iterator[None]:
    """Turn what the kernel refuses into why a capture on ``name`` cannot begin, and what to do."""
    try:
        yield
    except OSError as error:
        if instructions and error.errno == errno.ENOMEM:
            reason = f"no memory for a filter of {instructions} instructions"
            raise CaptureError(f"{name}: {reason}; raise net.core.optmem_max") from None
        raise CaptureError(f"{name}: {_reason(name, error, ring_bytes)}") from None


def _reason(name: str, error: OSError, ring_bytes: int) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"no permission to capture: run as root, or once as root: {setcap_command()}"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        there = ", ".join(found.name for found in device.list_devices())
        if there:
            return f"no such interface; vsockmon devices here: {there}"
        return f"no such interface, nor any vsockmon device; try: vsockdump device create {name}"
    if error.errno == errno.ENETDOWN:
        return f"is down; try: ip link set {name} up"
    if error.errno == errno.ENOMEM:
        return f"no memory for a ring of {ring_bytes >> 10} KiB; ask for less with -B"
    if error.errno == errno.EAFNOSUPPORT:
        return "this kernel has no packet sockets (CONFIG_PACKET)"
    return os.strerror(error.errno) if error.errno else str(error)


def _lost(opened: PacketSocket, error: OSError) -> CaptureError:
    """What happened to an interface that was captured from."""
    try:
        opened.hardware_type()
    except OSError:
        return CaptureError(f"{opened.name} was removed while capturing")
    if error.errno == errno.ENETDOWN:
        return CaptureError(f"{opened.name} went down while capturing")
    return CaptureError(f"{opened.name}: {error.strerror} while capturing")
