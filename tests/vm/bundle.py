"""The bundled captures: one row each, read by whoever makes, describes or tests them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import kernel_suite, nested, traffic
from .agent import Context
from .truth import Truth

KIB = 1024


def _loopback(make: Callable[..., Truth], *sizes: object) -> Callable[[Context], Truth]:
    """A maker of traffic.py with these sizes, as a row wants it."""
    return lambda _: make(*sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """One bundled capture: its name, what makes its traffic, what it shows.

    `snaplen` 0 keeps everything; `series` are the kernels it is made on.
    """

    name: str
    make: Callable[[Context], Truth]
    shows: str
    snaplen: int = 0
    series: tuple[str, ...] = ("6.12",)

    @property
    def scenario(self) -> str:
        """The scenario's name in the VM."""
        return f"bundle-{self.name}"

    def file(self, series: str) -> str:
        """The name of the bundled file made on a kernel of `series`."""
        return f"{self.name}-{series}.pcapng"


BOTH = ("6.1", "6.12")

BUNDLED = (
    Bundled(
        name="echo",
        make=_loopback(traffic.echo, (6, 1, 100, 1000, 5000)),
        shows="a client sends five times and gets the same back; an ordinary close",
        series=BOTH,
    ),
    Bundled(
        name="refused",
        make=_loopback(traffic.refused),
        shows="three connections to ports where nobody listens: REQUEST answered by RST",
    ),
    Bundled(
        name="stall",
        make=_loopback(traffic.slow_reader),
        shows="a receiver that sleeps 1.5 s, reads 1 MiB, sleeps 0.7 s, reads the rest of 3 MiB",
        snaplen=128,
        series=BOTH,
    ),
    Bundled(
        name="never-reads",
        make=_loopback(traffic.never_reads),
        shows="a receiver that never reads: the sender fills the window, waits, gives up",
        snaplen=128,
    ),
    Bundled(
        name="seqpacket",
        make=_loopback(traffic.seqpacket, (1, 5, 128, 129, 4096, 70_000)),
        shows="SEQPACKET messages both ways, every second with EOR, one longer than a packet",
        snaplen=4400,
        series=BOTH,
    ),
    Bundled(
        name="half-close",
        make=_loopback(traffic.half_close),
        shows="one side shuts its sending side first: the client, the server; then only reading",
    ),
    Bundled(
        name="many-connections",
        make=_loopback(traffic.many_connections, 60, 20),
        shows="sixty short connections, twenty of them open together",
    ),
    Bundled(
        name="small-sender",
        make=_loopback(traffic.small_sender, 40 * KIB),
        shows="a sender with an 8 KiB buffer: it never has more in flight, whatever the window",
        series=BOTH,
        snaplen=512,
    ),
    Bundled(
        name="small-receiver",
        make=_loopback(traffic.small_receiver, 40 * KIB),
        shows="a receiver with an 8 KiB buffer, drained 4 KiB at a time",
        snaplen=512,
    ),
    Bundled(
        name="reused-pair",
        make=_loopback(traffic.reused_pair),
        shows="three connections one after the other between the same two ports",
    ),
    Bundled(
        name="dying-server",
        make=_loopback(traffic.dying_server, 4000),
        shows="a server killed with data unread, and a client that sends on",
    ),
    Bundled(
        name="tiny-flood",
        make=_loopback(traffic.tiny_flood, 600),
        shows="one-byte packets to a receiver that does not read: STREAM, then SEQPACKET",
        series=BOTH,
    ),
    Bundled(
        name="host-cid",
        make=_loopback(traffic.to_host_cid),
        shows="loopback to CID 2: the two directions name different endpoints",
    ),
    Bundled(
        name="host-and-guest",
        make=nested.converse,
        shows="a real guest, CID 42, and its host, CID 2: transfers and a slow reader each way, "
        "an echo, stray packets after closes",
        snaplen=128,
        series=BOTH,
    ),
    Bundled(
        name="vsock-test",
        make=kernel_suite.some_tests,
        shows="tests of the kernel's own vsock_test on loopback: bounds of messages, timeouts, "
        "peeking, SO_RCVLOWAT, MSG_ZEROCOPY, credit updates",
        snaplen=128,
    ),
)
