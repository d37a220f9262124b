"""scapy's own sniff() on a vsockmon device: `python -m tests.vm.sniffer DEVICE FILE`.

Says that it listens once the socket is open, ends at an interrupt, and writes to FILE what each
packet was dissected as: its layers with their fields, and its bytes.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from scapy.config import conf
from scapy.packet import Packet
from scapy.sendrecv import sniff

from . import guard
from .capture import SNIFFER_BUFFER


def described(packet: Packet) -> dict[str, Any]:
    """A packet's bytes, and each layer with its fields, as plain values."""
    layers = []
    for number, kind in enumerate(packet.layers()):
        layer = packet.getlayer(number)
        fields = {k: v for k, v in layer.fields.items() if isinstance(v, int)}
        layers.append([kind.__name__, fields])
    return {"bytes": bytes(packet.original).hex(), "layers": layers}


def main(device: str, file: str) -> None:
    """Sniff on `device` until interrupted, then write `file`."""
    guard.require_test_vm()
    import_module("vsockdump.dissectors.layers")
    # What arrives is dissected as it comes; a burst waits in the socket's buffer meanwhile.
    conf.bufsize = SNIFFER_BUFFER
    found = sniff(
        iface=device,
        started_callback=lambda: print(f"listening on {device}", file=sys.stderr, flush=True),
    )
    Path(file).write_text(json.dumps([described(packet) for packet in found]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
