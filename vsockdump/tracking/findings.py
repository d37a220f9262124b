"""What can be found: stable codes, how bad each is, and the finding as a value.

docs/findings.md explains every code to a user; a test holds both lists together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final


class Severity(IntEnum):
    """How much a finding matters."""

    INFO = 0
    WARNING = 1
    ERROR = 2

    @property
    def label(self) -> str:
        """The severity's name in lower case."""
        return self.name.lower()


MOST_FINDINGS: Final = 100_000
"""Findings kept of one run; what comes after is counted only."""
CODES: Final[Mapping[str, Severity]] = {
    "beyond-window": Severity.ERROR,
    "fwd-ahead": Severity.WARNING,
    "fwd-backwards": Severity.WARNING,
    "data-before-response": Severity.WARNING,
    "data-after-shutdown": Severity.WARNING,
    "data-after-rst": Severity.INFO,
    "rst-after-rst": Severity.INFO,
    "refused": Severity.WARNING,
    "no-answer": Severity.WARNING,
    "reset": Severity.WARNING,
    "credit-request": Severity.INFO,
    "credit-request-unanswered": Severity.WARNING,
    "unread-data": Severity.WARNING,
    "stall": Severity.WARNING,
    "stall-unrecovered": Severity.ERROR,
    "packet-limit-near": Severity.WARNING,
    "packet-limit-reset": Severity.ERROR,
    "buf-shrunk": Severity.INFO,
    "headers-differ": Severity.WARNING,
    "excess-payload": Severity.WARNING,
    "payload-repaired": Severity.INFO,
    "kernel-tap-bug": Severity.INFO,
    "duplicate": Severity.WARNING,
    "spoofed-cid": Severity.WARNING,
    "malformed": Severity.WARNING,
    "truncated-headers": Severity.INFO,
    "unsupported": Severity.INFO,
    "mid-stream": Severity.INFO,
    "capture-drops": Severity.WARNING,
    "connections-left": Severity.INFO,
    "packets-given-up": Severity.INFO,
}
"""Every code, with its severity. Codes are stable: scripts depend on them."""

BITS: Final[Mapping[str, int]] = {code: 1 << place for place, code in enumerate(CODES)}
"""A bit for each code, for columns that hold sets of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing worth knowing.

    ``number`` and ``time_ns`` are the packet's that shows it (0 where no single one does), ``conn``
    the connection's number (0: none), ``message`` one sentence, ``facts`` what it rests on.
    """

    code: str
    number: int = 0
    time_ns: int = 0
    conn: int = 0
    message: str
    facts: Mapping[str, int | str | bool] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return CODES[self.code]


Raised = tuple[int, Finding]
"""A finding and the row of the batch that shows it (NULL: none does)."""
