"""What was sent is what was captured, byte for byte, and tcpdump beside us saw the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain_savefile
import pytest

from . import guest, kernel_suite, live, vm
from .peers import CLOSE_SECONDS
from .plain_frames import EOM, EOR, Frame, Pair, Sent, frames, sent
from .results import told

Judge = Callable[..., str]
EMPTY = hashlib.sha256().hexdigest()
BESIDE_TCPDUMP = ("traffic", "host-and-guest")
"""Scenarios that both tools captured, on every kernel."""
SEQPACKET = 2
REQUEST, RST = 1, 3
OS, APPLICATION, NAME, RECEIVED, DROPPED = 3, 4, 2, 4, 5
"""Codes of pcapng options: of the section header, of an interface, of its statistics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A scenario's captures and its truth."""

    folder: Path
    ours: list[Frame]
    theirs: list[Frame]
    truth: dict[str, Any]
    counts: dict[str, dict[str, int]]

    def connections(self, *makers: str) -> list[dict[str, Any]]:
        """The records of some makers' connections, of all of them by default."""
        chosen = makers or tuple(self.truth)
        return [c for maker in chosen for c in self.truth[maker]["connections"]]


def captured(run: vm.Run, scenario: str) -> Captured:
    folder = run.scenario(scenario)
    tools = vm.read_json(folder / "tools.json")
    return Captured(
        folder=folder,
        ours=frames(folder / "vsockdump.pcapng"),
        theirs=frames(folder / "tcpdump.pcap"),
        truth=vm.read_json(folder / "truth.json"),
        counts={name: tool["counts"] for name, tool in tools.items()},
    )


@pytest.fixture(scope="session", params=BESIDE_TCPDUMP)
def beside(request: pytest.FixtureRequest, run: vm.Run) -> Captured:
    return captured(run, request.param)


@pytest.fixture(scope="session")
def loopback(run: vm.Run) -> Captured:
    return captured(run, "traffic")


def of_connections(found: list[Frame], connections: list[dict[str, Any]]) -> list[Frame]:
    """The frames between the ports of these connections."""
    pairs = {(c["client"][1], c["server"][1]) for c in connections}
    return [f for f in found if f.ports in pairs or f.ports[::-1] in pairs]


def sides(connection: dict[str, Any]) -> list[tuple[Pair, dict[str, Any]]]:
    """Both directions of a connection: its ports and what was recorded of it."""
    client, server = connection["client"][1], connection["server"][1]
    return [
        ((client, server), connection["client_to_server"]),
        ((server, client), connection["server_to_client"]),
    ]


def test_nothing_was_dropped(beside: Captured) -> None:
    for counts in beside.counts.values():
        assert counts["dropped by kernel"] == 0
        assert counts["captured"] == counts["received by filter"] > 0


def test_the_closing_figures_are_those_of_the_file(beside: Captured) -> None:
    plain = plain_savefile.read(beside.folder / "vsockdump.pcapng")
    (statistics,) = plain.statistics
    figures = {
        code: int.from_bytes(plain_savefile.first(statistics.options, code) or b"", "little")
        for code in (RECEIVED, DROPPED)
    }
    counts = beside.counts["vsockdump"]
    assert len(plain.packets) == counts["captured"]
    assert figures == {
        RECEIVED: counts["received by filter"],
        DROPPED: counts["dropped by kernel"],
    }


def test_tcpdump_saw_the_same_packets(beside: Captured) -> None:
    ours = [(f.data, f.origlen) for f in beside.ours]
    theirs = [(f.data, f.origlen) for f in beside.theirs]
    assert len(ours) == len(theirs)
    assert ours == theirs


def test_times_are_the_kernels_own_nanoseconds(beside: Captured) -> None:
    # Whichever socket takes a packet first stamps it, mostly for both.
    assert [f.time_ns for f in beside.ours] == sorted(f.time_ns or 0 for f in beside.ours)
    assert any((f.time_ns or 0) % 1000 for f in beside.ours)
    events = [e["time_ns"] for c in beside.connections() for e in c["events"]]
    first, last = beside.ours[0].time_ns or 0, beside.ours[-1].time_ns or 0
    late = int(CLOSE_SECONDS * 10**9)
    assert min(events) - 10**9 < first < last < max(events) + 10**9 + late


def test_what_was_sent_is_what_was_captured(beside: Captured) -> None:
    connections = [c for c in beside.connections() if c not in reused(beside)]
    found = sent(of_connections(beside.ours, connections))
    checked = 0
    for connection in connections:
        for ports, true in sides(connection):
            seen = found.get(ports, Sent(count=0, sha256=EMPTY, messages=[], flags=[]))
            assert (seen.count, seen.sha256) == (true["bytes"], true["sha256"]), connection
            checked += true["bytes"]
    assert checked == sum(f.length for f in of_connections(beside.ours, connections))
    assert checked > 1_000_000


def reused(capture: Captured) -> list[dict[str, Any]]:
    """The connections that share a pair of ports with another."""
    pairs = Counter((c["client"][1], c["server"][1]) for c in capture.connections())
    return [c for c in capture.connections() if pairs[c["client"][1], c["server"][1]] > 1]


def test_connections_on_the_same_ports_are_captured_one_after_the_other(
    loopback: Captured,
) -> None:
    connections = reused(loopback)
    assert len(connections) == len(loopback.connections("reused_pair")) > 1
    ports = connections[0]["client"][1], connections[0]["server"][1]
    found = of_connections(loopback.ours, connections)
    begins = [n for n, f in enumerate(found) if f.op == REQUEST]
    assert len(begins) == len(connections)
    for connection, begin, end in zip(connections, begins, [*begins[1:], len(found)], strict=True):
        assert found[begin].ports == ports
        seen = sent(found[begin:end])
        for pair, true in sides(connection):
            assert (seen[pair].count, seen[pair].sha256) == (true["bytes"], true["sha256"])


def test_nothing_else_is_in_the_capture(beside: Captured) -> None:
    # Attempts that were refused have a connection's record too.
    assert len(of_connections(beside.ours, beside.connections())) == len(beside.ours)


def test_every_connection_begins_with_its_request(beside: Captured) -> None:
    asked = [(f.src[1], f.dst[1]) for f in beside.ours if f.op == REQUEST]
    assert asked == [(c["client"][1], c["server"][1]) for c in beside.connections()]


def test_refused_connections_are_a_request_and_a_reset(loopback: Captured) -> None:
    connections = loopback.connections("refused")
    found = of_connections(loopback.ours, connections)
    assert [f.op for f in found] == [REQUEST, RST] * len(connections)


@pytest.mark.parametrize("maker", ["seqpacket", "seqpacket_bulk"])
def test_messages_keep_their_bounds_and_flags(loopback: Captured, maker: str) -> None:
    (connection,) = loopback.connections(maker)
    found = of_connections(loopback.ours, [connection])
    assert {f.kind for f in found} == {SEQPACKET}
    values = {"EOM": EOM, "EOM|EOR": EOM | EOR}
    for ports, true in sides(connection):
        if true["bytes"]:
            seen = sent(found)[ports]
            assert seen.messages == true["sizes"]
            assert seen.flags == [values[name] for name in true["flags"]]


def test_a_guest_and_its_host_have_their_cids(run: vm.Run) -> None:
    found = captured(run, "host-and-guest").ours
    ends = {(f.src[0], f.dst[0]) for f in found}
    assert ends == {(guest.CID, guest.HOST), (guest.HOST, guest.CID)}


def test_our_own_decoding_of_the_file_says_the_same(beside: Captured) -> None:
    said = told("--json", "-r", beside.folder / "vsockdump.pcapng")
    assert len(said) == len(beside.ours)
    for line, plain in zip(said, beside.ours, strict=True):
        assert (line["src_cid"], line["src_port"]) == plain.src
        assert (line["dst_cid"], line["dst_port"]) == plain.dst
        assert (line["length"], line["captured"]) == (plain.length, len(plain.payload))
        assert (line["flags"], line["time_ns"]) == (plain.flags, plain.time_ns)
        assert (line["status"], line["interface"]) == ("ok", "vsockmon0")


def test_the_file_says_where_it_is_from(run: vm.Run) -> None:
    plain = plain_savefile.read(run.scenario("traffic") / "vsockdump.pcapng")
    (section,), (interface,) = plain.sections, plain.interfaces
    system = (plain_savefile.first(section.options, OS) or b"").decode()
    assert system == f"Linux {run.kernel.release}"
    assert (plain_savefile.first(section.options, APPLICATION) or b"").startswith(b"vsockdump ")
    assert plain_savefile.first(interface.options, NAME) == b"vsockmon0"
    assert interface.ticks_per_second == 10**9


def test_wireshark_reads_the_file_without_complaint(
    run: vm.Run, tshark: Judge, capinfos: Judge
) -> None:
    file = run.scenario("traffic") / "vsockdump.pcapng"
    count = len(frames(file))
    assert len(tshark("-r", file, "-T", "fields", "-e", "frame.number").splitlines()) == count
    assert str(count) in capinfos("-c", "-M", file)


# The kernel's own programs, on the kernel that their source belongs to.


def test_the_kernels_own_tests_pass_while_they_are_captured(suite_run: vm.Run) -> None:
    folder = suite_run.scenario("suite")
    outcomes = vm.read_json(folder / "truth.json")
    assert set(outcomes["vsock_test"].values()) == {"ok"}
    assert Counter(outcomes["vsock_diag_test"].values()) == {
        "ok": len(outcomes["vsock_diag_test"]) - len(kernel_suite.DIAG_SKIPPED),
        "skipped": len(kernel_suite.DIAG_SKIPPED),
    }


@pytest.mark.parametrize("scenario", list(live.SUITE_SCENARIOS))
def test_tcpdump_saw_the_same_of_the_kernels_programs(suite_run: vm.Run, scenario: str) -> None:
    seen = captured(suite_run, scenario)
    test_nothing_was_dropped(seen)
    test_tcpdump_saw_the_same_packets(seen)


def test_all_that_vsock_perf_sent_was_captured(suite_run: vm.Run) -> None:
    seen = captured(suite_run, "perf")
    assert seen.truth["sent"] == kernel_suite.PERF_BYTES
    moved = sent(seen.ours)
    assert [each.count for each in moved.values()] == [kernel_suite.PERF_BYTES]
    assert max(f.length for f in seen.ours) == max(len(f.payload) for f in seen.ours) == 1 << 16
