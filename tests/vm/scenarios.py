"""What the agent can be asked to do, by name; runs inside the test VM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from . import capture, demo, filtering, kernels, live, measure, tracking
from .agent import Context
from .bundle import BUNDLED, Bundled
from .peers import wait_for_quiet

Scenarios = Mapping[str, Callable[[Context], None]]


def _bundle(context: Context, *, row: Bundled) -> None:
    file = row.file(kernels.kept_kernel_of(context.release).series)
    options = ["-s", str(row.snaplen)] if row.snaplen else []
    wait_for_quiet()
    with capture.writing(context, file, *options, forked=False) as tool:
        truth = row.make(context)
    context.keep(file)
    context.write("truth.json", truth.as_json())
    context.write("made.json", {"file": file, "command": tool.shown(file)})
    context.write("counts.json", capture.counts(tool.text()))


EVERYWHERE: Scenarios = {
    **live.SCENARIOS,
    **tracking.SCENARIOS,
    **filtering.SCENARIOS,
    **live.LAST_SCENARIOS,
}
"""What the tests have carried out on every kernel, in this order."""
WITH_SUITE: Scenarios = live.SUITE_SCENARIOS
"""What they have carried out besides on the kernel that the suite's source belongs to."""
SCENARIOS: Scenarios = {
    **EVERYWHERE,
    **WITH_SUITE,
    **demo.SCENARIOS,
    **measure.SCENARIOS,
    **{row.scenario: partial(_bundle, row=row) for row in BUNDLED},
}
"""All that there is."""
