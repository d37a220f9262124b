"""The tcpdump-like command: capture or read, filter, print or write.

Options mean what tcpdump's mean wherever tcpdump has them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from vsockdump import __version__
from vsockdump.cli.inputs import Inputs, opened
from vsockdump.cli.meter import Meter
from vsockdump.cli.road import Interrupt, travel
from vsockdump.packets import PacketBatch
from vsockdump.sinks.clock import Stamp
from vsockdump.sinks.hexdump import Dump
from vsockdump.sinks.text import TextPrinter, TextStyle
from vsockdump.sources import Source
from vsockdump.tracking.columns import TrackedBatch

if TYPE_CHECKING:
    from vsockdump.filters import Filter
    from vsockdump.sinks.savefile import SavefileWriter
    from vsockdump.tracking.tracker import Tracker

_NANO: Final = 9
_MICRO: Final = 6
_LIVE_LAG_NS: Final = 200_000_000
"""How late a frame may come out of the ring: a file's window of time ends no sooner after it."""


_F = TypeVar("_F", bound=Callable[..., Any])


def _count(flag: str, name: str, text: str) -> Callable[[_F], _F]:
    return click.option(flag, name, count=True, help=text)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Subcommands: conns, credit, check, device; see vsockdump SUBCOMMAND --help.",
)
@click.option("-i", "--interface", "interfaces", multiple=True, help="Capture from this device.")
@click.option("-r", "file", metavar="FILE", help="Read packets from FILE ('-': standard input).")
@click.option("-w", "write", metavar="FILE", help="Write packets to FILE ('-': standard output).")
@click.option("-c", "limit", type=click.IntRange(1), help="End after this many packets.")
@click.option("--count", "only_count", is_flag=True, help="Print only how many packets there are.")
@click.option("-F", "filter_file", type=click.Path(), help="Read the filter from this file.")
@_count("-d", "program", "Print the compiled filter and end (-dd: as C, -ddd: as numbers).")
@click.option("-D", "--list-interfaces", "list_", is_flag=True, help="List vsockmon devices.")
@click.option(
    "-s",
    "--snapshot-length",
    "snaplen",
    type=click.IntRange(0),
    default=0,
    help="Keep this many bytes of each packet (0: all).",
)
@click.option("-B", "--buffer-size", "buffer", type=click.IntRange(1), help="Ring size in KiB.")
@click.option("--immediate-mode", "immediate", is_flag=True, help="Hand packets over at once.")
@click.option("--create", is_flag=True, help="Make the device if it is missing, remove it after.")
@click.option("-Z", "--relinquish-privileges", "user", help="Become this user once it is open.")
@click.option("-n", "numeric", count=True, help="Print CIDs as numbers, not host or local.")
@click.option("-e", "link", is_flag=True, help="Print the tap's own header too.")
@click.option("-q", "quiet", is_flag=True, help="Print less.")
@_count("-v", "verbose", "Print more: the credit account (-vv, -vvv: more still).")
@_count("-x", "hexadecimal", "Print payload in hex (-xx: the whole frame).")
@_count("-X", "both", "Print payload in hex and text (-XX: the whole frame).")
@click.option("-A", "ascii_", is_flag=True, help="Print payload as text.")
@click.option("-#", "--number", "numbered", is_flag=True, help="Print packet numbers.")
@_count("-t", "stamp", "Time: -t none, -tt epoch, -ttt delta, -tttt date, -ttttt since first.")
@click.option("--micro", "digits", flag_value=_MICRO, type=int, help="Times in microseconds.")
@click.option("--nano", "digits", flag_value=_NANO, type=int, help="Times in nanoseconds.")
@click.option("-l", "line_buffered", is_flag=True, help="Write each line out at once.")
@click.option("-U", "unbuffered", is_flag=True, help="Write each packet to the file at once.")
@click.option("--print", "also_print", is_flag=True, help="Print packets even with -w.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object a packet.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    is_flag=False,
    flag_value="always",
    help="Color lines (auto: on a terminal).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["pcapng", "pcap"]),
    default="pcapng",
    help="File format of -w.",
)
@click.option("--capture-comment", "comment", help="Keep this comment in the file.")
@click.option("-C", "file_size", metavar="SIZE", help="New file after SIZE million bytes.")
@click.option("-G", "seconds", type=click.IntRange(1), help="New file every so many seconds.")
@click.option("-W", "file_count", type=click.IntRange(1), help="At most so many files.")
@click.version_option(__version__, prog_name="vsockdump")
@click.argument("expression", nargs=-1)
def dump(**options: Any) -> int:
    """Print, filter and save AF_VSOCK traffic, live or from a capture file.

    EXPRESSION selects packets, as in: port 1024 and op rst.
    """
    return _Run(options).run()


class _Run:
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
        options = self._options
        if options["list_"]:
            return _list()
        if options["program"]:
            return self._print_program()
        if options["comment"] is not None and not options["write"]:
            raise click.UsageError("--capture-comment needs -w")
        if not options["write"] and any(options[n] for n in ("file_size", "seconds", "file_count")):
            raise click.UsageError("-C, -G and -W need -w")
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
            kept = self._inputs.kept
            print(
                f"listening on {source.name}, link-type VSOCK (Linux vsock), "
                f"snapshot length {kept} bytes",
                file=sys.stderr,
            )
        elif not (self._options["json_"] or self._options["only_count"]):
            print(f"reading from file {source.name}", file=sys.stderr)

    def _walk(
        self,
        source: Source,
        interrupt: Interrupt,
        selects: Filter | None,
        tracker: Tracker | None,
        writer: SavefileWriter | None,
    ) -> int:
        options = self._options
        show = self._printer() if self._prints else None
        meter = Meter(source, shown=show is None)
        live = self._inputs.live
        packets = 0
        try:
            for batch, tracked in travel(
                source, interrupt, tracker=tracker, selects=selects, limit=options["limit"]
            ):
                packets += len(batch)
                if writer is not None:
                    writer.write(batch.frames, time.time_ns() - _LIVE_LAG_NS if live else None)
                    if writer.finished:
                        break
                if show is not None:
                    show(batch, tracked)
                meter.show(packets)
        finally:
            meter.clear()
            if writer is not None:
                writer.close(source.statistics(), source.interfaces)
        return packets

    def _printer(self) -> Any:
        options = self._options
        out = sys.stdout.buffer
        prompt = options["line_buffered"] or sys.stdout.isatty()
        if options["json_"]:
            from vsockdump.sinks.jsonlines import render
        else:
            render = TextPrinter(_style(options)).render

        def show(batch: PacketBatch, tracked: TrackedBatch | None) -> None:
            out.write(render(batch, tracked))
            # Nothing arrives: a reader behind a pipe need not wait for a full buffer.
            if prompt or not len(batch):
                out.flush()

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


def _style(options: dict[str, Any]) -> TextStyle:
    wanted = Dump(
        hexadecimal=bool(options["hexadecimal"] or options["both"]),
        text=bool(options["both"] or options["ascii_"]),
        whole=options["hexadecimal"] > 1 or options["both"] > 1,
    )
    color = options["color"]
    return TextStyle(
        numeric=bool(options["numeric"]),
        verbose=min(options["verbose"], 3),
        quiet=options["quiet"],
        link=options["link"],
        numbered=options["numbered"],
        stamp=Stamp(min(options["stamp"], max(Stamp))),
        digits=options["digits"] or (None if options["file"] else _MICRO),
        dump=wanted if wanted.hexadecimal or wanted.text else None,
        color=color == "always" or (color == "auto" and sys.stdout.isatty()),
    )


def _list() -> int:
    from vsockdump.device import list_devices

    for place, found in enumerate(list_devices(), 1):
        click.echo(f"{place}.{found.name} [{'Up' if found.up else 'Down'}]")
    return 0
