"""Scenarios in which vsockdump follows connections while they live; inside the test VM.

Each writes down what was printed and when; what that should have been is for the tests on the
other side to say.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

from . import capture, traffic
from .agent import DEVICE, Context
from .peers import Background, close_both, pair, payload
from .truth import Truth

SNAPLEN = 128
"""What conns, credit and check keep of a frame; so does the file beside them."""
RING = ("-B", str(2 * capture.RING_KIB))
"""Blocks are handed over by time: it takes many of them to outlast a wait for the processor."""
SECOND_SLEEP = 0.7


class Lines:
    """Notes, while it is entered, when each line of a growing file was first to be seen."""

    EVERY = 0.02
    PATIENCE = 45.0

    def __init__(self, path: Path) -> None:
        self.seen: list[tuple[int, str]] = []
        self._path = path
        self._over = Event()
        self._watch: Background

    def _look(self) -> None:
        while not self._over.wait(self.EVERY):
            whole = self._path.read_text(encoding="utf-8").split("\n")[:-1]
            now_ns = time.time_ns()
            self.seen += [(now_ns, line) for line in whole[len(self.seen) :]]

    def wait_for(self, words: str) -> None:
        """Wait until a line says `words`; TimeoutError if none does."""
        until = time.monotonic() + self.PATIENCE
        while not any(words in line for _, line in self.seen):
            if time.monotonic() > until:
                raise TimeoutError(f"no line says {words!r}")
            time.sleep(self.EVERY)

    def __enter__(self) -> Lines:
        self._watch = Background(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.result()


def awaited_reader(lines: Lines, total: int = 3 << 20, first_read: int = 1 << 20) -> Truth:
    """A receiver that reads nothing until somebody says so; then as traffic.slow_reader."""
    truth = Truth()
    client, server = pair(truth)

    def send() -> None:
        client.send(payload(total))
        client.shutdown(socket.SHUT_WR)

    sender = Background(send)
    event = server.connection.note("server", "wait")
    lines.wait_for(f"{server.connection.server[0]}.{server.connection.server[1]} is not reading")
    event["end_ns"] = time.time_ns()
    server.read_exactly(first_read)
    server.sleep(SECOND_SLEEP)
    server.read_to_end()
    sender.result()
    close_both(client, server)
    return truth


def _watching(context: Context, *words: str) -> capture.Tool:
    """A subcommand on the VM's device; it is named after the subcommand."""
    started = [str(capture.VSOCKDUMP), *words, *RING, "-i", DEVICE]
    return capture.Tool(context, started, words[0], forked=True)


MAKERS: dict[str, Callable[[Lines], Truth]] = {
    "echo": lambda _: traffic.echo((6, 1000, 70_000)),
    "refused": lambda _: traffic.refused(1),
    "awaited_reader": awaited_reader,
    "never_reads": lambda _: traffic.never_reads(),
    "seqpacket": lambda _: traffic.seqpacket(),
    "half_close": lambda _: traffic.half_close(),
}
"""The traffic that is watched, in order."""


def following(context: Context) -> None:
    """check and conns on the device beside a capture, with stalls that last and stalls that end."""
    file = capture.writing(context, "followed.pcapng", *RING, "-s", str(SNAPLEN))
    tools = [_watching(context, "check", "--json"), _watching(context, "conns", "--json"), file]
    with capture.together(tools), Lines(context.results / "check.out") as lines:
        truth = {name: make(lines).as_json() for name, make in MAKERS.items()}
        # A ring hands its last block over within 50 ms; findings come with the next tick.
        time.sleep(1.0)
        for tool in tools:
            tool.stop()
    context.keep("followed.pcapng")
    context.write("seen.json", lines.seen)
    context.write("truth.json", truth)
    context.write("tools.json", {tool.name: tool.story() for tool in tools})


SCENARIOS: dict[str, Callable[[Context], None]] = {"following": following}
"""Carried out on every kernel."""
