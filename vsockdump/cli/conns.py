"""``vsockdump conns``: every connection, one line each; ``connections`` shows them."""

from __future__ import annotations

from typing import Any, Final

import click

from vsockdump.cli import options
from vsockdump.cli.command import CONTEXT, Number

SORTS: Final = ("conn", "start", "duration", "bytes", "packets", "stalled", "window", "connect")


@click.command(context_settings=CONTEXT)
@click.option("--sort", type=click.Choice(SORTS), default="conn", help="Order, largest first.")
@click.option("--limit", type=Number(), metavar="COUNT", help="Show at most so many.")
@options.shared
def conns(**given: Any) -> int:
    """Show every connection: who, how long, how much, the least window, stalls.

    Reads FILE ('-': standard input), or watches a device with -i until interrupted. FILTER selects
    connections that have a packet which passes it; figures always count all packets.
    """
    from vsockdump.cli.connections import show

    return show(given)
