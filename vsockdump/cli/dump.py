"""The tcpdump-like command's options; ``dumping`` is what they do.

Options mean what tcpdump's mean wherever tcpdump has them.
"""

from __future__ import annotations

from typing import Any, Final

import click

from vsockdump import __version__
from vsockdump.cli import options
from vsockdump.cli.command import CONTEXT, LINK_TYPE, DumpCommand, Number, once, section

NANO: Final = 9
MICRO: Final = 6
"""Digits of a second."""
PRECISIONS: Final = {"micro": MICRO, "nano": NANO}


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"vsockdump {__version__}")
        ctx.exit()


def _link_types(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"Data link types:\n  {LINK_TYPE}")
        ctx.exit()


def _direction(ctx: click.Context, param: click.Parameter, given: str | None) -> None:
    if given is not None:
        raise click.UsageError(
            f"-Q {given}: the tap does not tell the direction; a filter can, as src host does", ctx
        )


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
    multiple=True,
    callback=once,
    metavar="FILE",
    help="Read packets from FILE (pcap or pcapng, also compressed; '-': standard input).",
)
@_input("-D", "--list-interfaces", "list_", is_flag=True, help="List vsockmon devices and end.")
@options.create(_live)
@_live(
    "-s",
    "--snapshot-length",
    "snaplen",
    type=Number(0),
    default=0,
    metavar="BYTES",
    help="Keep so many bytes of each packet (0: all; 76 are both headers).",
)
@options.ring(_live)
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
@options.count(_what)
@options.filter_file(_what)
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
@_time("--micro", "digits", flag_value=MICRO, type=int, help="In microseconds.")
@_time("--nano", "digits", flag_value=NANO, type=int, help="In nanoseconds.")
@_time(
    "--time-stamp-precision",
    "precision",
    type=click.Choice([*PRECISIONS]),
    help="The same as --micro or --nano.",
)
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
@_other("-p", "-K", "ignored", is_flag=True, help="Taken for tcpdump's sake, no effect.")
@_other(
    "-Q",
    "--direction",
    metavar="DIRECTION",
    expose_value=False,
    callback=_direction,
    help="Refused: the tap does not tell in from out.",
)
@_other(
    "-L",
    "--list-data-link-types",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_link_types,
    help="List the link types there are (one) and end.",
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
def dump(**given: Any) -> int:
    """Print, filter and save AF_VSOCK traffic, live or from a capture file.

    Options mean what tcpdump's mean. FILTER selects packets, as in: port 1024 and op rst.
    """
    from vsockdump.cli.dumping import Run

    return Run(given).run()
