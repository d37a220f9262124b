"""Runs the kernel's own vsock tests (see suite.py) on loopback; inside the test VM."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from . import guard, suite
from .agent import Context
from .truth import Truth

CONTROL_PORT = 1400
"""TCP port over which both sides of a test agree."""
SECONDS = 90
DIAG_SKIPPED = ("2",)
"""vsock_diag_test's last test counts the sockets of one side; on loopback both sides are here."""
BULKY = ("big message", "invalid buffer", "MSG_ZEROCOPY", "multiple connections")
"""Tests that a small capture leaves out: they move much, or repeat themselves."""
PERF_BYTES = 16 << 20

_TEST = re.compile(r"^(\d+) - (.*?)\.\.\.(\S*)", re.M)


def outcomes(text: str) -> dict[str, str]:
    """Each test's name and what its side said of it: ok, skipped or what went wrong."""
    return {f"{number} - {name}": said for number, name, said in _TEST.findall(text)}


def run_pair(context: Context, program: str, skip: tuple[str, ...] = ()) -> dict[str, str]:
    """Run both sides of vsock_test or vsock_diag_test on loopback; what came of each test."""
    guard.require_test_vm()
    path = str(suite.program(context.release, program))
    skipped = [f"--skip={number}" for number in skip]
    common = [f"--control-port={CONTROL_PORT}", "--peer-cid=1", *skipped]
    said = [context.results / f"{program}-{side}.log" for side in ("server", "client")]
    sides = ["--mode=server"], ["--mode=client", "--control-host=127.0.0.1"]
    running = []
    try:
        for log, side in zip(said, sides, strict=True):
            with log.open("wb") as out:
                running.append(subprocess.Popen([path, *side, *common], stdout=out, stderr=out))
            # The client does not try again when nobody listens yet.
            time.sleep(1)
        statuses = [process.wait(SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    if any(statuses):
        text = "\n".join(log.read_text(errors="replace")[-500:] for log in said)
        raise RuntimeError(f"{program} failed {statuses}: {text}")
    return outcomes(said[1].read_text(encoding="utf-8", errors="replace"))


def listed(context: Context, program: str) -> dict[str, str]:
    """The numbers of a program's tests, by name."""
    path = str(suite.program(context.release, program))
    # Having listed its tests the program exits with a failure.
    text = subprocess.run(
        [path, "--list", "--mode=client", "--peer-cid=1", "--control-port=1"]
        + ["--control-host=127.0.0.1"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    every = re.findall(r"(?:ID: )?(\d+)[\t ]+(.*)", text)
    if not every:
        raise RuntimeError(f"{path} listed no tests: {text[:200]!r}")
    return {name.strip(): number for number, name in every}


def some_tests(context: Context) -> Truth:
    """Run those tests of vsock_test that move little."""
    every = listed(context, "vsock_test")
    skip = tuple(n for name, n in every.items() if any(word in name for word in BULKY))
    truth = Truth()
    truth.notes["tests"] = run_pair(context, "vsock_test", skip)
    return truth


def perf(context: Context, size: int = PERF_BYTES) -> dict[str, int]:
    """Send `size` bytes with vsock_perf; how many its receiver says it read."""
    return {"sent": size, "received": perf_rates(context, size)["received"]}


def perf_rates(context: Context, size: int, *options: str) -> dict[str, Any]:
    """The same, the sender having these options; bytes received, and either side's Gbit/s."""
    guard.require_test_vm()
    path = str(suite.program(context.release, "vsock_perf"))
    port = ["--port", "1500"]
    log: Path = context.results / "vsock_perf.log"
    with log.open("wb") as out:
        receiver = subprocess.Popen([path, *port], stdout=out, stderr=out)
    try:
        time.sleep(0.5)
        said = subprocess.run(
            [path, *port, "--sender", "1", "--bytes", str(size), *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        receiver.wait(SECONDS)
    finally:
        receiver.kill()
        receiver.wait()
    said += log.read_text(errors="replace")
    found = re.search(r"total bytes received: (\d+)", said)
    rates = dict(re.findall(r"^(rx|tx) performance: (\S+) Gbits/s", said, re.M))
    return {
        "received": int(found[1]) if found else 0,
        **{side: float(rates.get(side, 0)) for side in ("rx", "tx")},
    }
