"""What truly happened in a piece of traffic, written down by the side that made it.

A connection's record has the endpoints, and for each direction how many bytes the kernel took
from the sender and their SHA-256, the sizes they were sent in (a SEQPACKET size is a message),
and how many of them the receiver's program read. Sleeps carry wall-clock and monotonic times.
Bytes are counted where the kernel accepted them: a send that blocked and failed counts for
nothing.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Direction:
    """One direction of one connection, as its two programs saw it."""

    count: int = 0
    sizes: list[int] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    read: int = 0
    _sent: Any = field(default_factory=hashlib.sha256)
    _received: Any = field(default_factory=hashlib.sha256)

    def accept(self, data: bytes | memoryview) -> None:
        """The kernel took `data` from the sender."""
        self.count += len(data)
        self.sizes.append(len(data))
        self._sent.update(data)

    def deliver(self, data: bytes) -> None:
        """The receiver's program read `data`."""
        self.read += len(data)
        self._received.update(data)

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {
            "bytes": self.count,
            "sha256": self._sent.hexdigest(),
            "sizes": self.sizes,
            "flags": self.flags,
            "read": self.read,
            "read_sha256": self._received.hexdigest(),
        }


@dataclass(slots=True)
class Connection:
    """One attempt to connect and what became of it."""

    kind: str
    client: tuple[int, int]
    server: tuple[int, int]
    connected: bool = False
    error: str | None = None
    client_to_server: Direction = field(default_factory=Direction)
    server_to_client: Direction = field(default_factory=Direction)
    events: list[dict[str, Any]] = field(default_factory=list)

    def note(self, who: str, what: str, **more: Any) -> dict[str, Any]:
        """Write down that one side did something now."""
        event = {"who": who, "what": what, "time_ns": time.time_ns()}
        event |= {"monotonic_ns": time.monotonic_ns(), **more}
        self.events.append(event)
        return event

    def sleep(self, who: str, seconds: float) -> None:
        """Sleep in the name of one side and write down from when to when."""
        event = self.note(who, "sleep")
        time.sleep(seconds)
        event["end_ns"] = time.time_ns()
        event["seconds"] = (time.monotonic_ns() - event["monotonic_ns"]) / 1e9

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {
            "type": self.kind,
            "client": list(self.client),
            "server": list(self.server),
            "connected": self.connected,
            "error": self.error,
            "client_to_server": self.client_to_server.as_json(),
            "server_to_client": self.server_to_client.as_json(),
            "events": self.events,
        }


@dataclass(slots=True)
class Truth:
    """Everything one traffic maker did."""

    connections: list[Connection] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {"connections": [c.as_json() for c in self.connections], "notes": self.notes}
