"""``vsockdump device``: make, remove and list vsockmon devices, and tell whether capture can work.

The commands raise VsockdumpError; whoever runs them prints its line and sets the exit status.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from vsockdump import device as devices
from vsockdump import diagnosis
from vsockdump.cli.command import CONTEXT

_MARKS = {
    diagnosis.Verdict.OK: "ok  ",
    diagnosis.Verdict.NOTE: "note",
    diagnosis.Verdict.FAIL: "FAIL",
}
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group(context_settings=CONTEXT)
def device() -> None:
    """Make, remove and list vsockmon devices; see whether this machine can capture."""


@device.command(context_settings=CONTEXT, short_help="Make a vsockmon device and bring it up.")
@click.argument("name", default=devices.DEFAULT_NAME)
def create(name: str) -> None:
    """Make a vsockmon device and bring it up (NAME: vsockmon0).

    The kernel then copies every vsock packet of this machine to it. Needs root or CAP_NET_ADMIN.
    """
    devices.create(name)
    click.echo(f"{name} created, up")


@device.command(context_settings=CONTEXT, short_help="Remove a vsockmon device.")
@click.argument("name")
def delete(name: str) -> None:
    """Remove the vsockmon device NAME. A device of another kind is left alone."""
    devices.delete(name)
    click.echo(f"{name} removed")


@device.command("list", context_settings=CONTEXT, short_help="List vsockmon devices.")
@_JSON
def list_(as_json: bool) -> None:
    """List vsockmon devices: name, up or down, MTU in bytes, index."""
    found = devices.list_devices()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    if not found:
        click.echo(devices.NONE, err=True)
        return
    width = max(len(entry.name) for entry in found)
    for entry in found:
        state = "up" if entry.up else "down"
        click.echo(f"{entry.name:<{width}}  {state:<4}  mtu {entry.mtu}  index {entry.index}")


@device.command(context_settings=CONTEXT, short_help="Tell whether this machine can capture.")
@_JSON
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Tell in plain words whether this machine can capture, and what to do.

    Looks only, changes nothing. The exit status is 0 when capture can work, else 1.
    """
    checks = diagnosis.diagnose()
    works = diagnosis.can_capture(checks)
    if as_json:
        rows = [asdict(check) | {"verdict": check.verdict.value} for check in checks]
        click.echo(json.dumps({"can_capture": works, "checks": rows}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{_MARKS[check.verdict]}  {check.name:<{width}}  {check.says}")
            if check.do:
                click.echo(f"      {'':<{width}}  -> {check.do}")
        click.echo()
        click.echo("This machine can capture." if works else "This machine cannot capture now.")
    context.exit(0 if works else 1)
