"""The options that ``conns``, ``credit`` and ``check`` share; ``following`` is what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from vsockdump.cli.command import Number, once
from vsockdump.tracking.limits import MAX_CONNECTIONS, STALL_THRESHOLD_NS

MS: Final = 1_000_000
"""Nanoseconds of a millisecond."""
_F = TypeVar("_F", bound=Callable[..., Any])


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
        click.option("-F", "filter_file", metavar="FILE", help="Read the filter from this file."),
        click.option(
            "-c", "count", type=Number(), metavar="COUNT", help="End after so many packets."
        ),
        click.option(
            "-B",
            "--buffer-size",
            "buffer",
            type=Number(),
            metavar="KIB",
            help="Size of the ring that the kernel fills.",
        ),
        click.option("--create", is_flag=True, help="Make the device if missing, remove it after."),
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
