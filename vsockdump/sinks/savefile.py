"""Write savefiles: FrameBatches to pcapng or pcap, to a path or a pipe, in one file or several.

Strategy: an encoder makes blocks, an output takes them, a rotator says where one file ends; this
module passes things between them. Every batch is written before the next one is asked for, so no
frame is kept, and the buffer of a live ring can be written from directly.

Invariants:

- frames are written as they came: bytes, nanoseconds, original lengths, interfaces and options;
- every file is complete by itself: header, all interfaces known so far under the same ids, and the
  statistics known when it ended;
- after a failure nothing more is written, and ``close`` only closes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from vsockdump import __version__
from vsockdump.errors import VsockdumpError
from vsockdump.frames import (
    NO_OPTIONS,
    FrameBatch,
    Interface,
    InterfaceStatistics,
    keep_freed_memory,
)
from vsockdump.sinks.assemble import chunks
from vsockdump.sinks.encoder import Encoder
from vsockdump.sinks.output import CompressedOutput, Output, compressor
from vsockdump.sinks.pcap import PcapEncoder
from vsockdump.sinks.pcapng import PcapngEncoder
from vsockdump.sinks.rotation import Rotation, Rotator

APPLICATION: Final = f"vsockdump {__version__}"

Statistics = Mapping[int, InterfaceStatistics]


class SavefileWriter:
    """A sink that keeps frames: ``write`` each batch, ``close`` with the source's statistics."""

    def __init__(
        self,
        target: str | Path | int,
        *,
        format: Literal["pcapng", "pcap"] = "pcapng",
        microseconds: bool = False,
        comment: str | None = None,
        application: str = APPLICATION,
        unbuffered: bool = False,
        inputs: Collection[tuple[int, int]] = (),
        rotation: Rotation | None = None,
        statistics: Callable[[], Statistics] | None = None,
    ) -> None:
        """Open ``target``: a path, ``-`` (standard output), or a descriptor (which stays open).

        A path that ends in ``.gz`` or ``.zst`` is compressed; ``unbuffered`` (-U) ends a compressed
        member with each batch, while plain files are written through after every batch anyway.
        ``microseconds`` (pcap alone) writes the older, coarser times; ``comment`` (pcapng alone) is
        kept in the section header. ``inputs`` are (device, inode) of files being read, which are
        never overwritten. With ``rotation`` the target is the name, or format of names, that
        ``Rotator`` makes names from, and ``statistics`` is asked whenever a file ends. Raises
        VsockdumpError.
        """
        if target == "-":
            target = 1
        if rotation is not None and not rotation.rotates:
            rotation = None
        if isinstance(target, int) and rotation is not None:
            raise VsockdumpError("-C and -G need a file name to write to")
        if format == "pcap" and comment is not None:
            raise VsockdumpError("a comment needs pcapng: pcap has no place for it")
        keep_freed_memory()
        self._frames = 0
        self._size = 0
        self._encoder: Encoder = (
            PcapEncoder(microseconds=microseconds)
            if format == "pcap"
            else PcapngEncoder(application=application, comment=comment)
        )
        self._compress = None if isinstance(target, int) else compressor(str(target))
        self._unbuffered = unbuffered
        self._inputs = inputs
        self._statistics = statistics
        self._interfaces: Sequence[Interface] = ()
        self._begun = False
        self._output: Output | None = None
        self._rotator = Rotator(str(target), rotation) if rotation is not None else None
        if self._rotator is None:
            self._output = self._open(target)
        elif not self._rotator.by_time:
            self._rotator.enter(0)
            self._output = self._open(self._rotator.name)

    def __enter__(self) -> SavefileWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def frames(self) -> int:
        """Packets written so far, over all files."""
        return self._frames + (self._output.taken if self._output is not None else 0)

    @property
    def size(self) -> int:
        """Bytes written so far, over all files and before compression."""
        return self._size + (self._output.size if self._output is not None else 0)

    @property
    def finished(self) -> bool:
        """Whether nothing more will be written, because -W with -G has had its files."""
        return self._rotator is not None and self._rotator.finished

    def write(self, frames: FrameBatch, now_ns: int | None = None) -> None:
        """Write a batch; an empty one writes what is known of interfaces, and passes the time.

        ``now_ns`` is a live source's time, not ahead of the frames it has yet to give: with -G it
        ends a file whose window is over although no frame comes. Raises WriteError and
        PipeClosedError, and VsockdumpError at a frame that the format cannot hold; what is before
        it is written.
        """
        self._interfaces = frames.interfaces
        if len(frames):
            self._write(frames)
        if now_ns is not None and self._rotator is not None and self._rotator.by_time:
            self._tick(self._rotator, now_ns)
        if self._output is not None:
            self._prepare(self._output, frames)
            if self._unbuffered:
                self._output.flush()

    def close(
        self, statistics: Statistics | None = None, interfaces: Sequence[Interface] | None = None
    ) -> None:
        """Write what a file ends with, and close it; may be called twice.

        Without ``statistics`` the callable of the same name is asked. ``interfaces`` are the
        source's, when there may be some that no batch told of. Counters of an interface that is
        not described are left out. Raises as ``write`` does; after a failure it only closes.
        """
        if interfaces is not None:
            self._interfaces = interfaces
        if self._output is not None:
            self._end(self._output, statistics)

    # -- files ------------------------------------------------------------------------------

    def _open(self, target: str | Path | int) -> Output:
        self._begun = False
        if self._compress is not None:
            return CompressedOutput(target, self._compress, inputs=self._inputs)
        return Output(target, inputs=self._inputs)

    def _begin(self, output: Output) -> None:
        """Write the file's header, as far as it is known."""
        if not self._begun:
            self._begun = True
            output.put([self._encoder.begin(self._interfaces)])

    def _prepare(self, output: Output, frames: FrameBatch) -> None:
        """Write what has to be in the file before these frames."""
        self._begin(output)
        ahead = self._encoder.ahead(frames)
        if ahead:
            output.put([ahead])

    def _end(self, output: Output, statistics: Statistics | None = None) -> None:
        """Complete the file that is open, and close it."""
        try:
            if not output.broken:
                self._begin(output)
                if statistics is None:
                    statistics = self._statistics() if self._statistics is not None else {}
                output.put([self._encoder.end(self._interfaces, statistics)])
        finally:
            self._output = None
            try:
                output.close()
            finally:
                self._frames += output.taken
                self._size += output.size

    def _turn(self, rotator: Rotator, time_ns: int) -> Output | None:
        """The file that a frame of this time goes into; None if there will be no more."""
        if self._output is not None and rotator.over(time_ns):
            self._end(self._output)
            rotator.leave()
        if rotator.finished:
            return None
        if self._output is None:
            rotator.enter(time_ns)
            self._output = self._open(rotator.name)
        elif rotator.full(self._output.size) and self._output.taken:
            self._end(self._output)
            rotator.another()
            self._output = self._open(rotator.name)
        return self._output

    def _tick(self, rotator: Rotator, now_ns: int) -> None:
        """Take note of the time: open the very first file, or end one whose window is over."""
        if not rotator.started:
            self._turn(rotator, now_ns)
        elif self._output is not None and rotator.over(now_ns):
            self._end(self._output)
            rotator.leave()

    # -- frames -----------------------------------------------------------------------------

    def _write(self, frames: FrameBatch) -> None:
        """Write all rows, each to its file, up to one that the format cannot hold."""
        blocks = self._encoder.blocks(frames)
        if frames.options:
            # They are in the blocks now, and cutting a batch is cheaper without.
            frames = replace(frames, options=NO_OPTIONS)
        ends = blocks.size.cumsum()
        rotator, misfit = self._rotator, None
        row, limit = 0, len(frames)
        while row < limit:
            output = self._output
            if rotator is not None:
                output = self._turn(rotator, int(frames.time_ns[row]))
            if output is None:
                return
            self._prepare(output, frames)
            if row == 0 and (misfit := self._encoder.misfit(frames)):
                limit = misfit.row
            stop = limit
            if rotator is not None:
                stop = min(limit, rotator.stop(frames.time_ns, ends, row, output.size))
            for begin, end in chunks(frames, blocks.size, row, stop):
                if end - begin == len(frames):
                    output.put(self._encoder.encode(frames, blocks), ends)
                    break
                part, some = frames.take(slice(begin, end)), blocks.take(begin, end)
                output.put(self._encoder.encode(part, some), some.size.cumsum())
            row = stop
        if misfit is not None:
            number = int(frames.number[misfit.row])
            raise VsockdumpError(f"packet {number} cannot be written: {misfit.reason}")
