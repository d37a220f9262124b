"""The tcpdump-like command: capture or read, filter, print or write.

Options mean what tcpdump's mean wherever tcpdump has them.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from vsockdump import __version__
from vsockdump.cli.command import CONTEXT, DumpCommand, Number, section
from vsockdump.cli.inputs import Inputs, opened
from vsockdump.cli.meter import Meter
from vsockdump.cli.output import StandardOutput
from vsockdump.cli.road import Interrupt, travel
from vsockdump.packets import PacketBatch
from vsockdump.sinks.clock import Stamp
from vsockdump.sinks.hexdump import Dump
from vsockdump.sinks.names import escape
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


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"vsockdump {__version__}")
        ctx.exit()


_input = section("Where packets come from")
_live = section("Capturing on a device")
_what = section("Which packets")
_text = section("What is printed")
_time = section("Times")
_file = section("Writing files")
_other = section("Other")


@click.command(cls=DumpCommand, context_settings=CONTEXT)
@_input(
    "-i",
    "--interface",
    "interfaces",
    multiple=True,
    metavar="DEVICE",
    help="Capture on this vsockmon device; may be given several times.",
)
@_input(
    "-r",
    "file",
    metavar="FILE",
    help="Read packets from FILE (pcap or pcapng, also compressed; '-': standard input).",
)
@_input("-D", "--list-interfaces", "list_", is_flag=True, help="List vsockmon devices and end.")
@_live("--create", is_flag=True, help="Make the device if it is missing, and remove it afterwards.")
@_live(
    "-s",
    "--snapshot-length",
    "snaplen",
    type=Number(0),
    default=0,
    metavar="BYTES",
    help="Keep so many bytes of each packet (0: all; 76 are both headers).",
)
@_live(
    "-B",
    "--buffer-size",
    "buffer",
    type=Number(),
    metavar="KIB",
    help="Size of the ring that the kernel fills.",
)
@_live(
    "--immediate-mode",
    "immediate",
    is_flag=True,
    help="Hand over each packet at once, not a block of them.",
)
@_live(
    "-Z",
    "--relinquish-privileges",
    "user",
    metavar="USER",
    help="Become this user once the device or file is open.",
)
@_what("-c", "limit", type=Number(), metavar="COUNT", help="End after so many packets.")
@_what("-F", "filter_file", metavar="FILE", help="Read the filter from FILE.")
@_what(
    "-d",
    "program",
    count=True,
    help="Print the filter's BPF program and end (-dd: as C, -ddd: as numbers).",
)
@_text("-n", "numeric", count=True, help="CIDs as numbers, not by names such as host.")
@_text("-q", "quiet", is_flag=True, help="Less: no seq, fwd and win.")
@_text(
    "-v",
    "verbose",
    count=True,
    help="More: connection, bytes in flight, window (-vv, -vvv: more still).",
)
@_text("-e", "link", is_flag=True, help="The device, and what the tap's own header says.")
@_text("-#", "--number", "numbered", is_flag=True, help="Packet numbers.")
@_text("-x", "hexadecimal", count=True, help="Payload in hex (-xx: the whole frame).")
@_text("-X", "both", count=True, help="Payload in hex and as text (-XX: the whole frame).")
@_text("-A", "ascii_", is_flag=True, help="Payload as text.")
@_text(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    metavar="[=auto|always|never]",
    help="Colors (auto: on a terminal).",
)
@_text("--json", "json_", is_flag=True, help="One JSON object a packet instead of text.")
@_text("--count", "only_count", is_flag=True, help="Nothing but how many packets there are.")
@_text("-l", "line_buffered", is_flag=True, help="Write out lines at once; they always are.")
@_time(
    "-t",
    "stamp",
    count=True,
    help="-t: none. -tt: seconds since 1970. -ttt: since the packet before. -tttt: with the date. "
    "-ttttt: since the first packet.",
)
@_time("--micro", "digits", flag_value=_MICRO, type=int, help="In microseconds.")
@_time("--nano", "digits", flag_value=_NANO, type=int, help="In nanoseconds.")
@_file(
    "-w",
    "write",
    metavar="FILE",
    help="Write packets to FILE ('-': standard output; .gz and .zst: compressed), print none.",
)
@_file("--print", "also_print", is_flag=True, help="Print packets as well.")
@_file(
    "-U",
    "--packet-buffered",
    "unbuffered",
    is_flag=True,
    help="Write each packet to the file at once.",
)
@_file(
    "--format",
    "format_",
    type=click.Choice(["pcapng", "pcap"]),
    default="pcapng",
    help="Format of the file (pcapng).",
)
@_file("--capture-comment", "comment", metavar="TEXT", help="Keep this comment in the file.")
@_file(
    "-C",
    "file_size",
    metavar="SIZE",
    help="Begin a new file after SIZE million bytes (or SIZE with k, m, g: KiB, MiB, GiB).",
)
@_file(
    "-G",
    "seconds",
    type=Number(),
    metavar="SECONDS",
    help="Begin a new file every so many seconds; its name is a format for strftime.",
)
@_file(
    "-W",
    "file_count",
    type=Number(),
    metavar="COUNT",
    help="At most so many files: with -C the oldest is written over, with -G it ends.",
)
@_other(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and end.",
)
@click.argument("expression", nargs=-1, metavar="[FILTER]")
def dump(**options: Any) -> int:
    """Print, filter and save AF_VSOCK traffic, live or from a capture file.

    Options mean what tcpdump's mean. FILTER selects packets, as in: port 1024 and op rst.
    """
    return _Run(options).run()


def _load_the_rest() -> None:
    """Import what is otherwise imported when it is used: another user may not read our files."""
    for name in (
        "isal.igzip",
        "zstandard",
        "vsockdump.filters",
        "vsockdump.sinks.jsonlines",
        "vsockdump.sinks.savefile",
        "vsockdump.tracking.tracker",
    ):
        import_module(name)


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
        self._refuse()
        with ExitStack() as stack:
            source, selects, exact = stack.enter_context(opened(self._inputs))
            if options["user"]:
                from vsockdump.privileges import drop

                _load_the_rest()
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
        if options["create"] and options["file"] is not None:
            raise click.UsageError("--create is for a device, -r reads a file")

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

    def _printer(self, source: Source) -> Any:
        options = self._options
        out = StandardOutput()
        if options["json_"]:
            from vsockdump.sinks.jsonlines import render
        else:
            several = self._inputs.live and len(source.interfaces) > 1
            render = TextPrinter(_style(options, interface=several)).render

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


def _style(options: dict[str, Any], *, interface: bool) -> TextStyle:
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
        interface=interface,
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
