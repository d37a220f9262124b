"""What the agent can be asked to do, by name; runs inside the test VM."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import capture, nested
from .agent import Context
from .bundle import BUNDLED, EXTENSION, Bundled

Scenario = Callable[[Context], None]


def _bundle(context: Context, *, row: Bundled) -> None:
    file = f"capture.{EXTENSION}"
    with capture.tcpdump(context, file, snaplen=row.snaplen) as tool:
        truth = row.make()
    context.keep(file)
    context.write("truth.json", truth.as_json())
    context.write("made.json", {"file": file, "command": tool.shown(file)})
    context.write("counts.json", capture.counts(tool.text()))


def _host_and_guest(context: Context) -> None:
    file = f"capture.{EXTENSION}"
    with capture.tcpdump(context, file) as tool:
        truth = nested.converse(context)
    context.keep(file)
    context.write("truth.json", truth.as_json())
    context.write("counts.json", capture.counts(tool.text()))


SCENARIOS: dict[str, Scenario] = {
    "host-and-guest": _host_and_guest,
    **{row.scenario: partial(_bundle, row=row) for row in BUNDLED},
}
