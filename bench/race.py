"""Run commands in turn and compare what they cost: CPU seconds, wall seconds, peak memory.

Runs alternate, so that whatever else the machine does hits both; ratios are taken pair by pair and
their median is reported with the smallest and the largest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench import page

_MIB_OF_KIB: Final = 1 / 1024
HEADS: Final = (
    *("job", "against", "CPU s", "peer's CPU s"),
    *("ratio (least - most)", "aim", "met", "MiB"),
)


class Broken(Exception):
    """A command of the benchmark failed; a benchmark of failures says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One run: CPU (user and system) and wall seconds, peak resident memory in MiB."""

    cpu: float
    wall: float
    memory: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Ours against a peer on one job; ``aim`` is the ratio to reach, of wall time if ``wall``."""

    name: str
    ours: Sequence[str]
    peer_name: str
    peer: Sequence[str]
    aim: float
    wall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out: pairs of runs in order."""

    race: Race
    ours: Sequence[Cost]
    peers: Sequence[Cost]

    @property
    def ratios(self) -> list[float]:
        """Ours to the peer's, pair by pair, ascending."""
        name = "wall" if self.race.wall else "cpu"
        pairs = zip(self.ours, self.peers, strict=True)
        return sorted(getattr(a, name) / getattr(b, name) for a, b in pairs)

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)


_ENVIRONMENT: Final = {
    # Without it tcpdump looks at the zone's file for every packet.
    "TZ": "UTC",
    # Whoever installs a Python program has it compiled; the warming run does it here.
    "PYTHONDONTWRITEBYTECODE": "",
    # numpy's linear algebra, which nobody here needs, would start threads.
    "OPENBLAS_NUM_THREADS": "1",
}


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end, its output thrown away; Broken if it fails."""
    begin = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT, **(environment or {})},
    ) as process:
        assert process.stderr is not None
        complaints = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - begin
    if process.returncode:
        raise Broken(f"{' '.join(command)}: status {process.returncode}: {complaints.decode()}")
    return Cost(
        cpu=usage.ru_utime + usage.ru_stime, wall=wall, memory=usage.ru_maxrss * _MIB_OF_KIB
    )


def compete(race: Race, rounds: int) -> Result:
    """Run both ``rounds`` times in turn, after one run each that warms the page cache."""
    for command in (race.ours, race.peer):
        run(command)
    ours, peers = [], []
    for _ in range(rounds):
        ours.append(run(race.ours))
        peers.append(run(race.peer))
    return Result(race=race, ours=ours, peers=peers)


def missing(races: Sequence[Race]) -> list[str]:
    """Peers that are not installed."""
    return sorted({r.peer[0] for r in races if shutil.which(r.peer[0]) is None})


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    rows = []
    for result in results:
        race, ratios = result.race, result.ratios
        unit = "wall" if race.wall else "cpu"
        ours = statistics.median(getattr(cost, unit) for cost in result.ours)
        peer = statistics.median(getattr(cost, unit) for cost in result.peers)
        memory = max(cost.memory for cost in result.ours)
        rows.append(
            (
                f"{race.name}{' (wall time)' if race.wall else ''}",
                f"`{race.peer_name}`",
                f"{ours:.2f}",
                f"{peer:.2f}",
                f"{result.ratio:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})",
                race.aim,
                "yes" if result.ratio <= race.aim else "**no**",
                f"{memory:.0f}",
            )
        )
    return page.table(HEADS, rows)
