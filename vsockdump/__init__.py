"""vsockdump: see, follow and diagnose AF_VSOCK traffic between virtual machines and their host."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def scapy_ext(ext: Any) -> None:
    """Called by scapy for ``conf.exts.load("vsockdump")``: registers our layers with it."""
    from importlib import import_module

    import_module("vsockdump.dissectors.extension").register(ext)
