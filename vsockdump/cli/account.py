"""What ``vsockdump credit`` does: the account of windows and stalls, with a chart."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import click

from vsockdump.cli.chart import Recorder, marks
from vsockdump.cli.following import Follower
from vsockdump.cli.tables import duration, endpoint, size
from vsockdump.tracking.report import Connection, Direction
from vsockdump.tracking.times import Stall


def show(given: dict[str, Any]) -> int:
    """Do what the options say; the exit status."""
    drawn = marks(sys.stdout.encoding)
    recorder = Recorder(drawn)
    follower = Follower(given, findings=False, watch=recorder.feed)
    follower.run()
    chosen = [c for c in follower.tracker.connections() if follower.chosen(c.conn)]
    chosen.sort(key=lambda c: -(c.client_to_server.stalled_ns + c.server_to_client.stalled_ns))
    stalls: dict[int, list[Stall]] = {}
    for stall in follower.tracker.stalls():
        stalls.setdefault(stall.conn, []).append(stall)
    shown = chosen[: given["limit"]]
    charts = 0
    for connection in shown:
        mine = stalls.get(connection.conn, [])
        if given["json_"]:
            account = dataclasses.asdict(connection)
            account["stall_list"] = [_stall(connection, stall) for stall in mine]
            sys.stdout.write(json.dumps(account) + "\n")
        else:
            charts += _print(connection, mine, recorder)
    if charts:
        click.echo(drawn.legend)
    if len(chosen) > len(shown) and not given["json_"]:
        click.echo(f"{len(chosen) - len(shown)} more connections; see --limit", err=True)
    follower.complain()
    return 0


def _stall(connection: Connection, stall: Stall) -> dict[str, Any]:
    ends = (connection.client, connection.server)
    return {
        "number": stall.number,
        "start_ns": stall.start_ns,
        "duration_ns": stall.duration_ns,
        "sender": ends[stall.sender],
        "not_reading": ends[1 - stall.sender],
        "recovered": stall.recovered,
        "end_number": stall.end_number,
    }


def _print(connection: Connection, stalls: list[Stall], recorder: Recorder) -> int:
    """Print the account of one connection; how many charts it has."""
    charts = 0
    ends = (endpoint(connection.client), endpoint(connection.server))
    life = max(connection.limited_ns + connection.in_flight_ns + connection.idle_ns, 1)
    estimated = ", estimated" if connection.estimated else ""
    click.secho(
        f"conn {connection.conn}  {ends[0]} > {ends[1]}  {connection.type}  "
        f"{connection.state}{estimated}",
        bold=True,
    )
    click.echo(
        f"  connected in {duration(connection.connect_ns)}; of {duration(life)}: "
        f"credit-limited {connection.limited_ns / life:.0%}, "
        f"data in flight {connection.in_flight_ns / life:.0%}, "
        f"idle {connection.idle_ns / life:.0%}"
    )
    for sender, way in enumerate((connection.client_to_server, connection.server_to_client)):
        _direction(ends[sender], ends[1 - sender], way)
        chart = recorder.chart(connection.conn, sender)
        if chart:
            charts += 1
            click.echo(f"    window {chart}")
        for stall in stalls:
            if stall.sender == sender:
                end = f"until packet {stall.end_number}" if stall.end_number else "to the end"
                read = "then read on" if stall.recovered else "did not read on"
                click.secho(
                    f"    STALLED {duration(stall.duration_ns)} from packet {stall.number} {end}: "
                    f"{ends[1 - sender]} was not reading, {read}",
                    fg="red",
                    bold=True,
                )
    return charts


def _direction(sender: str, receiver: str, way: Direction) -> None:
    click.echo(
        f"  {sender} > {receiver}: {size(way.bytes)} in {way.packets} packets, "
        f"at most {size(way.max_in_flight)} in flight, least window {size(way.min_window)} "
        f"(effective {size(way.min_effective_window)}), unread {size(way.unread_bytes)}"
    )
    if way.drains:
        click.echo(
            f"    drained in {duration(way.drain_median_ns)} (median), "
            f"{duration(way.drain_p99_ns)} (p99), {duration(way.drain_max_ns)} (max)"
        )
    if way.messages:
        click.echo(
            f"    {way.messages} messages of {size(way.message_min)} to {size(way.message_max)}"
        )
