"""The tcpdump-like command's own manners: help in sections, examples, the other commands' names.

Options of one section stand together in --help; a number on the command line is told apart from a
typing error in words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of every command."""

LINK_TYPE: Final = "VSOCK (Linux vsock)"
"""The link type of vsockmon devices, as tcpdump names it."""

EXAMPLES: Final = (
    ("vsockdump -D", "which devices there are"),
    ("vsockdump -i vsockmon0 --create", "capture and print; needs root"),
    ("vsockdump -i vsockmon0 -w trace.pcapng", "capture into a file"),
    ("vsockdump -r trace.pcapng -v cid 3 and port 1024", "one guest's port, with windows"),
    ("vsockdump -nnXr trace.pcapng -c 10", "ten packets with their payload"),
    ("vsockdump -r trace.pcapng --json | jq .op", "packets as JSON"),
    ("ssh host vsockdump -i vsockmon0 -U -w - | vsockdump -r -", "from afar"),
)


class Option(click.Option):
    """An option that stands in a section of --help."""

    def __init__(self, *args: Any, section: str = "Other", **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """What --help says; a value that can only follow ``=`` stands right behind the name."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(" [=", "[="), record[1])


def section(title: str) -> Callable[..., Callable[[Any], Any]]:
    """What makes options of this section, as click.option does."""
    return partial(click.option, cls=Option, section=title)


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType


class Number(_IntType):
    """A whole number from ``least`` up."""

    name = "number"

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error."""
        text = str(value)
        if not (text.isascii() and text.isdigit() and int(text[:19]) >= self.least):
            self.fail(f"needed a whole number from {self.least} up, had {text!r}", param, ctx)
        if len(text) > 18:
            self.fail(f"{text!r} is too large", param, ctx)
        return int(text)


def once(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The value of an option that may be typed once; the callback of one that is ``multiple``.

    Of two files to read the first would otherwise be left out without a word.
    """
    if len(given) > 1:
        raise click.UsageError(f"{param.opts[0]} is given {len(given)} times: name one FILE", ctx)
    return given[0] if given else None


class DumpCommand(click.Command):
    """The command that vsockdump is without a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; ``--color`` takes a value after ``=`` alone, so that a filter may follow it."""
        end = args.index("--") if "--" in args else len(args)
        plain = ["--color=always" if arg == "--color" else arg for arg in args[:end]]
        return super().parse_args(ctx, plain + args[end:])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The ways to call it."""
        name = ctx.command_path
        formatter.write_usage(name, "[-i DEVICE] [OPTIONS] [FILTER]")
        formatter.write_usage(name, "-r FILE [OPTIONS] [FILTER]", prefix=" " * len("Usage: "))
        formatter.write_usage(name, "SUBCOMMAND ...", prefix=" " * len("Usage: "))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Subcommands first, for nothing else tells of them; then the options by section."""
        from vsockdump.cli import SUBCOMMANDS, load

        with formatter.section("Subcommands"):
            formatter.write_dl(
                [(name, load(name).get_short_help_str(limit=100)) for name in SUBCOMMANDS]
            )
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples."""
        formatter.write_paragraph()
        formatter.write_heading("Examples")
        for line, says in EXAMPLES:
            formatter.write(f"  # {says}\n  {line}\n")
