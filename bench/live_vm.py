"""What capturing costs the captured traffic: ``python -m bench.live_vm``, in the test VM.

Boots the kernel that the kernel's own programs are built for, runs its vsock_perf uncaptured,
beside ``tcpdump -w`` and beside ``vsockdump -w`` in turn (tests/vm/measure.py), and prints a table;
with --write it goes into docs/performance.md. The processor is emulated: ratios say something,
times little.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.page import measured_with, table, write_part
from tests.vm import kernels, suite, vm
from tests.vm.measure import LOADS, ROUNDS, WAYS

MEMORY_AIM = 48
"""MiB that a live capture may take, with a ring of 8."""
HEADS = (
    *("vsock_perf", "captured by", "Gbit/s sent", "Gbit/s received", "of uncaptured"),
    *("packets", "dropped", "packets/s", "CPU us/packet", "against tcpdump (least - most)"),
    *("whole CPU s", "MiB", f"MiB <= {MEMORY_AIM}"),
)


def rows(load: str, samples: list[dict[str, Any]]) -> list[list[object]]:
    """The table's lines for one load: medians, packets and losses of all rounds, peak memory."""
    by_way = {way: [s for s in samples if s["way"] == way] for way in WAYS}

    def middle(way: str, name: str) -> float:
        return statistics.median(float(sample[name]) for sample in by_way[way])

    def costs(way: str) -> list[float]:
        return [1e6 * s["cpu"] / max(s["captured"], 1) for s in by_way[way]]

    lines: list[list[object]] = []
    for way, runs in by_way.items():
        line: list[object] = [load, way, f"{middle(way, 'tx'):.3f}", f"{middle(way, 'rx'):.3f}"]
        if way == "uncaptured":
            lines.append([*line, 1, *[""] * (len(HEADS) - 5)])
            continue
        shares = [
            run["rx"] / alone["rx"] for run, alone in zip(runs, by_way["uncaptured"], strict=True)
        ]
        ratios = sorted(a / b for a, b in zip(costs(way), costs("tcpdump"), strict=True))
        packets = sum(s["captured"] for s in runs)
        rate = statistics.median(
            (s["captured"] + s["dropped"]) * s["rx"] * 1e9 / (8 * s["received"]) for s in runs
        )
        memory = max(s["memory"] for s in runs)
        met = "" if way == "tcpdump" else "yes" if memory <= MEMORY_AIM else "**no**"
        lines.append(
            [
                *line,
                f"{statistics.median(shares):.2f}",
                packets,
                sum(s["dropped"] for s in runs),
                f"{rate:.0f}",
                f"{statistics.median(costs(way)):.1f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})",
                f"{middle(way, 'whole_cpu'):.1f}",
                f"{memory:.0f}",
                met,
            ]
        )
    return lines


def report(run: vm.Run, command: str) -> str:
    """The table and what it was measured with."""
    lines = []
    for load in LOADS:
        samples = vm.read_json(run.scenario(f"measure-{load}") / "samples.json")
        lines += rows(load, samples)
    qemu = ("qemu-system-x86_64", "--version")
    tools = {"tcpdump": ("tcpdump", "--version"), "QEMU": qemu}
    loads = "; ".join(
        f"{name}: `vsock_perf {' '.join(['--bytes', str(load.size), *load.options])}`"
        for name, load in LOADS.items()
    )
    about = [
        measured_with(command, tools),
        f"In the VM: Linux {run.kernel.release}, {vm.CPUS} emulated processor, no KVM.",
        f"{loads}. {ROUNDS} rounds in turn: medians, the packets and losses of all of them.",
        "CPU a packet counts from when a capture listens, whole CPU from its start to its end.",
    ]
    return "\n".join([*about, "", table(HEADS, lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    arguments = parser.parse_args()
    try:
        kernels.ensure_packages()
        kernel = kernels.ensure_kernel(suite.SERIES)
        suite.ensure_suite(kernel)
        folder = Path(tempfile.mkdtemp(prefix="vsockdump-bench-"))
        run = vm.boot(kernel, [f"measure-{load}" for load in LOADS], folder / "run")
        text = report(run, "python -m bench.live_vm")
    except (kernels.SetupError, vm.VMError) as error:
        sys.exit(str(error))
    shutil.rmtree(folder)
    print(text)
    if arguments.write:
        write_part("vm", text)


if __name__ == "__main__":
    main()
