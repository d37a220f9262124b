"""``vsockdump credit``: windows and stalls of each connection; ``account`` shows them."""

from __future__ import annotations

from typing import Any, Final

import click

from vsockdump.cli import options
from vsockdump.cli.command import CONTEXT, Number

_LIMIT: Final = 20


@click.command(context_settings=CONTEXT)
@click.option(
    "--limit",
    type=Number(),
    metavar="COUNT",
    default=_LIMIT,
    show_default=True,
    help="Show at most so many connections, those stalled longest first.",
)
@options.shared
def credit(**given: Any) -> int:
    """Account for the credit of each connection: windows, stalls, who did not read, for how long.

    Reads FILE ('-': standard input), or watches a device with -i until interrupted. FILTER selects
    connections that have a packet which passes it.
    """
    from vsockdump.cli.account import show

    return show(given)
