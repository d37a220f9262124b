"""conns, credit and check say of live traffic what those who made it wrote down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import run as vsockdump
from test_tracker import track

from vsockdump.tracking.report import DIRECTIONS
from vsockdump.wire import Op

from . import guest, live, nested, tracking, traffic, vm
from .results import batches, told, whole

NS = 10**9
SLACK_S = 0.6
"""How late an emulated processor on a busy machine may be with its next step."""
GUEST_SLACK_S = 3.0
"""The same of a processor that such a processor emulates."""
THRESHOLD = ("--stall-threshold", "300")
"""Below every sleep and above what such a processor stumbles by."""
SERIOUS = ("warning", "error")
UNFINISHED = ("early", "piped-head")
"""Files that were copied while they were being written."""
Plain = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A capture's connections beside the truth of them, by maker."""

    file: Path
    pairs: dict[str, list[tuple[Plain, Plain]]]
    """What was recorded of a connection, and what `conns --json` says of it."""
    findings: dict[str, list[Plain]]
    """What `check --json` says of each maker's connections; of the capture itself under ""."""

    def one(self, maker: str) -> tuple[Plain, Plain]:
        """The only connection of a maker."""
        (pair,) = self.pairs[maker]
        return pair

    def codes(self, maker: str) -> Counter[str]:
        """How often each code was found with a maker's connections, as far as it is serious."""
        return Counter(f["code"] for f in self.findings[maker] if f["severity"] in SERIOUS)

    def stalls(self, maker: str) -> list[Plain]:
        """The stalls of a maker's only connection, by `credit --json`."""
        _, seen = self.one(maker)
        pair = (".".join(map(str, seen[end])) for end in ("client", "server"))
        (account,) = told("credit", "--json", *THRESHOLD, self.file, "conn", *pair)
        assert account["conn"] == seen["conn"]
        stalls: list[Plain] = account["stall_list"]
        return stalls


def account(file: Path, truth: dict[str, Any]) -> Account:
    """Ask about a file, whose connections were made one after the other."""
    seen = told("conns", "--json", file)
    recorded = [(maker, c) for maker, made in truth.items() for c in made["connections"]]
    assert [c["conn"] for c in seen] == list(range(1, len(recorded) + 1))
    pairs: dict[str, list[tuple[Plain, Plain]]] = {maker: [] for maker in truth}
    for (maker, true), said in zip(recorded, seen, strict=True):
        pairs[maker].append((true, said))
    findings: dict[str, list[Plain]] = {"": [], **{maker: [] for maker in truth}}
    for finding in told("check", "--json", *THRESHOLD, file):
        place = (finding["conn"] or 0) - 1
        findings[recorded[place][0] if place >= 0 else ""].append(finding)
    return Account(file=file, pairs=pairs, findings=findings)


@pytest.fixture(scope="session")
def loopback(run: vm.Run) -> Account:
    folder = run.scenario("traffic")
    return account(whole(folder), vm.read_json(folder / "truth.json"))


@pytest.fixture(scope="session")
def host_and_guest(run: vm.Run) -> Account:
    folder = run.scenario("host-and-guest")
    return account(whole(folder), vm.read_json(folder / "truth.json"))


@pytest.fixture(scope="session")
def followed(run: vm.Run) -> Path:
    return run.scenario("following")


def sleeps(truth: Plain, who: str) -> list[Plain]:
    return [e for e in truth["events"] if e["what"] == "sleep" and e["who"] == who]


def assert_true(true: Plain, said: Plain) -> None:
    """The facts of a connection that the kernel's own sockets know."""
    assert (said["type"], said["client"], said["server"]) == (
        *(true["type"], true["client"], true["server"]),
    )
    assert said["opened"] and not said["estimated"]
    assert (said["state"] == "refused") == (true["error"] == "ConnectionResetError")
    for side in DIRECTIONS:
        assert said[side]["bytes"] == true[side]["bytes"]


# The traffic scenario.


def test_every_connection_is_told_of_once_with_its_bytes(loopback: Account) -> None:
    assert list(loopback.pairs) == list(live.MAKERS)
    for pairs in loopback.pairs.values():
        for true, said in pairs:
            assert_true(true, said)
            for side in DIRECTIONS if true["connected"] else ():
                unread = true[side]["bytes"] - true[side]["read"]
                # What still was on its way when the receiver reset the connection is nobody's.
                late = unread - said[side]["unread_bytes"]
                assert 0 <= late <= (true[side]["bytes"] if said["state"] == "reset" else 0)


def test_every_connection_ended_as_its_makers_saw_it_end(loopback: Account) -> None:
    notes = vm.read_json(loopback.file.parent / "truth.json")["tiny_flood"]["notes"]
    for maker, pairs in loopback.pairs.items():
        for true, said in pairs:
            lost = maker == "tiny_flood" and notes[f"{true['type']}_error"] == "BrokenPipeError"
            expected = "closed" if true["connected"] else "refused"
            assert said["state"] == ("reset" if lost else expected), maker


def test_a_thousand_connections_are_all_closed(loopback: Account) -> None:
    ended = Counter(said["state"] for _, said in loopback.pairs["many_connections"])
    assert ended == {"closed": 1000}


def test_two_sleeps_of_a_receiver_are_two_stalls(loopback: Account) -> None:
    true, said = loopback.one("slow_reader")
    stalls, slept = loopback.stalls("slow_reader"), sleeps(true, "server")
    assert len(stalls) == len(slept) == 2
    for stall, sleep in zip(stalls, slept, strict=True):
        assert stall["recovered"] and stall["end_number"] > stall["number"]
        assert stall["sender"] == true["client"]
        assert stall["not_reading"] == true["server"]
        late = stall["start_ns"] + stall["duration_ns"] - sleep["end_ns"]
        # Nobody reads before the sleep is over.
        assert 0 < late < SLACK_S * NS
        assert abs(stall["start_ns"] - sleep["time_ns"]) < SLACK_S * NS
    assert loopback.codes("slow_reader") == {"stall": 2}
    told_of = [finding["facts"] for finding in loopback.findings["slow_reader"]]
    receiver = ".".join(map(str, true["server"]))
    assert [fact["not_reading"] for fact in told_of] == [receiver] * 2
    assert [f["duration_ns"] for f in told_of] == [s["duration_ns"] for s in stalls]
    way = said["client_to_server"]
    assert way["min_window"] == way["min_effective_window"] == 0
    assert said["limited_ns"] >= sum(stall["duration_ns"] for stall in stalls)


def test_a_receiver_that_never_reads_is_an_unrecovered_stall(loopback: Account) -> None:
    true, said = loopback.one("never_reads")
    (stall,) = loopback.stalls("never_reads")
    (sleep,) = sleeps(true, "client")
    assert not stall["recovered"]
    assert stall["not_reading"] == true["server"]
    assert 0 <= stall["duration_ns"] - sleep["seconds"] * NS < SLACK_S * NS
    assert said["client_to_server"]["unread_bytes"] == true["client_to_server"]["bytes"] > 0
    assert loopback.codes("never_reads")["stall-unrecovered"] == 1
    assert set(loopback.codes("never_reads")) <= {"stall-unrecovered", "unread-data"}


@pytest.mark.parametrize("maker", ["small_sender", "small_receiver"])
def test_a_small_buffer_at_either_end_bounds_what_is_in_flight(
    loopback: Account, maker: str
) -> None:
    _, said = loopback.one(maker)
    way = said["client_to_server"]
    # The whole of it was in flight at times, never more.
    assert way["max_in_flight"] == traffic.SMALL_BUFFER
    assert way["min_effective_window"] == 0
    assert (way["min_window"] == 0) == (maker == "small_receiver")
    assert loopback.codes(maker) == {}


@pytest.mark.parametrize("maker", ["seqpacket", "seqpacket_bulk"])
def test_messages_are_counted_and_measured(loopback: Account, maker: str) -> None:
    true, said = loopback.one(maker)
    for side in DIRECTIONS:
        sizes = true[side]["sizes"]
        assert said[side]["messages"] == len(sizes)
        assert said[side]["message_bytes"] == sum(sizes)
        assert said[side]["message_min"] == min(sizes, default=None)
        assert said[side]["message_max"] == max(sizes, default=None)


def test_streams_have_no_messages(loopback: Account) -> None:
    for maker in ("echo", "half_close"):
        for _, said in loopback.pairs[maker]:
            assert [said[side]["messages"] for side in DIRECTIONS] == [0, 0]


def test_what_was_done_wrong_is_found_and_nothing_else(loopback: Account) -> None:
    expected = {
        "refused": {"refused": 3},
        "slow_reader": {"stall": 2},
        "dying_server": {"unread-data": 1},
    }
    # What becomes of these depends on the kernel; they have tests of their own.
    rest = loopback.pairs.keys() - {"never_reads", "tiny_flood"}
    assert {maker: loopback.codes(maker) for maker in rest} == {
        maker: expected.get(maker, {}) for maker in rest
    }
    assert {finding["severity"] for finding in loopback.findings[""]} <= {"info"}


def test_a_flood_of_tiny_packets_runs_out_of_packets_not_of_bytes(loopback: Account) -> None:
    notes = vm.read_json(loopback.file.parent / "truth.json")["tiny_flood"]["notes"]
    codes = loopback.codes("tiny_flood")
    (_, stream), (_, messages) = loopback.pairs["tiny_flood"]
    assert codes["packet-limit-reset"] == (notes["SEQPACKET_error"] == "BrokenPipeError")
    assert codes["packet-limit-reset"] == (messages["state"] == "reset")
    for said in (stream, messages):
        way = said["client_to_server"]
        assert way["min_effective_window"] > way["max_in_flight"]
        assert way["stalls"] == 0


def test_an_untroubled_run_ends_with_status_0(loopback: Account) -> None:
    _, said = loopback.one("echo")
    ran = vsockdump("check", "--json", loopback.file, "port", str(said["server"][1]))
    assert ran.status == 0
    # What is known of the kernel is told of every capture.
    assert {json.loads(line)["code"] for line in ran.lines} <= {"kernel-tap-bug"}


# The oracle, over everything this boot captured.


def finished(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.pcap*")):
        if path.stem not in UNFINISHED:
            yield path


def test_the_oracle_agrees_on_every_capture(run: vm.Run) -> None:
    followed = {path: len(track(batches(path))[0].connections) for path in finished(run.folder)}
    truth = vm.read_json(run.scenario("traffic") / "truth.json")
    made = sum(len(maker["connections"]) for maker in truth.values())
    assert followed[whole(run.folder / "traffic")] == made
    scenarios = {path.parent.name for path in followed}
    assert scenarios >= {"traffic", "ways", "host-and-guest", "following", "filters"}


# While it happens.


def test_a_stall_is_told_of_while_it_lasts(followed: Path) -> None:
    truth = vm.read_json(followed / "truth.json")["awaited_reader"]["connections"][0]
    receiver = ".".join(map(str, truth["server"]))
    stalls = [
        (seen_ns, finding)
        for seen_ns, line in vm.read_json(followed / "seen.json")
        if (finding := json.loads(line))["code"].startswith("stall")
        and finding["facts"]["not_reading"] == receiver
    ]
    (wait,) = (event for event in truth["events"] if event["what"] == "wait")
    seen_ns, finding = stalls[0]
    # The receiver began to read because it was told of, and would not have begun otherwise.
    assert wait["time_ns"] < seen_ns <= wait["end_ns"]
    assert not finding["facts"]["recovered"]
    # It was no misfortune yet, and when it was over it was told of once more, as what it was.
    assert {(f["code"], f["severity"]) for _, f in stalls} == {("stall", "warning")}
    over = [f for _, f in stalls if f["facts"]["recovered"]]
    assert [f["number"] for f in over].count(finding["number"]) == 1


def without_times(said: Plain) -> Plain:
    """A connection without the figures that hang on when exactly a socket saw each packet."""
    return {
        name: without_times(value) if isinstance(value, dict) else value
        for name, value in said.items()
        if not name.endswith("_ns") and name != "bytes_per_second"
    }


def spans(said: Plain) -> dict[str, int]:
    """The lengths of time among a connection's figures."""
    found = {n: v for n, v in said.items() if n.endswith("_ns") and v is not None}
    for side in DIRECTIONS:
        found |= {f"{side}.{n}": v for n, v in said[side].items() if n.endswith("_ns") and v}
    return found


def lines_of(path: Path) -> list[Plain]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_conns_says_live_what_it_says_of_a_file(followed: Path) -> None:
    seen = lines_of(followed / "conns.out")
    read = told("conns", "--json", followed / "followed.pcapng")
    assert [without_times(c) for c in seen] == [without_times(c) for c in read]
    # Each socket stamps a packet itself, a moment after or before another.
    for there, here in zip(seen, read, strict=True):
        assert spans(there) == pytest.approx(spans(here), abs=SLACK_S * NS)
    truth = vm.read_json(followed / "truth.json")
    recorded = [c for made in truth.values() for c in made["connections"]]
    assert list(truth) == list(tracking.MAKERS)
    for true, said in zip(recorded, seen, strict=True):
        assert_true(true, said)


def test_check_finds_live_what_it_finds_in_a_file(followed: Path) -> None:
    def told_of(findings: list[Plain]) -> Counter[tuple[str, int]]:
        # A stall that lasts is told of at once and again when it is over.
        over = [f for f in findings if f["code"] != "stall" or f["facts"]["recovered"]]
        return Counter((f["code"], f["conn"]) for f in over)

    seen = told_of(lines_of(followed / "check.out"))
    assert seen == told_of(told("check", "--json", followed / "followed.pcapng"))
    assert {code for code, _ in seen} >= {"refused", "stall", "stall-unrecovered"}


# A real guest.


def test_host_and_guest_are_told_as_they_were(host_and_guest: Account) -> None:
    pairs = host_and_guest.pairs["host_and_guest"]
    assert len(pairs) == 6
    for true, said in pairs:
        assert_true(true, said)
        assert said["state"] == "closed"
        assert {said["client"][0], said["server"][0]} == {guest.CID, guest.HOST}
    # Some kernels show more of a packet that they split than it carried.
    excess = any(bool((batch.excess > 0).any()) for batch in batches(host_and_guest.file))
    expected = {"stall", "excess-payload"} if excess else {"stall"}
    assert set(host_and_guest.codes("host_and_guest")) == expected
    assert {finding["severity"] for finding in host_and_guest.findings[""]} <= {"info"}


@pytest.mark.parametrize(
    ("port", "seconds"),
    [(guest.SLOW_HOST, nested.HOST_SLEEP), (guest.SLOW_GUEST, guest.GUEST_SLEEP)],
)
def test_the_slow_side_of_host_and_guest_is_named(
    host_and_guest: Account, port: int, seconds: float
) -> None:
    ((true, said),) = (
        pair for pair in host_and_guest.pairs["host_and_guest"] if pair[0]["server"][1] == port
    )
    found = [f for f in host_and_guest.findings["host_and_guest"] if f["conn"] == said["conn"]]
    longest = max(
        (f["facts"] for f in found if f["code"] == "stall"), key=lambda fact: fact["duration_ns"]
    )
    assert longest["not_reading"] == ".".join(map(str, true["server"]))
    assert longest["recovered"]
    # The sleep begins a little before the window is full; a guest inside a guest wakes up late.
    assert -SLACK_S * NS < longest["duration_ns"] - seconds * NS < GUEST_SLACK_S * NS


# The kernel's own programs, on the kernel they belong to.


def test_every_connection_of_vsock_test_is_followed(suite_run: vm.Run) -> None:
    file = whole(suite_run.scenario("suite"))
    requests = sum(int((b.headers["op"] == Op.REQUEST).sum()) for b in batches(file))
    said = told("conns", "--json", file)
    assert len(said) == requests
    assert all(c["opened"] and not c["estimated"] for c in said)
    assert {c["state"] for c in said} <= {"closed", "refused", "reset"}
    findings = told("check", "--json", *THRESHOLD, file)
    refused = sum(c["state"] == "refused" for c in said)
    serious = Counter(f["code"] for f in findings if f["severity"] in SERIOUS)
    assert serious == {"refused": refused}


def test_vsock_perf_is_followed_at_full_rate(suite_run: vm.Run) -> None:
    folder = suite_run.scenario("perf")
    truth = vm.read_json(folder / "truth.json")
    file = whole(folder)
    (said,) = told("conns", "--json", file)
    there = said["client_to_server"]
    assert there["bytes"] == truth["sent"]
    # The receiver of vsock_perf may leave as soon as its peer has, with the end still unread.
    assert truth["sent"] - truth["received"] <= there["unread_bytes"] <= there["max_in_flight"]
    assert (said["state"], said["estimated"]) == ("closed", False)
    # A receiver may be too slow for its sender; all else would be a mistake of ours.
    assert {f["code"] for f in told("check", "--json", file)} <= {"stall", "kernel-tap-bug"}
