"""``vsockdump check``: what is wrong, one line a finding; ``complaining`` shows them."""

from __future__ import annotations

from typing import Any

import click

from vsockdump.cli import options
from vsockdump.cli.command import CONTEXT
from vsockdump.tracking.findings import Severity


@click.command(context_settings=CONTEXT)
@click.option(
    "--fail-on",
    type=click.Choice([*(s.label for s in Severity), "never"]),
    default=Severity.WARNING.label,
    show_default=True,
    help="The least severity that makes the exit status 10 (info), 11 (warning) or 12 (error).",
)
@click.option(
    "--severity",
    "least",
    type=click.Choice([s.label for s in Severity]),
    default=Severity.INFO.label,
    help="Show findings from this severity on.",
)
@options.shared
def check(**given: Any) -> int:
    """Look for what is wrong: stalls, resets, windows ignored, packets lost.

    Reads FILE ('-': standard input), or watches a device with -i, where findings print as they
    happen. FILTER selects connections that have a packet which passes it. docs/findings.md tells of
    every code what it means and what to do.
    """
    from vsockdump.cli.complaining import show

    return show(given)
