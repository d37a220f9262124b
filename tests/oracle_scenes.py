"""A scene that the oracle watches."""

from __future__ import annotations

from typing import Any

from oracle import DEFAULT_STALL_THRESHOLD_NS, Connection, Figures, Oracle
from scenes import BUFFER, Script

from vsockdump.wire import Op


class Scene(Script):
    """A scene that the oracle watches while it is played."""

    def __init__(self, stall_threshold_ns: int = DEFAULT_STALL_THRESHOLD_NS) -> None:
        super().__init__()
        self.oracle = Oracle(stall_threshold_ns=stall_threshold_ns)

    def say(self, op: int, **given: Any) -> Figures:
        """One more packet, and what the oracle says of it."""
        return self.oracle.feed(self.add(op, **given))

    def open(self, *, buf: int = BUFFER) -> None:
        self.say(Op.REQUEST, buf=buf)
        self.say(Op.RESPONSE, answer=True, buf=buf)

    def finish(self, after: int = 0) -> list[Connection]:
        return self.oracle.finish(self.now_ns + after)


def fill(scene: Scene) -> None:
    scene.open()
    assert not scene.say(Op.RW, len=BUFFER - 1).stalled
    assert scene.say(Op.RW, len=1).stalled
