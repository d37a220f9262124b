"""What the tcpdump-like command does: capture or read, filter, print or write."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from vsockdump.cli.dump import MICRO, PRECISIONS
from vsockdump.cli.inputs import Inputs, opened
from vsockdump.cli.meter import Meter
from vsockdump.cli.output import StandardOutput, unwanted_color
from vsockdump.cli.road import Interrupt, forward, travel
from vsockdump.frames import FrameBatch
from vsockdump.packets import PacketBatch
from vsockdump.sinks.names import escape
from vsockdump.sources import Source
from vsockdump.tracking.columns import TrackedBatch

if TYPE_CHECKING:
    from vsockdump.filters import Filter
    from vsockdump.sinks.savefile import SavefileWriter
    from vsockdump.sinks.text import TextPrinter
    from vsockdump.tracking.tracker import Tracker

_LIVE_LAG_NS: Final = 200_000_000
"""How late a frame may come out of the ring: a file's window of time ends no sooner after it."""


class Run:
    """One call of the command, with its options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._inputs = Inputs(
            file=options["file"],
            interfaces=options["interfaces"],
            expression=options["expression"],
            filter_file=options["filter_file"],
            snaplen=options["snaplen"],
            buffer=options["buffer"],
            immediate=options["immediate"],
            create=options["create"],
        )

    def run(self) -> int:
        """Do what the options say; the exit status."""
        options = self._options
        if options["list_"]:
            return _list()
        if options["program"]:
            return self._print_program()
        self._refuse()
        if self._inputs.live or options["user"]:
            self._load_the_rest()
        with ExitStack() as stack:
            source, selects, exact = stack.enter_context(opened(self._inputs))
            if options["user"]:
                from vsockdump.privileges import drop

                drop(options["user"])
            interrupt = Interrupt(source)
            stack.enter_context(interrupt.watched())
            writer = self._writer(source)
            self._announce(source)
            tracker = self._tracker(selects, exact)
            packets = self._walk(source, interrupt, selects, tracker, writer)
            if options["only_count"]:
                click.echo(f"{packets} packet{'' if packets == 1 else 's'}")
            self._sum_up(source, packets)
        return 0

    def _load_the_rest(self) -> None:
        """Import what is otherwise imported when it is used.

        Another user may not read our files, and while modules load nobody empties a ring.
        """
        options = self._options
        # np.unique loads the first.
        names = ["numpy.ma", "vsockdump.privileges"]
        if options["write"]:
            names += ["isal.igzip", "zstandard", "vsockdump.sinks.savefile"]
        if self._prints or options["expression"] or options["filter_file"]:
            names += ["vsockdump.filters", "vsockdump.sinks.jsonlines", "vsockdump.sinks.text"]
            names += ["vsockdump.tracking.tracker", "vsockdump.tracking.epilogue"]
        for name in names:
            import_module(name)

    def _refuse(self) -> None:
        """What makes no sense together."""
        options = self._options
        if not options["write"]:
            if options["comment"] is not None:
                raise click.UsageError("--capture-comment needs -w")
            if options["file_size"] or options["seconds"] or options["file_count"]:
                raise click.UsageError("-C, -G and -W need -w")
        if options["write"] == "-":
            if options["also_print"] or options["only_count"]:
                raise click.UsageError("--print and --count need standard output, as -w - does")
            if sys.stdout.isatty():
                raise click.UsageError("-w - writes bytes that are not for a terminal")

    def _print_program(self) -> int:
        chosen = self._inputs.selects()
        if chosen is None:
            raise click.UsageError("-d needs a filter expression")
        from vsockdump import filters

        program = chosen.bpf(self._inputs.kept)
        click.echo(filters.dump(program, self._options["program"]))
        return 0

    def _writer(self, source: Source) -> SavefileWriter | None:
        options = self._options
        if not options["write"]:
            return None
        from vsockdump.sinks.rotation import Rotation, parse_size
        from vsockdump.sinks.savefile import SavefileWriter

        size = parse_size(options["file_size"]) if options["file_size"] else None
        rotation = None
        if size or options["seconds"] or options["file_count"]:
            rotation = Rotation(size=size, seconds=options["seconds"], count=options["file_count"])
        identity = getattr(source, "identity", None)
        return SavefileWriter(
            options["write"],
            format=options["format_"],
            comment=options["comment"],
            unbuffered=options["unbuffered"],
            inputs=[identity] if identity is not None else [],
            rotation=rotation,
            statistics=source.statistics,
        )

    @property
    def _prints(self) -> bool:
        options = self._options
        return not options["only_count"] and (not options["write"] or options["also_print"])

    def _tracker(self, selects: Filter | None, exact: bool) -> Tracker | None:
        """A tracker as far as one is needed; none where the kernel filter hides half of it."""
        asked = selects is not None and selects.needs_tracking
        if not asked and not (self._prints and exact):
            return None
        from vsockdump.tracking.tracker import Tracker

        return Tracker(report=self._options["verbose"] > 1, findings=asked)

    def _announce(self, source: Source) -> None:
        """tcpdump's line about what is read, on standard error."""
        if self._inputs.live:
            self._inputs.announce(source)
        elif not (self._options["json_"] or self._options["only_count"]):
            what = "" if self._inputs.file == "-" else "file "
            print(f"reading from {what}{escape(source.name)}", file=sys.stderr)

    def _walk(
        self,
        source: Source,
        interrupt: Interrupt,
        selects: Filter | None,
        tracker: Tracker | None,
        writer: SavefileWriter | None,
    ) -> int:
        options = self._options
        show = self._printer(source) if self._prints else None
        meter = Meter(source, shown=show is None)
        live = self._inputs.live
        packets = 0
        limit = options["count"]
        road: Iterator[tuple[FrameBatch, PacketBatch | None, TrackedBatch | None]]
        if show is None and tracker is None and selects is None:
            road = ((frames, None, None) for frames in forward(source, interrupt, limit=limit))
        else:
            decoded = travel(source, interrupt, tracker=tracker, selects=selects, limit=limit)
            road = ((batch.frames, batch, tracked) for batch, tracked in decoded)
        try:
            for frames, batch, tracked in road:
                packets += len(frames)
                if writer is not None:
                    writer.write(frames, time.time_ns() - _LIVE_LAG_NS if live else None)
                    if writer.finished:
                        break
                if show is not None and batch is not None:
                    show(batch, tracked)
                meter.show(packets)
        finally:
            meter.clear()
            if writer is not None:
                writer.close(source.statistics(), source.interfaces)
        return packets

    def _printer(self, source: Source) -> Any:
        options = self._options
        out = StandardOutput()
        if options["json_"]:
            from vsockdump.sinks.jsonlines import render
        else:
            several = self._inputs.live and len(source.interfaces) > 1
            render = _text(options, interface=several).render

        def show(batch: PacketBatch, tracked: TrackedBatch | None) -> None:
            out.write(render(batch, tracked))

        return show

    def _sum_up(self, source: Source, packets: int) -> None:
        if not self._inputs.live:
            return
        counted = source.statistics().values()
        received = sum(s.received or 0 for s in counted)
        dropped = sum(s.dropped or 0 for s in counted)
        for number, text in (
            (packets, "captured"),
            (received, "received by filter"),
            (dropped, "dropped by kernel"),
        ):
            print(f"{number} packet{'' if number == 1 else 's'} {text}", file=sys.stderr)


def _text(options: dict[str, Any], *, interface: bool) -> TextPrinter:
    from vsockdump.sinks.clock import Stamp
    from vsockdump.sinks.hexdump import Dump
    from vsockdump.sinks.text import TextPrinter, TextStyle

    wanted = Dump(
        hexadecimal=bool(options["hexadecimal"] or options["both"]),
        text=bool(options["both"] or options["ascii_"]),
        whole=options["hexadecimal"] > 1 or options["both"] > 1,
    )
    color = options["color"]
    style = TextStyle(
        numeric=bool(options["numeric"]),
        verbose=min(options["verbose"], 3),
        quiet=options["quiet"],
        link=options["link"],
        interface=interface,
        numbered=options["numbered"],
        stamp=Stamp(min(options["stamp"], max(Stamp))),
        digits=options["digits"]
        or PRECISIONS.get(options["precision"])
        or (None if options["file"] else MICRO),
        dump=wanted if wanted.hexadecimal or wanted.text else None,
        color=color == "always"
        or (color == "auto" and sys.stdout.isatty() and not unwanted_color()),
    )
    return TextPrinter(style)


def _list() -> int:
    from vsockdump.device import NONE, list_devices

    devices = list_devices()
    for place, found in enumerate(devices, 1):
        click.echo(f"{place}.{found.name} [{'Up' if found.up else 'Down'}]")
    if not devices:
        click.echo(NONE, err=True)
    return 0
