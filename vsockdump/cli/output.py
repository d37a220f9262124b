"""Standard output for what is rendered in batches: straight to the descriptor, and all of it.

A batch is one write, so nothing waits in a buffer for more to come, and nothing is lost when
Python runs unbuffered, where a write that a signal interrupts is silently cut short.
"""

from __future__ import annotations

import os
import select
import sys


def unwanted_color() -> bool:
    """Whether the environment says that nobody wants colors: NO_COLOR is set, and not empty."""
    return bool(os.environ.get("NO_COLOR"))


class StandardOutput:
    """Where lines go."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._fd = sys.stdout.fileno()

    def write(self, data: bytes) -> None:
        """Write everything, waiting as long as it takes. Raises OSError."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Somebody we share the pipe with made it non-blocking.
                select.select([], [self._fd], [])
