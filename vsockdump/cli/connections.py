"""What ``vsockdump conns`` does: follow everything, then show a table or JSON."""

from __future__ import annotations

import sys
from typing import Any, Final

import click
import numpy as np

from vsockdump.cli.following import Follower
from vsockdump.cli.tables import duration, endpoint, size, table
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.report import Connection, objects, records

_HEADER: Final = (
    "CONN",
    *("CLIENT", "SERVER", "TYPE", "STATE"),
    *("DURATION", "BYTES >", "BYTES <", "PKTS >", "PKTS <", "MIN WIN", "STALLS"),
)
_STALLED: Final = {"fg": "red", "bold": True}
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "refused": {"fg": "red"},
    "reset": {"fg": "red", "bold": True},
    "established": {"fg": "green"},
    "connecting": {"fg": "yellow"},
    "closed": {"dim": True},
}
_DIRECTIONS: Final = ("client_to_server", "server_to_client")


def show(given: dict[str, Any]) -> int:
    """Do what the options say; the exit status."""
    follower = Follower(given, findings=False)
    follower.run()
    columns = follower.tracker.columns()
    rows = np.flatnonzero(follower.mask(columns["conn"]))
    rows = rows[_order(columns, rows, given["sort"])][: given["limit"]]
    chosen = {name: column[rows] for name, column in columns.items()}
    if given["json_"]:
        import json

        for record in records(chosen):
            sys.stdout.write(json.dumps(record) + "\n")
    else:
        _table(objects(chosen))
        left = follower.tracker.left
        if left:
            click.echo(f"{left} more left before the end to keep --max-connections", err=True)
    follower.complain()
    return 0


def _order(columns: dict[str, Any], rows: Any, sort: str) -> Any:
    """Positions in ``rows`` in the order asked for; equal ones in order of their number."""

    def both(name: str) -> Any:
        return columns[f"client_to_server_{name}"] + columns[f"server_to_client_{name}"]

    if sort == "conn":
        keys = columns["conn"]
    elif sort == "start":
        keys = columns["start_ns"]
    elif sort == "duration":
        keys = columns["start_ns"] - columns["end_ns"]
    elif sort == "connect":
        keys = -columns["connect_ns"]
    elif sort == "window":
        ways = [columns[f"{d}_min_effective_window"] for d in _DIRECTIONS]
        # The least first; what is not known comes last.
        keys = np.minimum(*(np.where(way == NULL, np.iinfo(np.int64).max, way) for way in ways))
    else:
        keys = -both("stalled_ns" if sort == "stalled" else sort)
    return np.argsort(keys[rows], kind="stable")


def _table(connections: list[Connection]) -> None:
    header, *lines = table(_HEADER, map(_cells, connections), left=4)
    shown = [click.style(header, bold=True)]
    for connection, line in zip(connections, lines, strict=True):
        style = _STALLED if _stalls(connection) else _STYLES.get(connection.state)
        shown.append(click.style(line, **style) if style else line)
    click.echo("\n".join(shown))


def _stalls(connection: Connection) -> int:
    return connection.client_to_server.stalls + connection.server_to_client.stalls


def _cells(c: Connection) -> tuple[str, ...]:
    ways = (c.client_to_server, c.server_to_client)
    windows = [w.min_effective_window for w in ways if w.min_effective_window is not None]
    stalls, stalled = _stalls(c), sum(way.stalled_ns for way in ways)
    return (
        f"{c.conn}{'~' if c.estimated else ''}",
        endpoint(c.client),
        endpoint(c.server),
        c.type,
        c.state,
        duration(max(c.end_ns - c.start_ns, 0)),
        *(size(way.bytes) for way in ways),
        *(str(way.packets) for way in ways),
        size(min(windows, default=None)),
        f"{stalls} ({duration(stalled)})" if stalls else "0",
    )
