"""Where our own time goes: CPU nanoseconds a packet of each stage on the road, by job.

``python -m bench.stages`` reads inputs that ``python -m bench`` made, and with --write puts its
table into docs/performance.md. Stages are timed between batches, so their sum is what the job costs
but for start-up; of several runs the least counts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import click

from bench.page import measured_with, table, write_part
from vsockdump.frames import keep_freed_memory
from vsockdump.packets import decode
from vsockdump.sinks import jsonlines
from vsockdump.sinks.clock import Stamp
from vsockdump.sinks.text import TextPrinter, TextStyle
from vsockdump.sources.savefile import Savefile
from vsockdump.tracking.tracker import Tracker

DATA: Final = Path(__file__).parent / "data" / "1"
RUNS: Final = 3
STAGES: Final = ("read", "decode", "track", "print")
JOBS: Final = {
    "decode": "1m.pcapng",
    "text": "1m.pcapng",
    "text -vv": "1m.pcapng",
    "JSON": "1m.pcapng",
    "connections": "1m.pcapng",
    "text, 100,000 connections": "c100k.pcapng",
    "connections, 100,000 of them": "c100k.pcapng",
}


def spent(job: str, path: Path) -> dict[str, float]:
    """Nanoseconds a packet of each stage, in one run."""
    verbose = 2 if "-vv" in job else 0
    printer = TextPrinter(TextStyle(numeric=True, stamp=Stamp.EPOCH, verbose=verbose))
    tracker = Tracker(report="connections," in f"{job}," or verbose > 1, findings=False)
    totals, packets, mark = dict.fromkeys(STAGES, 0.0), 0, time.process_time()

    def lap(stage: str) -> None:
        nonlocal mark
        now = time.process_time()
        totals[stage] += now - mark
        mark = now

    for frames in Savefile(path).batches():
        lap("read")
        batch = decode(frames)
        packets += len(batch)
        lap("decode")
        if job == "decode":
            continue
        tracked = tracker.feed(batch)
        lap("track")
        if job.startswith("text"):
            printer.render(batch, tracked)
        elif job == "JSON":
            jsonlines.render(batch, tracked)
        lap("print")
    return {stage: total / packets * 1e9 for stage, total in totals.items()}


def stages(job: str) -> list[str]:
    """A row of the table."""
    path = DATA / JOBS[job]
    least = min((spent(job, path) for _ in range(RUNS)), key=lambda s: sum(s.values()))
    return [job, *(f"{ns:.0f}" for ns in (*least.values(), sum(least.values())))]


@click.command()
@click.option("--write", is_flag=True, help="Put the table into docs/performance.md.")
def main(write: bool) -> None:
    """Measure the stages of our own road."""
    keep_freed_memory()
    rows = [stages(job) for job in JOBS]
    text = "\n\n".join(
        [
            measured_with("python -m bench.stages", {}) + " CPU nanoseconds a packet.",
            table(["job", *STAGES, "sum"], rows),
        ]
    )
    print(text)
    if write:
        write_part("stages", text)


if __name__ == "__main__":
    main()
