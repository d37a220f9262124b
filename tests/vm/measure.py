"""What capturing costs: vsock_perf alone, beside tcpdump and beside vsockdump; inside the test VM.

The three take turns for several rounds, so that whatever else the machine does hits all. A capture
is as a user starts it who gives no options, with a ring of the same size for both, into memory;
its CPU is told apart from what starting and ending take, which on an emulated processor is much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from vsockdump.sources.live import RING_BYTES

from . import capture, cost, kernel_suite
from .agent import Context
from .peers import wait_for_quiet

ROUNDS = 3
WAYS = ("uncaptured", "tcpdump", "vsockdump")
SETTLE = capture.TCPDUMP_SETTLE
"""Seconds for which a capture goes on after the traffic: then nothing is left in its ring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic of vsock_perf: how many bytes, and its sender's options."""

    size: int
    options: tuple[str, ...] = ()


LOADS = {
    "bulk": Load(size=128 << 20),
    "small": Load(size=8 << 20, options=("--buf-size", "256")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run: both sides' Gbit/s, and of its capture, where there was one, what it had and took.

    ``cpu`` is in seconds from when it listens, ``whole_cpu`` from its start to its end.
    """

    way: str
    received: int
    rx: float
    tx: float
    captured: int = 0
    dropped: int = 0
    cpu: float = 0.0
    whole_cpu: float = 0.0
    memory: float = 0.0


def _tool(context: Context, way: str) -> capture.Tool:
    if way == "tcpdump":
        return capture.tcpdump(context, "captured", ring_kib=RING_BYTES >> 10)
    return capture.writing(context, "captured.pcapng", forked=False)


def _sample(context: Context, load: Load, way: str) -> Sample:
    """One run of vsock_perf, captured in one way."""
    wait_for_quiet()
    if way == "uncaptured":
        return Sample(way=way, **kernel_suite.perf_rates(context, load.size, *load.options))
    tool = _tool(context, way)
    with tool:
        begin = cost.cpu_seconds(tool.process.pid)
        rates = kernel_suite.perf_rates(context, load.size, *load.options)
        time.sleep(SETTLE)
        whole = cost.cpu_seconds(tool.process.pid)
        memory = cost.peak_mib(tool.process.pid)
        # Nobody else's child ends meanwhile.
        ended = cost.children_seconds()
        status = tool.stop()
        ended = cost.children_seconds() - ended
    if status:
        raise RuntimeError(f"{way} ended with status {status}: {tool.text()}")
    counts = capture.counts(tool.text())
    for file in context.work.iterdir():
        file.unlink()
    return Sample(
        way=way,
        captured=counts["captured"],
        dropped=counts["dropped by kernel"],
        cpu=whole - begin,
        whole_cpu=ended,
        memory=memory,
        **rates,
    )


def _measure(context: Context, *, load: Load) -> None:
    samples: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        samples += [asdict(_sample(context, load, way)) for way in WAYS]
    context.write("samples.json", samples)


SCENARIOS: dict[str, Callable[[Context], None]] = {
    f"measure-{name}": partial(_measure, load=load) for name, load in LOADS.items()
}
"""Carried out on the kernel that the suite's source belongs to, when asked for."""
