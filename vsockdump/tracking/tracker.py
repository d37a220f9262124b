"""Follow every connection and its credit, batch by batch, in bounded memory.

The tracker puts the other modules of this folder in order: assign rows to connections, advance
their lives, account their credit, and, as far as it is asked to, keep figures for a report and
look for findings. It reads no clock: whoever has one tells it the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vsockdump.frames import Interface, InterfaceStatistics, Ints
from vsockdump.packets import PacketBatch
from vsockdump.tracking import report
from vsockdump.tracking.assign import Assigner, Rows
from vsockdump.tracking.columns import NULL, TrackedBatch
from vsockdump.tracking.credit import Account, Life, account, live
from vsockdump.tracking.findings import BITS, MOST_FINDINGS, Finding, Raised
from vsockdump.tracking.limits import MAX_CONNECTIONS, STALL_THRESHOLD_NS
from vsockdump.tracking.pending import Outstanding, Pending
from vsockdump.tracking.repair import Repairer
from vsockdump.tracking.report import Connection
from vsockdump.tracking.store import NO_TIME, Store
from vsockdump.tracking.times import Stall, messages, spend, stalls
from vsockdump.tracking.totals import extremes, volumes

if TYPE_CHECKING:
    from vsockdump.tracking.detect import Detector

_FIGURES: Final = {
    "tx_cnt": "tx_cnt",
    "in_flight": "in_flight",
    "window": "window",
    "effective_window": "effective",
}
"""Columns of a TrackedBatch and what an Account calls them."""
Watch = Callable[[Rows, tuple[Account, Account], Ints], None]
"""Given a batch's rows, both accounts, and the connection number of each run."""
MOST_STALLS: Final = 100_000
"""Stalls kept one by one; later ones still count in their connections' figures."""


class Tracker:
    """Feed it every batch in order, then ``finish()`` it, then ask.

    ``report`` keeps the figures behind ``connections()``; ``findings`` looks for what is wrong
    (and needs the figures). Without both it gives each packet its connection, seq and windows,
    at the least cost. ``watch`` is shown both directions' accounts of every batch.
    """

    def __init__(
        self,
        *,
        stall_threshold_ns: int = STALL_THRESHOLD_NS,
        max_connections: int = MAX_CONNECTIONS,
        report: bool = True,
        findings: bool = True,
        watch: Watch | None = None,
    ) -> None:
        self._threshold = stall_threshold_ns
        self._store = Store(max_connections)
        self._assigner = Assigner(self._store)
        self._pending = Pending(self._store)
        self._detector: Detector | None = None
        if findings:
            # Not everybody who tracks has to load these.
            from vsockdump.tracking.detect import Detector
            from vsockdump.tracking.epilogue import Epilogue

            self._detector = Detector(self._store)
            self._epilogue = Epilogue(self._store, self._detector)
        self._repairer = Repairer(self._store)
        self._report = report or findings
        self._watch = watch
        self._end_ns = NO_TIME
        self._interfaces: tuple[Interface, ...] = ()
        self._findings: list[Finding] = []
        self._fresh: list[Finding] = []
        self._stalls: list[Stall] = []
        self._finished = False
        self.findings_dropped = 0
        """Findings beyond MOST_FINDINGS."""

    @property
    def remembered(self) -> int:
        """Connections that are remembered now."""
        return len(self._store)

    @property
    def left(self) -> int:
        """Connections that were given up to keep the limit."""
        return self._store.left

    @property
    def given_up(self) -> int:
        """Packets that were forgotten while they waited to be read."""
        return self._pending.given_up

    def feed(self, batch: PacketBatch) -> TrackedBatch:
        """Track a batch; the columns are of its rows, in its order."""
        raised: list[Raised] = []
        detector = self._detector
        self._pending.count()
        if len(batch):
            self._end_ns = max(self._end_ns, int(batch.frames.time_ns.max()))
        if detector is not None:
            raised += detector.interfaces(batch)
            raised += detector.undecoded(batch)
        rows = self._assigner.assign(batch)
        if rows is None:
            self._keep(raised)
            return self._columns(batch, None, None, None, raised)
        repaired = self._repairer.feed(rows)
        life = live(rows, self._store)
        accounts = account(rows, life, self._store)
        if self._watch is not None:
            self._watch(rows, accounts, self._store.conn["number"][rows.slots])
        outstanding = None
        if self._report:
            volumes(rows, self._store)
            extremes(rows, accounts, self._store)
            ended: list[tuple[int, Stall]] = []
            if spend(rows, life, accounts, self._store):
                ended = stalls(rows, accounts, self._store, self._threshold)
            self._stalls += [stall for _, stall in ended][: MOST_STALLS - len(self._stalls)]
            messages(rows, accounts, self._store)
            outstanding = self._pending.feed(rows, accounts)
            if detector is not None:
                raised += detector.feed(rows, life, accounts, outstanding())
                raised += detector.stalls(rows, ended)
                raised += detector.repaired(rows, repaired)
        tracked = self._columns(batch, rows, life, (accounts, outstanding), raised)
        self._keep(raised)
        self._pending.forget(self._store.evict())
        return tracked

    def _columns(
        self,
        batch: PacketBatch,
        rows: Rows | None,
        life: Life | None,
        figures: tuple[tuple[Account, Account], Outstanding | None] | None,
        raised: list[Raised],
    ) -> TrackedBatch:
        count = len(batch)
        found = np.zeros(count, np.uint64)
        for row, finding in raised:
            if row != NULL:
                found[row] |= np.uint64(BITS[finding.code])
        if rows is None or life is None or figures is None:
            nothing, zeros = np.full(count, NULL), np.zeros(count, np.int64)
            unknown: dict[str, NDArray[Any]] = dict.fromkeys((*_FIGURES, "outstanding"), nothing)
            unstalled = np.zeros(count, np.bool_)
            return TrackedBatch(
                conn=zeros, way=zeros, stalled=unstalled, state=nothing, found=found, **unknown
            )
        accounts, outstanding = figures
        server = rows.server

        def scatter(values: NDArray[Any], missing: int) -> NDArray[Any]:
            if values.size == count:
                column = np.empty(count, values.dtype)
            else:
                column = np.full(count, missing, values.dtype)
            column[rows.row] = values
            return column

        def sender(values: Sequence[NDArray[Any]], missing: int) -> NDArray[Any]:
            return scatter(np.where(server, values[1], values[0]), missing)

        def figure(name: str) -> NDArray[Any]:
            return sender([getattr(account, name) for account in accounts], NULL)

        def waiting() -> NDArray[Any]:
            return np.full(count, NULL) if outstanding is None else sender(outstanding(), NULL)

        # Slots may be given to others before somebody looks.
        numbers = self._store.conn["number"][rows.slots]
        return TrackedBatch(
            conn=lambda: scatter(numbers.take(rows.runs.run), 0),
            way=lambda: scatter(2 * rows.slot + server, 2 * int(rows.slot.max()) + 2),
            outstanding=waiting,
            stalled=lambda: sender([account.stalled for account in accounts], False),
            state=lambda: scatter(life.after.astype(np.int64), NULL),
            found=found,
            **{name: partial(figure, of) for name, of in _FIGURES.items()},
        )

    # -- findings -----------------------------------------------------------------------------

    def _keep(self, raised: list[Raised]) -> None:
        findings = sorted((finding for _, finding in raised), key=lambda f: f.number)
        room = max(MOST_FINDINGS - len(self._findings), 0)
        self.findings_dropped += max(len(findings) - room, 0)
        self._findings += findings[:room]
        self._fresh += findings[:room]

    def fresh(self, now_ns: int | None = None) -> list[Finding]:
        """Findings since the last call, for a live display.

        With ``now_ns``, stalls that still last and count by now are among them, once; when they
        are over they come again, as what they were. Nothing comes unless findings are asked for.
        """
        fresh, self._fresh = self._fresh, []
        if now_ns is None or self._detector is None:
            return fresh
        told = self._store.side["stall_told"]
        for slot, stall in report.open_stalls(self._store, now_ns, self._threshold):
            if told[slot, stall.sender] != stall.number:
                told[slot, stall.sender] = stall.number
                fresh.append(self._detector.stall(stall, slot, lasts=True))
        return fresh

    def findings(self) -> list[Finding]:
        """Every finding, in order of the packets that show them."""
        return sorted(self._findings, key=lambda finding: finding.number)

    # -- the end ------------------------------------------------------------------------------

    def finish(
        self,
        end_ns: int | None = None,
        statistics: Mapping[int, InterfaceStatistics] | None = None,
    ) -> None:
        """The capture is over, at ``end_ns`` (default: its latest packet).

        ``statistics`` are the source's counters, which tell of packets dropped.
        """
        if end_ns is not None:
            self._end_ns = end_ns
        if self._detector is None or self._finished:
            return
        self._finished = True
        last = self._epilogue.findings(self._end_ns, self._threshold, statistics or {})
        last += self._epilogue.bounds(self.left, self.given_up)
        self._keep([(NULL, finding) for finding in last])

    def stalls(self) -> list[Stall]:
        """The stalls that count, in order of their beginning."""
        last = [s for _, s in report.open_stalls(self._store, self._end_ns, self._threshold)]
        return sorted(self._stalls + last, key=lambda stall: stall.number)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every connection's figures as columns, which pandas and polars take as they are."""
        return report.columns(self._store, self._pending, self._end_ns, self._threshold)

    def record_array(self) -> NDArray[Any]:
        """The same as one numpy record array."""
        return report.record_array(self.columns())

    def connections(self) -> list[Connection]:
        """Every connection that is still remembered, in order of its first packet."""
        return report.objects(self.columns())
