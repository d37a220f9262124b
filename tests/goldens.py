"""What is printed, word for word: a table of names, captures and options, in tcpdump's manner.

Each row's output is in ``golden/NAME.out``; ``golden/regenerate.py`` writes them all anew, and the
difference is for a reviewer to read. A new field, column or option needs a row that shows it: on a
bundled capture if a kernel sends such a thing, else in ``odd`` below, which holds what none does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from line_cases import HOSTILE, cooked
from savefile_cases import comment

from vsockdump import captures, wire
from vsockdump.frames import FrameBatch, Interface
from vsockdump.sinks.savefile import SavefileWriter
from vsockdump.wire import Op, RwFlag, ShutdownFlag, Transport, Type

FOLDER = Path(__file__).parent / "golden"
ODD = "odd"
"""The name of the capture that is made here."""
EPOCH_NS = 1_780_000_000_000_000_000


@dataclass(frozen=True)
class Golden:
    """One row: a name, a capture, and options; ``command`` is a subcommand, if it is one."""

    name: str
    capture: str
    options: str = ""
    command: str = ""

    @property
    def expected(self) -> Path:
        """Where its output is kept."""
        return FOLDER / f"{self.name}.out"

    def arguments(self, odd: Path) -> list[str]:
        """The command line; ``odd`` is where that capture was written to."""
        file = str(odd if self.capture == ODD else captures.path(self.capture))
        options = [word.replace("_", " ") for word in self.options.split()]
        return [self.command, file, *options] if self.command else ["-r", file, *options]


STYLES = {
    "plain": "",
    "q": "-q",
    "v": "-v",
    "vv": "-vv",
    "vvv": "-vvv",
    "n": "-n",
    "e": "-e",
    "number": "-#",
    "t": "-t -c 8",
    "tt": "-tt -c 8",
    "ttt": "-ttt -c 8",
    "tttt": "-tttt -c 8",
    "ttttt": "-ttttt -c 8",
    "micro": "--micro -c 8",
    "micro-ttt": "--micro -ttt -c 8",
    "nano": "--nano -c 8",
    "precision": "--time-stamp-precision=micro -c 8",
    "l": "-l -c 2",
    "x": "-x -c 8",
    "xx": "-xx -c 8",
    "X": "-X -c 8",
    "XX": "-XX -c 8",
    "A": "-A -c 8",
    "color": "--color=always",
    "json": "--json",
    "count": "--count",
    "all": "-#evvvXXtttt -c 8",
}
"""Every way to print."""

EACH = {"plain": "-c 60", "vv": "-nvv -c 60"}
"""How each capture is shown."""

TABLE = [
    *(Golden(f"echo-{name}", "echo-6.12.pcapng", options) for name, options in STYLES.items()),
    *(Golden(f"odd-{name}", ODD, options) for name, options in STYLES.items()),
    *(
        Golden(f"{capture.rpartition('.')[0]}-{name}", capture, options)
        for capture in captures.names()
        if capture != "echo-6.12.pcapng"
        for name, options in EACH.items()
    ),
    Golden("stall-X", "stall-6.12.pcapng", "-X -c 4"),
    Golden("stall-A", "stall-6.12.pcapng", "-q -A -c 4"),
    Golden("stall-json", "stall-6.12.pcapng", "--json"),
    Golden("stall-color", "stall-6.12.pcapng", "-v --color=always"),
    Golden("seqpacket-json", "seqpacket-6.12.pcapng", "--json"),
    Golden("filter-op", "many-connections-6.12.pcapng", "-q -c 8 op shutdown and flags send"),
    Golden("filter-stalled", "stall-6.12.pcapng", "-v stalled"),
    Golden("filter-d", "echo-6.12.pcapng", "-d port 20000"),
    Golden("filter-dd", "echo-6.12.pcapng", "-dd port 20000"),
    Golden("filter-ddd", "echo-6.12.pcapng", "-ddd port 20000"),
    *(
        Golden(f"{command}-{name}{suffix}", f"{name}-6.12.pcapng", options, command)
        for command in ("conns", "credit", "check")
        for name in ("stall", "never-reads", "refused", "seqpacket", "half-close")
        for suffix, options in (("", ""), ("-json", "--json"))
    ),
]


def packet(payload: bytes = b"", *, claimed: int | None = None, **fields: int) -> bytes:
    """A virtio packet from a guest to its host; ``claimed``: the length it says it has."""
    record = np.zeros((), wire.HEADERS)
    usual = {
        "src_cid": wire.FIRST_GUEST_CID,
        "dst_cid": wire.CID_HOST,
        "src_port": 1024,
        "dst_port": 80,
        "transport": Transport.VIRTIO,
        "transport_len": wire.VIRTIO_HDR_LEN,
        "len": len(payload) if claimed is None else claimed,
        "type": Type.STREAM,
        "op": Op.RW,
        "buf_alloc": 262_144,
    }
    meanings = {int(op): int(meaning) for op, meaning in wire.MON_OP_OF.items()}
    usual["mon_op"] = meanings.get(fields.get("op", Op.RW), wire.MonOp.UNKNOWN)
    values = usual | fields
    for name in ("src_cid", "dst_cid", "src_port", "dst_port"):
        values.setdefault(f"virtio_{name}", values[name])
    for name, value in values.items():
        record[name] = value
    return record.tobytes()[: wire.HEADERS_LEN] + payload


def odd_frames() -> Iterator[tuple[bytes, int, int]]:
    """What no bundled capture has: frame, bytes that the capture cut off, interface."""
    most16, most32, most64 = 2**16 - 1, 2**32 - 1, 2**64 - 1
    yield packet(b"hello\n"), 0, 0
    yield packet(op=Op.INVALID), 0, 0
    yield packet(op=most16, type=most16, flags=most32, mon_op=most16), 0, 0
    yield packet(op=Op.CREDIT_REQUEST), 0, 0
    yield packet(b"datagram", type=Type.DGRAM), 0, 0
    yield packet(b"record", type=Type.SEQPACKET, flags=RwFlag.EOM | RwFlag.EOR | 4), 0, 0
    yield packet(op=Op.SHUTDOWN, flags=ShutdownFlag.SEND | 8), 0, 0
    addresses = {"src_cid": most64, "dst_cid": 0, "src_port": most32, "dst_port": most32}
    yield packet(buf_alloc=most32, fwd_cnt=most32, **addresses), 0, 0
    yield packet(virtio_src_cid=99, virtio_dst_port=1, op=Op.RST), 0, 0
    # A kernel that taps the whole buffer: more payload than the header tells of.
    yield packet(b"true bytes, leaked bytes", claimed=10), 0, 0
    # A transport header longer than ours is honoured.
    longer = packet(transport_len=wire.VIRTIO_HDR_LEN + 4, len=4)
    yield longer + b"\0\0\0\0" + b"data", 0, 0
    yield packet(transport=Transport.NO_INFO, transport_len=4)[:36] + b"no information", 0, 0
    yield packet(transport=Transport.NO_INFO, transport_len=0)[:32] + b"cut", 7, 0
    yield packet(transport=7, transport_len=0)[:32] + b"unknown", 0, 0
    # Cut by the capture: payload, transport header, first header, everything.
    yield packet(b"abcdefgh")[:-3], 3, 0
    yield packet()[:60], 16, 0
    yield packet()[:20], 56, 0
    yield b"", 76, 0
    # The same lengths, but nobody cut: these contradict themselves.
    yield packet(b"abcdefgh")[:-3], 0, 0
    yield packet()[:60], 0, 0
    yield packet()[:20], 0, 0
    yield packet(transport_len=40), 0, 0
    # Cooked, from another interface: by "any", of another device, of a link type not known.
    yield cooked(wire.LINKTYPE_LINUX_SLL2, packet(b"cooked")), 0, 1
    yield bytes(20) + packet(b"of another device"), 0, 1
    yield b"\1\2\3", 0, 2
    yield packet(b"\x1b[31mred\x1b[0m\r\n\tand \xff\x00"), 0, 0


def write_odd(folder: Path) -> Path:
    """Write that capture."""
    frames, cut, interface = zip(*odd_frames(), strict=True)
    interfaces = [
        Interface(name="vsockmon0"),
        Interface(name=HOSTILE[:16], linktype=wire.LINKTYPE_LINUX_SLL2),
        Interface(linktype=1),
    ]
    batch = FrameBatch.of(
        frames,
        time_ns=[EPOCH_NS + place * 1_234_567_891 for place in range(len(frames))],
        origlen=[len(frame) + missing for frame, missing in zip(frames, cut, strict=True)],
        interface=interface,
        interfaces=interfaces,
    )
    options = {0: comment("the first") + comment(HOSTILE[:24].replace("\0", ""))}
    path = folder / f"{ODD}.pcapng"
    with SavefileWriter(path) as writer:
        writer.write(replace(batch, options=options))
    return path
