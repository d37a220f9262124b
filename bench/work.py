"""What the library does for a script, one job a process: ``python -m bench.work JOB FILE``.

Each job is what a user would write in a few lines, beside the same done with a peer's library.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Final

_HEADERS: Final = struct.Struct("<QQIIHHH2xQQIIIHHIII")


def decode(path: str) -> int:
    """Every column of both headers, with vsockdump."""
    from vsockdump.packets import decode as decoded
    from vsockdump.sources.savefile import Savefile

    total = 0
    for frames in Savefile(path).batches():
        total += int(decoded(frames).headers["len"].sum())
    return total


def packets(path: str) -> int:
    """One object a packet, with vsockdump."""
    from vsockdump.packets import decode as decoded
    from vsockdump.sources.savefile import Savefile

    total = 0
    for frames in Savefile(path).batches():
        for packet in decoded(frames):
            total += packet.len or 0
    return total


def dpkt_packets(path: str) -> int:
    """The same with dpkt's reader and one struct."""
    import dpkt

    total = 0
    with open(path, "rb") as file:  # noqa: PTH123  # as dpkt's own examples have it
        for _, frame in dpkt.pcapng.Reader(file):
            total += _HEADERS.unpack_from(frame)[11]
    return total


def scapy_packets(path: str) -> int:
    """One scapy packet a packet, through our loader."""
    from vsockdump.dissectors import bulk

    return sum(1 for _ in bulk.iterate(path))


def scapy_reader(path: str) -> int:
    """The same through scapy's own reader, with our layers."""
    import vsockdump.dissectors.layers  # noqa: F401  # registers the layers
    from scapy.utils import PcapReader

    with PcapReader(path) as reader:
        return sum(1 for _ in reader)


def pyshark_packets(path: str) -> int:
    """One pyshark packet a packet: tshark dissects, Python reads what it prints."""
    import pyshark

    total = 0
    with pyshark.FileCapture(path, keep_packets=False) as capture:
        for packet in capture:
            total += int(packet.vsock.get_field("virtio.len"))
    return total


JOBS: Final[dict[str, Callable[[str], int]]] = {
    job.__name__: job
    for job in (decode, packets, dpkt_packets, scapy_packets, scapy_reader, pyshark_packets)
}

if __name__ == "__main__":
    print(JOBS[sys.argv[1]](sys.argv[2]))
