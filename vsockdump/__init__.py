"""vsockdump: see, follow and diagnose AF_VSOCK traffic between virtual machines and their host."""

from __future__ import annotations

__version__ = "0.1.0"
