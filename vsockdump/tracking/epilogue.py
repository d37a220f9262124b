"""Findings that only the end of a capture shows: what never came, and what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vsockdump.frames import InterfaceStatistics
from vsockdump.tracking import report
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.detect import Detector, names
from vsockdump.tracking.findings import Finding
from vsockdump.tracking.states import State
from vsockdump.tracking.store import Store

ANSWER_NS: Final = 2_000_000_000
"""Linux gives up connecting after two seconds; a younger request may yet be answered."""


class Epilogue:
    """Looks over the connections once more, at the end."""

    def __init__(self, store: Store, detector: Detector) -> None:
        self._store = store
        self._detector = detector

    def findings(
        self, end_ns: int, threshold_ns: int, statistics: Mapping[int, InterfaceStatistics]
    ) -> list[Finding]:
        """What the end of the capture at ``end_ns`` shows."""
        found = [
            self._detector.stall(stall, slot)
            for slot, stall in report.open_stalls(self._store, end_ns, threshold_ns)
        ]
        return (
            found
            + self._unanswered(end_ns)
            + self._credit(end_ns, threshold_ns)
            + self._drops(statistics)
        )

    def _unanswered(self, end_ns: int) -> list[Finding]:
        store, found = self._store, []
        slots = store.slots()
        waits = store.conn["state"][slots] == State.CONNECTING
        since = store.conn["start_ns"][slots]
        waits &= report.ends(store, slots, end_ns) - since >= ANSWER_NS
        for slot in slots[waits].tolist():
            client, server = names(store, slot)
            found.append(
                Finding(
                    code="no-answer",
                    number=int(store.conn["first_number"][slot]),
                    time_ns=int(store.conn["start_ns"][slot]),
                    conn=int(store.conn["number"][slot]),
                    message=f"{server} never answered the request from {client}",
                )
            )
        return found

    def _credit(self, end_ns: int, threshold_ns: int) -> list[Finding]:
        store, found = self._store, []
        slots = store.slots()
        final = report.ends(store, slots, end_ns)
        for sender in (0, 1):
            waits = store.side["asked"][slots, sender] != NULL
            waits &= final - store.side["asked_ns"][slots, sender] >= threshold_ns
            for slot in slots[waits].tolist():
                asks, owes = names(store, slot)[:: -1 if sender else 1]
                found.append(
                    Finding(
                        code="credit-request-unanswered",
                        number=int(store.side["asked"][slot, sender]),
                        time_ns=int(store.side["asked_ns"][slot, sender]),
                        conn=int(store.conn["number"][slot]),
                        message=f"{owes} never answered the credit request from {asks}",
                    )
                )
        return found

    def _drops(self, statistics: Mapping[int, InterfaceStatistics]) -> list[Finding]:
        dropped = sum(counted.dropped or 0 for counted in statistics.values())
        if not dropped:
            return []
        message = f"the capture lost {dropped} packets: figures are lower bounds"
        return [Finding(code="capture-drops", message=message, facts={"dropped": dropped})]

    def bounds(self, left: int, given_up: int) -> list[Finding]:
        """What the bounds on memory cost."""
        found = []
        if left:
            message = f"{left} connections were given up to keep the limit of connections"
            found.append(Finding(code="connections-left", message=message, facts={"left": left}))
        if given_up:
            message = f"{given_up} packets were forgotten while they waited to be read"
            found.append(
                Finding(code="packets-given-up", message=message, facts={"packets": given_up})
            )
        return found
