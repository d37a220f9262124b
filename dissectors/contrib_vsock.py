"""``scapy.contrib.vsock``: the names of ``vsockdump.dissectors.layers``, not classes of its own."""

# scapy.contrib.description = AF_VSOCK as vsockmon taps it (link type 271)
# scapy.contrib.status = loads

# scapy imports this file by its path, outside the package, so that a relative import cannot work.
from vsockdump.dissectors.layers import *  # type: ignore[import-not-found] # noqa: F403
