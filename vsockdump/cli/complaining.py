"""What ``vsockdump check`` does: follow everything and print what is wrong."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from vsockdump.cli.following import Follower
from vsockdump.cli.tables import timestamp
from vsockdump.tracking.findings import Finding, Severity

STATUS: Final = {Severity.INFO: 10, Severity.WARNING: 11, Severity.ERROR: 12}
"""Exit status by the worst severity, from --fail-on up."""
_STYLES: Final[dict[Severity, dict[str, Any]]] = {
    Severity.INFO: {"dim": True},
    Severity.WARNING: {"fg": "yellow"},
    Severity.ERROR: {"fg": "red", "bold": True},
}


def show(given: dict[str, Any]) -> int:
    """Do what the options say; the exit status."""
    follower = Follower(given)
    least = Severity[given["least"].upper()]
    worst: Severity | None = None

    def tell(findings: list[Finding]) -> None:
        nonlocal worst
        for finding in findings:
            if finding.conn and not follower.chosen(finding.conn):
                continue
            worst = finding.severity if worst is None else max(worst, finding.severity)
            if finding.severity >= least:
                _print(finding, as_json=given["json_"])

    def as_it_happens(now_ns: int | None) -> None:
        if now_ns is not None:
            tell(follower.tracker.fresh(now_ns))
            sys.stdout.flush()

    follower.run(as_it_happens)
    if follower.inputs.live:
        tell(follower.tracker.fresh())
    else:
        tell(follower.tracker.findings())
    dropped = follower.tracker.findings_dropped
    if dropped:
        click.echo(f"{dropped} more findings were not kept", err=True)
    if worst is None and not given["json_"]:
        click.echo(f"nothing to complain of in {follower.packets} packets")
    follower.complain()
    if worst is None or given["fail_on"] == "never":
        return 0
    return STATUS[worst] if worst >= Severity[given["fail_on"].upper()] else 0


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(
            json.dumps(
                {
                    "code": finding.code,
                    "severity": finding.severity.label,
                    "number": finding.number or None,
                    "time": timestamp(finding.time_ns) if finding.time_ns else None,
                    "time_ns": finding.time_ns or None,
                    "conn": finding.conn or None,
                    "message": finding.message,
                    "facts": dict(finding.facts),
                }
            )
            + "\n"
        )
        return
    where = f"packet {finding.number}" if finding.number else "capture"
    if finding.conn:
        where += f", conn {finding.conn}"
    # click takes the color away again where standard output is no terminal.
    severity = click.style(f"{finding.severity.label:7}", **_STYLES[finding.severity])
    click.echo(f"{severity} {finding.code}: {finding.message} ({where})")
