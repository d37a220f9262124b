"""The scenario of filters that run in the kernel; inside the test VM.

Strategy: one capture without a filter runs from first to last. Those with a filter start later,
while other traffic goes on without a pause, so that a frame queued before the filter was in place
would show. Then that traffic ends and known traffic begins, which all of them see whole: what a
filtered capture wrote has to be the end of what passes the filter in the one without.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vsockdump.filters import compile

from . import capture, traffic
from .agent import Context
from .peers import pair
from .truth import Truth

SNAPLEN = 100
FILTERS: dict[str, tuple[str, ...]] = {
    "connects": ("op request or response or rst",),
    "data": ("op rw and len >= 1000 and payload[0] & 1 == 1",),
    "wide": ("cid 1 and dst_cid < 4294967296 and src_cid == dst_cid",),
    "fields": ("type seqpacket and flags eom or flags rcv or fwd_cnt > 64k",),
    "nothing": ("host and guest",),
    "snapped": ("-s", str(SNAPLEN), "not op shutdown"),
}
"""What each filtered capture is asked for, by name; the filter is the last word."""
DISPLAYED = "portrange 20000-29999 and (conn.state refused or op shutdown or stalled)"
"""A filter of which the kernel can do a part; the rest comes after tracking."""
LONG_RING = ("-B", str(6 * capture.RING_KIB))
"""Blocks are handed over by time: it takes many of them to outlast the start of other processes."""
RING = ("-B", str(2 * capture.RING_KIB))
PAUSE = 0.25
MAKERS: tuple[Callable[[], Truth], ...] = (
    partial(traffic.echo, (6, 1, 100, 1000, 5000, 70_000)),
    traffic.refused,
    traffic.seqpacket,
    traffic.half_close,
    traffic.to_host_cid,
    partial(traffic.many_connections, 20, 5),
)


class _Unceasing:
    """A process that sends small messages to and fro while it is entered.

    A process and not a thread: others are forked meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._over = folder / "over"
        self._pid = 0

    def __enter__(self) -> _Unceasing:
        self._pid = os.fork()
        if not self._pid:
            self._talk()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.touch()
        _, status = os.waitpid(self._pid, 0)
        if status:
            raise RuntimeError(f"traffic in the background ended with status {status}")

    def _talk(self) -> None:
        """In the child: talk until told to end."""
        status = 1
        try:
            until = time.monotonic() + capture.START_SECONDS
            client, server = pair(Truth())
            while not self._over.exists():
                if time.monotonic() > until:
                    raise TimeoutError("nobody ended the traffic in the background")
                client.send(b"question")
                server.read_exactly(8)
                server.send(b"answer")
                client.read_exactly(6)
                time.sleep(PAUSE)
            client.close()
            server.close()
            status = 0
        except BaseException:  # noqa: BLE001 - as Python itself does before it exits
            traceback.print_exc()
        finally:
            os._exit(status)


def filters(context: Context) -> None:
    """Captures with filters that start in the middle of traffic, beside one without."""
    for expression in (DISPLAYED, *(words[-1] for words in FILTERS.values())):
        # The grammar takes long to load on an emulated processor: once here, not in every fork.
        compile(expression)
    whole = capture.writing(context, "whole.pcapng", *LONG_RING)
    display = capture.vsockdump(context, *LONG_RING, "--json", DISPLAYED, name="display")
    filtered = [
        capture.writing(context, f"{name}.pcapng", *RING, *words) for name, words in FILTERS.items()
    ]
    started_ns = [0, 0]
    with capture.together([whole, display]):
        with _Unceasing(context.work):
            started_ns[0] = time.time_ns()
            with capture.together(filtered):
                started_ns[1] = time.time_ns()
        # What the background said last is in all rings before the known traffic begins.
        time.sleep(0.5)
        known_ns = time.time_ns()
        for make in MAKERS:
            make()
        time.sleep(0.5)
        statuses = [tool.stop() for tool in (*filtered, display, whole)]
    if any(statuses):
        raise RuntimeError(f"statuses {statuses}")
    context.keep("whole.pcapng", *(f"{name}.pcapng" for name in FILTERS))
    context.write("times.json", {"started_ns": started_ns, "known_ns": known_ns})
    context.write("tools.json", {tool.name: tool.story() for tool in (*filtered, display, whole)})


SCENARIOS: dict[str, Callable[[Context], None]] = {"filters": filters}
"""Carried out on every kernel."""
