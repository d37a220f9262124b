"""What the tracker knows in the end: connections as objects and as columns.

Columns are made first and objects from them, so both always say the same. An open stall, and the
time since a connection was last heard of, reach to the end of the capture, or to the REQUEST that
succeeded the connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Ints
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.pending import Pending
from vsockdump.tracking.states import State
from vsockdump.tracking.store import NO_TIME, Store
from vsockdump.tracking.times import Flow, Stall
from vsockdump.wire import Type

FASTEST: Final = float(1 << 62)
"""Bytes per second no report exceeds: where hardly any time passed, a quotient fits no integer."""
DIRECTIONS: Final = ("client_to_server", "server_to_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a connection; None where nothing is known. Bytes, packets, nanoseconds."""

    packets: int
    bytes: int
    min_window: int | None
    min_effective_window: int | None
    max_in_flight: int | None
    stalls: int
    stalled_ns: int
    unread_bytes: int | None
    outstanding: int | None
    drains: int
    drain_min_ns: int | None
    drain_median_ns: int | None
    drain_p99_ns: int | None
    drain_max_ns: int | None
    bytes_per_second: int | None
    messages: int
    message_bytes: int
    message_min: int | None
    message_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One generation of a connection, as docs/json.md describes it."""

    conn: int
    type: str
    client: tuple[int, int]
    server: tuple[int, int]
    opened: bool
    estimated: bool
    state: str
    start_ns: int
    end_ns: int
    connect_ns: int | None
    limited_ns: int
    in_flight_ns: int
    idle_ns: int
    client_to_server: Direction
    server_to_client: Direction


def ends(store: Store, slots: Ints, end_ns: int) -> Ints:
    """When each connection's time is up: with its end, its successor's REQUEST, or the capture."""
    conn = store.conn
    until = conn["until_ns"][slots]
    until = np.where(until == NO_TIME, end_ns, until)
    return np.where(store.over(slots), conn["last_ns"][slots], until)


def open_stalls(store: Store, end_ns: int, threshold_ns: int) -> list[tuple[int, Stall]]:
    """The stalls that nothing ended and that count, each with its slot."""
    slots = store.slots()
    final = ends(store, slots, end_ns)
    found = []
    for sender in (0, 1):
        since = store.side.peek("stall_ns", (slots, sender))
        lasted = np.maximum(final - since, 0)
        counts = store.side.peek("stall_number", (slots, sender)) != NULL
        counts &= lasted >= threshold_ns
        for place in np.flatnonzero(counts).tolist():
            slot = int(slots[place])
            stall = Stall(
                conn=int(store.conn["number"][slot]),
                sender=sender,
                number=int(store.side["stall_number"][slot, sender]),
                start_ns=int(since[place]),
                duration_ns=int(lasted[place]),
                recovered=False,
            )
            found.append((slot, stall))
    return found


def columns(
    store: Store, pending: Pending, end_ns: int, threshold_ns: int
) -> dict[str, NDArray[Any]]:
    """Every connection's figures, columns of shape (c,) in order of number; NULL: not known.

    A direction's columns have its name before theirs, e.g. ``client_to_server_bytes``.
    """
    slots = store.slots()
    conn, side = store.conn, store.side
    final = ends(store, slots, end_ns)
    rest = np.maximum(final - conn["last_ns"][slots], 0)
    result: dict[str, NDArray[Any]] = {
        "conn": conn["number"][slots],
        "type": conn["type"][slots],
        **{
            f"{who}_{what}": conn[f"{who}_{what}"][slots]
            for who in ("client", "server")
            for what in ("cid", "port")
        },
        "opened": conn["opened"][slots],
        "estimated": conn["estimated"][slots],
        "state": conn["state"][slots],
        "start_ns": conn["start_ns"][slots],
        "end_ns": conn["last_ns"][slots],
        "connect_ns": conn["connect_ns"][slots],
    }
    spent = conn["flows_ns"][slots]
    for flow in Flow:
        last = np.where(conn["flow"][slots] == flow, rest, 0)
        result[f"{flow.name.lower()}_ns"] = spent[:, flow] + last
    life = np.maximum(result["end_ns"] - result["start_ns"], 0)
    for sender, direction in enumerate(DIRECTIONS):
        place = (slots, sender)
        lasted = np.maximum(final - side.peek("stall_ns", place), 0)
        counts = (side.peek("stall_number", place) != NULL) & (lasted >= threshold_ns)
        drain = pending.quantiles(slots, sender)
        messages = side.peek("messages", place)
        rate = np.minimum(side.peek("bytes", place) * 1e9 / np.maximum(life, 1), FASTEST)
        figures = {
            "packets": side.peek("packets", place),
            "bytes": side.peek("bytes", place),
            "min_window": side.peek("min_window", place),
            "min_effective_window": side.peek("min_effective", place),
            "max_in_flight": side.peek("max_in_flight", place),
            "stalls": side.peek("stalls", place) + counts,
            "stalled_ns": side.peek("stalled_ns", place) + np.where(counts, lasted, 0),
            "unread_bytes": side.peek("in_flight", place),
            "outstanding": np.where(
                side.peek("in_flight", place) == NULL, NULL, pending.outstanding(slots, sender)
            ),
            "drains": drain.samples,
            "drain_min_ns": drain.least,
            "drain_median_ns": drain.median,
            "drain_p99_ns": drain.p99,
            "drain_max_ns": drain.most,
            "bytes_per_second": np.where(life > 0, rate, NULL).astype(np.int64),
            "messages": messages,
            "message_bytes": side.peek("message_bytes", place),
            "message_min": np.where(messages > 0, side.peek("message_min", place), NULL),
            "message_max": np.where(messages > 0, side.peek("message_max", place), NULL),
        }
        result.update({f"{direction}_{name}": values for name, values in figures.items()})
    return result


def record_array(table: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The same columns as one numpy record array of shape (c,)."""
    dtype = np.dtype([(name, column.dtype) for name, column in table.items()])
    records = np.zeros(next(iter(table.values())).size, dtype)
    for name, column in table.items():
        records[name] = column
    return records


def records(table: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """The same columns as one record a connection, None where nothing is known: docs/json.md."""
    names = {kind.value: kind.name for kind in Type}
    labels = [state.label for state in State]
    made = {
        "type": [names[value] for value in table["type"].tolist()],
        "state": [labels[value] for value in table["state"].tolist()],
        **{who: _rows(table, (f"{who}_cid", f"{who}_port")) for who in ("client", "server")},
        **{
            name: [
                dict(zip(Direction.__slots__, values, strict=True))
                for values in _rows(table, [f"{name}_{field}" for field in Direction.__slots__])
            ]
            for name in DIRECTIONS
        },
    }
    fields = Connection.__slots__
    every = [made[name] if name in made else _known(table[name]) for name in fields]
    return [dict(zip(fields, values, strict=True)) for values in zip(*every, strict=True)]


def objects(table: dict[str, NDArray[Any]]) -> list[Connection]:
    """The same columns as one object a connection."""
    found = records(table)
    for record in found:
        for name in DIRECTIONS:
            record[name] = Direction(**record[name])
    return [Connection(**record) for record in found]


def _rows(table: dict[str, NDArray[Any]], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(_known(table[name]) for name in names), strict=True)


def _known(column: NDArray[Any]) -> list[Any]:
    """The values of a column as plain ones, None for NULL."""
    values: list[Any] = column.tolist()
    if (column == NULL).any():
        values = [None if value == NULL else value for value in values]
    return values
