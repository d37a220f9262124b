"""Every finding by the smallest traffic that shows it, and what differs by as little and does not.

Each of findings_scenes is played with the client as X and with the server, in one batch and in one
batch a packet.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
import strategies
import vsockdump.captures as captures
from findings_scenes import (
    BENIGN,
    RAISES,
    Scene,
    a_full_window_that_is_never_read,
    a_full_window_that_is_read_late,
    as_many_bytes_as_the_header_says,
    data_before_the_answer,
    one_byte_more_than_the_window,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import BOTH, BUFFER, CLIENT, MS, SERVER, Script, captured
from strategies import Traffic

from vsockdump import wire
from vsockdump.frames import Interface
from vsockdump.kernels import TAP_BUGS
from vsockdump.tracking.columns import NULL
from vsockdump.tracking.findings import BITS, CODES, Finding, Severity
from vsockdump.tracking.tracker import STALL_THRESHOLD_NS, Tracker
from vsockdump.wire import HEADERS_LEN, Op, RwFlag, Type

# Each of them, both ways.

BOTH_WAYS = pytest.mark.parametrize("flipped", [False, True], ids=["client", "server"])
PIECEWISE = pytest.mark.parametrize("singly", [False, True], ids=["whole", "singly"])


def play(scene: Scene, *, flipped: bool) -> Script:
    script = Script(flipped=flipped)
    scene(script)
    return script


def named(scenes: list[tuple[str, Scene]]) -> Any:
    return pytest.mark.parametrize(
        ("code", "scene"), scenes, ids=[f"{code}:{scene.__name__}" for code, scene in scenes]
    )


BOTH_SIDES_DO_IT = ("mid-stream", "spoofed-cid")
"""Scenes that do not tell X from Y: once a connection, and once for each side."""


@BOTH_WAYS
@PIECEWISE
@named(RAISES)
def test_a_finding_is_made(code: str, scene: Scene, flipped: bool, singly: bool) -> None:
    script = play(scene, flipped=flipped)
    found = [f for f in script.track(singly=singly).findings() if f.code == code]
    assert len(found) == (2 if code == "spoofed-cid" else 1)
    (finding, *_) = found
    assert finding.severity is CODES[code]
    assert finding.conn == 1
    x, y = script.names
    if code != "spoofed-cid":
        assert x in finding.message
        assert y in finding.message
    packet = script.packets[finding.number - 1]
    assert packet.time_ns == finding.time_ns
    assert all(type(value) in (int, str, bool) for value in finding.facts.values())


@BOTH_WAYS
@PIECEWISE
@named(BENIGN)
def test_no_finding_is_made(code: str, scene: Scene, flipped: bool, singly: bool) -> None:
    tracker = play(scene, flipped=flipped).track(singly=singly)
    assert code not in [finding.code for finding in tracker.findings()]


@BOTH_WAYS
@named(RAISES)
def test_the_packet_that_shows_it_is_marked(code: str, scene: Scene, flipped: bool) -> None:
    script = play(scene, flipped=flipped)
    tracker = Tracker()
    found = tracker.feed(script.batch()).found
    shown = [finding for finding in tracker.findings() if finding.number]
    now = Counter(finding.code for finding in shown)
    marked = Counter(c for c in CODES for bits in found.tolist() if bits & BITS[c])
    assert marked == now
    for finding in shown:
        # A stall begins with one packet, and another shows that it counts.
        if finding.code not in ("stall", "stall-unrecovered"):
            assert int(found[finding.number - 1]) & BITS[finding.code]


ONCE_A_DIRECTION = [
    (code, scene)
    for code, scene in RAISES
    if code not in ("stall", "stall-unrecovered", "credit-request-unanswered", *BOTH_SIDES_DO_IT)
]


@PIECEWISE
@named(ONCE_A_DIRECTION)
def test_a_direction_is_told_of_once(code: str, scene: Scene, singly: bool) -> None:
    script = play(scene, flipped=False)
    once = [f for f in script.track().findings() if f.code == code]
    # The same packets again, without the REQUEST: on the same connection.
    for packet, frame in zip(list(script.packets), list(script.frames), strict=True):
        if packet.op not in (Op.REQUEST, Op.RESPONSE, Op.SHUTDOWN, Op.RST):
            script.packets.append(packet)
            script.frames.append(frame)
    again = [f for f in script.track(singly=singly).findings() if f.code == code]
    assert [f.number for f in again if f.conn == 1] == [f.number for f in once]


@PIECEWISE
def test_each_direction_is_told_of(singly: bool) -> None:
    script = Script()
    script.open()
    for answer in (False, True, False, True):
        script.add(Op.RW, answer=answer, len=BUFFER + 1)
        script.add(Op.CREDIT_UPDATE, answer=not answer, fwd=BUFFER + 1)
    found = [f for f in script.track(singly=singly).findings() if f.code == "beyond-window"]
    client, server = script.names
    assert [f.message.split()[0] for f in found] == [client, server]


# Who is said to be at fault.


@BOTH_WAYS
@pytest.mark.parametrize(
    "scene", [a_full_window_that_is_read_late, a_full_window_that_is_never_read]
)
def test_a_stall_names_who_does_not_read(scene: Scene, flipped: bool) -> None:
    script = play(scene, flipped=flipped)
    (stall,) = [f for f in script.track().findings() if f.code.startswith("stall")]
    x, y = script.names
    assert stall.message.startswith(f"{x} could not send")
    assert f"{y} was not reading" in stall.message
    assert stall.facts["not_reading"] == y
    assert stall.facts["duration_ns"] == STALL_THRESHOLD_NS
    assert stall.facts["recovered"] == (scene is a_full_window_that_is_read_late)


def test_each_stall_that_counts_is_told_of() -> None:
    script = Script()
    script.open()
    for count in range(1, 4):
        script.add(Op.RW, len=BUFFER)
        script.add(
            Op.CREDIT_UPDATE, answer=True, fwd=count * BUFFER, after=count * STALL_THRESHOLD_NS // 2
        )
    told = [f.facts["duration_ns"] for f in script.track().findings() if f.code == "stall"]
    assert told == [STALL_THRESHOLD_NS, 3 * STALL_THRESHOLD_NS // 2]


def test_who_refuses_is_named_and_who_gave_up() -> None:
    refused, gave_up = Script(), Script()
    for script, server in ((refused, True), (gave_up, False)):
        script.add(Op.REQUEST)
        script.add(Op.RST, answer=server, buf=0)
    client, server = refused.names
    (finding,) = refused.track().findings()
    assert (finding.code, finding.message.split()[0]) == ("refused", server)
    (finding,) = gave_up.track().findings()
    assert (finding.code, finding.message.split()[0]) == ("no-answer", client)
    assert server in finding.message


def test_a_server_that_sends_instead_of_answering_is_not_said_to_wait_for_an_answer() -> None:
    script = play(data_before_the_answer, flipped=True)
    (finding,) = script.track().findings()
    x, y = script.names
    assert finding.message.startswith(f"{x} sent data to {y} instead of")


# Packets that belong to no connection.


def stop_scene(code: str, script: Script) -> None:
    if code == "malformed":
        script.add(Op.RW, header={"transport_len": wire.VIRTIO_HDR_LEN - 1})
    elif code == "unsupported":
        script.add(Op.RW, header={"transport": max(wire.Transport) + 1})
    else:
        script.add(Op.RW, decoded=False)


@PIECEWISE
@pytest.mark.parametrize("code", ["malformed", "truncated-headers", "unsupported"])
def test_packets_that_are_not_decoded_are_told_of_once(code: str, singly: bool) -> None:
    script = Script()
    script.open()
    for _ in range(3):
        stop_scene(code, script)
    (finding,) = script.track(singly=singly).findings()
    assert (finding.code, finding.number, finding.conn) == (code, 3, 0)
    assert finding.time_ns == script.packets[2].time_ns
    assert finding.facts["layer"] in finding.message


def test_cut_payload_is_nothing_to_tell_of() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=100, payload=b"cut")
    assert script.track().findings() == []


def test_a_kernel_s_mistakes_are_told_of_once_each() -> None:
    release = (6, 12, 1)
    kernel = f"Linux {'.'.join(map(str, release))}-evil\x1b[31m"
    script = Script(interfaces=(Interface(os=kernel), Interface(os=kernel), Interface()))
    script.open()
    found = script.track(singly=True).findings()
    expected = [bug.name for bug in TAP_BUGS if bug.affects(release)]
    assert [f.facts["bug"] for f in found] == expected != []
    assert {(f.code, f.number) for f in found} == {("kernel-tap-bug", 0)}
    # What the file says is not repeated.
    assert all(f.message.isprintable() and "evil" not in f.message for f in found)
    assert Script(interfaces=(Interface(os="Linux 7.1"),)).track().findings() == []


def test_interfaces_that_come_later_are_looked_at() -> None:
    tracker = Tracker()
    first = Script()
    first.open()
    tracker.feed(first.batch())
    later = Script(after=first, interfaces=(*first.interfaces, Interface(os="Linux 6.12.1")))
    later.add(Op.RW)
    tracker.feed(later.batch())
    assert {f.code for f in tracker.findings()} == {"kernel-tap-bug"}


# While a capture goes on.


def test_fresh_findings_come_once() -> None:
    script = play(one_byte_more_than_the_window, flipped=False)
    tracker = script.track(finish=False)
    assert [f.code for f in tracker.fresh()] == ["beyond-window"]
    assert tracker.fresh() == []
    assert [f.code for f in tracker.findings()] == ["beyond-window"]


def test_a_stall_that_lasts_is_fresh_once_it_counts_and_then_no_more() -> None:
    script = Script()
    script.open()
    script.add(Op.RW, len=BUFFER)
    tracker = script.track(finish=False)
    begin = script.now_ns
    assert tracker.fresh(begin + STALL_THRESHOLD_NS - 1) == []
    (stall,) = tracker.fresh(begin + STALL_THRESHOLD_NS)
    assert (stall.code, stall.number) == ("stall", script.count)
    assert not stall.facts["recovered"]
    assert tracker.fresh(begin + 2 * STALL_THRESHOLD_NS) == []
    script.add(Op.CREDIT_UPDATE, answer=True, fwd=BUFFER, after=3 * STALL_THRESHOLD_NS)
    tracker.feed(script.batches(singly=True)[-1])
    assert [f.code for f in tracker.fresh(script.now_ns)] == ["stall"]


def test_findings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsockdump.tracking.tracker.MOST_FINDINGS", 3)
    script = Script()
    for port in range(1, 8):
        script.add(Op.RW, ends=(CLIENT._replace(port=port), SERVER))
    tracker = script.track(singly=True)
    assert len(tracker.findings()) == 3
    assert tracker.findings_dropped == 4


# Traffic that is as it should be.


@st.composite
def polite(draw: st.DrawFn) -> Script:
    """Connections whose sides keep to the rules, read in time and close when all is read."""
    script = Script(type=draw(st.sampled_from([Type.STREAM, Type.SEQPACKET])))
    buffers = [draw(st.sampled_from((16_384, 262_144))) for _ in range(2)]
    for port in range(1, draw(st.integers(1, 3)) + 1):
        ends = (CLIENT._replace(port=port), SERVER)
        sent, read = [0, 0], [0, 0]

        def say(side: int, op: int, *, ends: Any = ends, read: Any = read, **given: Any) -> None:
            fwd = read[1 - side] % 2**32
            script.add(op, answer=bool(side), ends=ends, buf=buffers[side], fwd=fwd, **given)

        def drain(side: int, *, sent: Any = sent, read: Any = read, say: Any = say) -> None:
            read[side] = sent[side]
            say(1 - side, Op.CREDIT_UPDATE)

        say(0, Op.REQUEST)
        say(1, Op.RESPONSE)
        for side, amount in draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 65_536)))):
            window = min(buffers) - sent[side] + read[side]
            length = min(amount, window)
            sent[side] += length
            say(side, Op.RW, len=length, flags=RwFlag.EOM)
            if window - length < min(buffers) // 2:
                drain(side)
        for side in (0, 1):
            drain(side)
        closer = draw(st.integers(0, 1))
        say(closer, Op.SHUTDOWN, flags=BOTH)
        for _ in range(draw(st.integers(1, 2))):
            say(1 - closer, Op.RST)
    return script


@given(polite())
@settings(max_examples=40, deadline=None)
def test_polite_traffic_has_nothing_to_tell_of(script: Script) -> None:
    assert script.track().findings() == []


APPLICATIONS_DO_IT = {
    *("stall", "stall-unrecovered", "unread-data", "reset", "refused", "no-answer"),
    *("data-after-shutdown", "packet-limit-near", "packet-limit-reset"),
    # The strategies close a connection and open it again by the same ports, at any moment.
    *("data-before-response", "credit-request-unanswered"),
    # One of their pairs has a CID that nobody has.
    "spoofed-cid",
}
"""Warnings that sides may cause which keep to the account of credit."""


@given(strategies.honest())
@settings(max_examples=40, deadline=None)
def test_honest_traffic_breaks_no_rule_of_credit(traffic: Traffic) -> None:
    tracker = Tracker()
    for batch in traffic.batches():
        tracker.feed(batch)
    tracker.finish()
    serious = {f.code for f in tracker.findings() if f.severity > Severity.INFO}
    assert serious <= APPLICATIONS_DO_IT


SHOWN: Final = {
    # Bundled captures to the findings above info that they were made to show.
    "dying-server-6.12.pcapng": {"unread-data"},
    "host-and-guest-6.1.pcapng": {"stall"},
    "host-and-guest-6.12.pcapng": {"stall"},
    "never-reads-6.12.pcapng": {"stall-unrecovered"},
    "refused-6.12.pcapng": {"refused"},
    "stall-6.1.pcapng": {"stall"},
    "stall-6.12.pcapng": {"stall"},
    "tiny-flood-6.1.pcapng": {"packet-limit-near", "unread-data"},
    "tiny-flood-6.12.pcapng": {"packet-limit-near", "packet-limit-reset", "reset", "unread-data"},
    "vsock-test-6.12.pcapng": {"refused"},
}


@pytest.mark.parametrize("name", captures.names())
def test_real_kernels_show_what_their_captures_were_made_for(name: str) -> None:
    tracker = Tracker()
    for batch in captured(name):
        tracker.feed(batch)
    tracker.finish()
    found = {f.code for f in tracker.findings() if f.severity > Severity.INFO}
    assert found == SHOWN.get(name, set())


# Whatever comes.


def order(finding: Finding) -> tuple[Any, ...]:
    return finding.number, finding.code, finding.conn, finding.message


@given(strategies.hostile() | strategies.nonsense())
@settings(max_examples=30, deadline=None)
def test_findings_do_not_depend_on_batches(traffic: Traffic) -> None:
    whole = Tracker(stall_threshold_ns=traffic.stall_threshold_ns)
    parts = Tracker(stall_threshold_ns=traffic.stall_threshold_ns)
    marks = [parts.feed(batch).found for batch in traffic.batches()]
    (found,) = [whole.feed(batch).found for batch in replace(traffic, cuts=()).batches()]
    for tracker in (whole, parts):
        tracker.finish(traffic.end_ns)
    told = sorted(whole.findings(), key=order)
    assert told == sorted(parts.findings(), key=order)
    assert np.concatenate(marks).tolist() == found.tolist()
    for finding in told:
        assert finding.message.isprintable()
        assert finding.code in CODES
        assert finding.conn >= 0
        assert finding.number != NULL


def test_frames_are_as_long_as_the_scenes_say() -> None:
    script = play(as_many_bytes_as_the_header_says, flipped=False)
    assert len(script.frames[-1]) == HEADERS_LEN + script.packets[-1].len
    assert script.packets[-1].time_ns == script.count * MS
