"""What a tracker does unless told otherwise: apart from it, for who only tells of it in a help."""

from __future__ import annotations

from typing import Final

STALL_THRESHOLD_NS: Final = 100_000_000
"""A stall counts from so many nanoseconds on."""
MAX_CONNECTIONS: Final = 131_072
"""Connections remembered; each costs some 700 bytes."""
