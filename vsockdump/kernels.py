"""What is known of kernels: their releases, and the mistakes their vsock tap makes.

A capture cannot be better than the tap it comes from, so a reader wants to know which kernel made
it. The table is literal: one row a mistake, with the release that brought it and those that mended
it. Sources: the history of ``net/vmw_vsock/virtio_transport*.c`` and ``drivers/vhost/vsock.c``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Version = tuple[int, int, int]
"""Major, minor and stable number: 6.12.90 is ``(6, 12, 90)``."""
Series = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TapBug:
    """One mistake of the tap: in all releases from ``since`` until ``fixed``.

    ``stable`` tells from which stable number on older series are mended too; None where it is
    known that one is, but not which. ``seen`` are series from before ``since`` that were given the
    mistake later, with the stable number in which it was seen: earlier ones may have it.
    """

    name: str
    since: Series
    fixed: Series
    stable: Mapping[Series, int | None] = field(default_factory=dict)
    seen: Mapping[Series, int] = field(default_factory=dict)
    effect: str
    advice: str

    def affects(self, version: Version) -> bool | None:
        """Whether a kernel of this version has the mistake; None where that is not known."""
        series = version[:2]
        if series in self.seen:
            return True if version[2] >= self.seen[series] else None
        if not self.since <= series < self.fixed:
            return False
        if series not in self.stable:
            return True
        mended = self.stable[series]
        return None if mended is None else version[2] < mended


_MENDED_2026: Final[Mapping[Series, int | None]] = {(6, 12): 90, (6, 18): None, (7, 0): 9}
"""Stable releases of May 2026; which 6.18 has the mending is not known here."""

TAP_BUGS: Final = (
    TapBug(
        name="repeated",
        since=(4, 12),
        fixed=(5, 7),
        effect="a packet can be captured again each time the virtqueue is full",
        advice="do not trust packet counts of a busy connection",
    ),
    TapBug(
        name="early",
        since=(4, 12),
        fixed=(6, 9),
        effect="a guest's own packets are captured before they are queued",
        advice="expect small reorderings in captures made inside a guest",
    ),
    TapBug(
        name="whole-buffer",
        since=(6, 3),
        fixed=(7, 1),
        stable={(6, 6): 140, **_MENDED_2026},
        seen={(6, 1): 192},
        effect="a packet split for small receive buffers is captured with its whole buffer",
        advice="count by the virtio length; captured payload can exceed it",
    ),
    TapBug(
        name="repeated-start",
        since=(6, 7),
        fixed=(7, 1),
        stable=_MENDED_2026,
        effect="each part of a split packet repeats the payload from the packet's start",
        advice="payload that was captured whole is put right; trust no other of split packets",
    ),
    TapBug(
        name="uninitialised",
        since=(6, 7),
        fixed=(7, 1),
        stable=_MENDED_2026,
        effect="payload sent from scattered memory (MSG_ZEROCOPY, large sends of guests) is "
        "captured as uninitialised kernel memory",
        advice="do not trust such payload, and capture headers only (-s 76) before sharing a file",
    ),
)


def parse(text: str) -> Version | None:
    """The version in a release (``6.12.90+deb12-amd64``) or a sentence around one; else None.

    Debian and Ubuntu freeze the release's third number and tell the real one elsewhere
    (``/proc/version``, ``/proc/version_signature``); such a text gives the real one.
    """
    found = re.search(r"(?<!\()\bDebian (\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        found = re.search(r"^Ubuntu \S+ (\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        found = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        return None
    major, minor, stable = found.groups(default="0")
    return int(major), int(minor), int(stable)
