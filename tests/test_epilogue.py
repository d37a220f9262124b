"""Findings that only the end of a capture shows."""

from __future__ import annotations

import pytest
from scenes import BUFFER, CLIENT, MS, SERVER, Script

from vsockdump.frames import InterfaceStatistics
from vsockdump.tracking import pending
from vsockdump.tracking.epilogue import ANSWER_NS
from vsockdump.tracking.tracker import STALL_THRESHOLD_NS, Tracker
from vsockdump.wire import Op

OTHER = (CLIENT._replace(port=7), SERVER)


def codes(tracker: Tracker) -> list[str]:
    return [finding.code for finding in tracker.findings()]


def requested() -> Script:
    script = Script()
    script.add(Op.REQUEST)
    return script


@pytest.mark.parametrize("short", [0, 1])
def test_a_request_that_nobody_answered(short: int) -> None:
    script = requested()
    found = script.track(rest=ANSWER_NS - short).findings()
    assert [f.code for f in found] == ["no-answer"] * (1 - short)
    for finding in found:
        client, server = script.names
        assert finding.message.startswith(server)
        assert client in finding.message
        assert (finding.number, finding.time_ns, finding.conn) == (1, MS, 1)


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.RW, Op.CREDIT_UPDATE])
def test_a_request_that_was_answered_by_anything(op: Op) -> None:
    script = requested()
    script.add(op, answer=True)
    assert "no-answer" not in codes(script.track(rest=ANSWER_NS))


def test_a_request_is_not_waited_for_beyond_the_next_one() -> None:
    script = requested()
    script.add(Op.REQUEST, after=ANSWER_NS - 1)
    script.add(Op.RESPONSE, answer=True)
    assert codes(script.track(rest=ANSWER_NS)) == []
    script = requested()
    script.add(Op.REQUEST, after=ANSWER_NS)
    script.add(Op.RESPONSE, answer=True)
    assert [(f.code, f.number) for f in script.track().findings()] == [("no-answer", 1)]


@pytest.mark.parametrize("flipped", [False, True])
def test_an_unanswered_credit_request_tells_who_asked_when(flipped: bool) -> None:
    script = Script(flipped=flipped)
    script.open()
    script.x(Op.CREDIT_REQUEST)
    asked_ns = script.now_ns
    script.x(Op.CREDIT_UPDATE)
    tracker = script.track(rest=STALL_THRESHOLD_NS)
    (finding,) = [f for f in tracker.findings() if f.code == "credit-request-unanswered"]
    x, y = script.names
    assert finding.message.startswith(f"{y} never answered")
    assert finding.message.endswith(x)
    assert (finding.number, finding.time_ns, finding.conn) == (3, asked_ns, 1)


def test_an_open_stall_is_told_of_at_the_end() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=BUFFER)
    assert codes(script.track(rest=STALL_THRESHOLD_NS - 1)) == []
    (finding,) = script.track(rest=STALL_THRESHOLD_NS).findings()
    assert (finding.code, finding.number) == ("stall-unrecovered", script.count)
    assert finding.facts["recovered"] is False


def test_a_stall_ends_with_the_request_that_succeeds() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=BUFFER)
    script.add(Op.REQUEST, after=STALL_THRESHOLD_NS)
    script.add(Op.RESPONSE, answer=True)
    (finding,) = script.track(rest=10 * STALL_THRESHOLD_NS).findings()
    assert finding.facts["duration_ns"] == STALL_THRESHOLD_NS


def test_packets_that_the_capture_lost() -> None:
    script = Script()
    script.open()
    for lost, told in (((3, None), 3), ((2, 5), 7), ((0, None), None)):
        tracker = script.track(finish=False)
        counted = {at: InterfaceStatistics(dropped=count) for at, count in enumerate(lost)}
        tracker.finish(statistics=counted)
        found = [f.facts["dropped"] for f in tracker.findings() if f.code == "capture-drops"]
        assert found == ([] if told is None else [told])


def test_connections_that_left() -> None:
    script = Script()
    script.open()
    assert codes(script.track(max_connections=1)) == []
    script.add(Op.REQUEST, ends=OTHER)
    tracker = script.track(max_connections=1)
    (finding,) = tracker.findings()
    assert (finding.code, finding.facts) == ("connections-left", {"left": tracker.left})


def test_packets_that_were_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_WAITING", 8)
    script = Script()
    script.open()
    while not (found := script.track().findings()):
        script.add(Op.RW, len=1)
    assert script.count > 2 + 1
    tracker = script.track()
    assert [(f.code, f.facts) for f in found] == [
        ("packets-given-up", {"packets": tracker.given_up})
    ]


def test_the_end_comes_once() -> None:
    script = requested()
    tracker = script.track(rest=ANSWER_NS)
    once = tracker.findings()
    tracker.finish(script.now_ns + 2 * ANSWER_NS)
    assert tracker.findings() == once


def test_who_does_not_look_for_findings_has_none() -> None:
    tracker = requested().track(rest=ANSWER_NS, findings=False)
    assert tracker.findings() == []
    assert tracker.connections()[0].idle_ns == ANSWER_NS
