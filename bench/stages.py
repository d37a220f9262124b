"""Where our own time goes: CPU nanoseconds a packet of each stage on the road, by job.

``python -m bench.stages`` reads inputs that ``python -m bench`` made. Stages are timed between
batches, so their sum is what the job costs but for start-up; of several runs the least counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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


def lines() -> Iterator[str]:
    """A table: jobs and their stages."""
    yield "| ns a packet | " + " | ".join(STAGES) + " | sum |"
    yield "|---|" + "---|" * (len(STAGES) + 1)
    for job, name in JOBS.items():
        least = min((spent(job, DATA / name) for _ in range(RUNS)), key=lambda s: sum(s.values()))
        cells = [f"{least[stage]:.0f}" for stage in STAGES] + [f"{sum(least.values()):.0f}"]
        yield f"| {job} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    keep_freed_memory()
    for line in lines():
        print(line)
        sys.stdout.flush()
