"""What scapy's ``conf.exts.load("vsockdump")`` does: registers the layers, under a name too.

The layers are registered at once, so that every reader knows link type 271 from then on. The name
is ``scapy.contrib.vsock``: ``load_contrib("vsock")`` puts the classes into the user's namespace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vsockdump

from . import layers  # noqa: F401 - importing it is what registers the layers


def register(ext: Any) -> None:
    """Describe vsockdump to ``ext``, a ``scapy.config.ScapyExt``."""
    ext.config(vsockdump.__name__, vsockdump.__version__)
    shim = Path(__file__).with_name("contrib_vsock.py")
    ext.register(name="vsock", mode=ext.MODE.CONTRIB, path=shim, default=False)
