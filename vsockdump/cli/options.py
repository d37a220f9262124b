"""Options of more than one command.

``shared`` are those that ``conns``, ``credit`` and ``check`` have alike; ``following`` is what they
do. The others are spelled here for the tcpdump-like command too, which has them made by section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from vsockdump.cli.command import Number, once
from vsockdump.tracking.limits import MAX_CONNECTIONS, STALL_THRESHOLD_NS

MS: Final = 1_000_000
"""Nanoseconds of a millisecond."""
_F = TypeVar("_F", bound=Callable[..., Any])
Maker = Callable[..., Callable[[Any], Any]]
"""Makes an option, as click.option does."""


def count(option: Maker = click.option) -> Callable[[Any], Any]:
    """How many packets are enough."""
    return option("-c", "count", type=Number(), metavar="COUNT", help="End after so many packets.")


def filter_file(option: Maker = click.option) -> Callable[[Any], Any]:
    """Where a filter is written down."""
    return option("-F", "filter_file", metavar="FILE", help="Read the filter from FILE.")


def ring(option: Maker = click.option) -> Callable[[Any], Any]:
    """How large the ring of a device is."""
    return option(
        "-B",
        "--buffer-size",
        "buffer",
        type=Number(),
        metavar="KIB",
        help="Size of the ring that the kernel fills.",
    )


def create(option: Maker = click.option) -> Callable[[Any], Any]:
    """Whether a device may be made."""
    return option(
        "--create", is_flag=True, help="Make the device if it is missing, and remove it afterwards."
    )


def shared(command: _F) -> _F:
    """Give a command the options that all three take."""
    for option in (
        click.argument("words", nargs=-1, metavar="[FILE] [FILTER]..."),
        click.option("--json", "json_", is_flag=True, help="Print one JSON object a line."),
        click.option(
            "--max-connections",
            type=Number(),
            default=MAX_CONNECTIONS,
            show_default=True,
            metavar="COUNT",
            help="Remember at most so many connections.",
        ),
        click.option(
            "--stall-threshold",
            "threshold",
            type=Number(0),
            default=STALL_THRESHOLD_NS // MS,
            show_default=True,
            metavar="MS",
            help="A stall counts from so many milliseconds on.",
        ),
        click.option(
            "-r",
            "file",
            multiple=True,
            callback=once,
            metavar="FILE",
            help="Read packets from FILE: the same as to name it first.",
        ),
        filter_file(),
        count(),
        ring(),
        create(),
        click.option(
            "-i",
            "--interface",
            "interfaces",
            multiple=True,
            metavar="DEVICE",
            help="Watch this vsockmon device; may be given several times.",
        ),
    ):
        command = option(command)
    return command
