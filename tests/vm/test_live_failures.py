"""What cannot work says so in one line, with a status; and `device` does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plain_savefile
import pytest

from . import live, spawn, vm
from .agent import DEVICE
from .plain_frames import frames, sent

FAILURES = {
    "no-such-device": ("nosuch0", DEVICE),
    "another-kind": ("lo", "not a vsockmon device"),
    "one-of-two": ("nosuch0",),
    "twice": (DEVICE, "twice"),
    "create-another-kind": ("lo", "not a vsockmon device"),
    "not-root": (DEVICE, "setcap"),
    "not-root-create": (live.SECOND, "root"),
    "no-such-user": ("nosuchuser",),
    "no-such-folder": ("no/such/file", "No such file"),
    "huge-ring": (DEVICE, "-B"),
    "exists": (DEVICE, "exists"),
    "delete-another-kind": ("lo", "not a vsockmon device"),
    "delete-missing": ("nosuch0",),
    "bad-name": ("a-name-that-is-far-too-long",),
    "not-root-device": (live.SECOND, "root"),
    "down": (DEVICE, "ip link set"),
    "no-device": (DEVICE, "vsockdump device create"),
    "no-module": (DEVICE, "modprobe"),
    "no-module-create": (DEVICE, "modprobe"),
}
"""What fails, and words that its line has to have."""


@pytest.fixture(scope="session")
def stories(run: vm.Run) -> dict[str, Any]:
    told: dict[str, Any] = vm.read_json(run.scenario("failures") / "stories.json")
    return told


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_is_one_clear_line_and_a_status(stories: dict[str, Any], name: str) -> None:
    story = stories[name]
    assert story["status"] == 1, story
    (line,) = story["err"].splitlines()
    assert line.startswith("vsockdump: ")
    assert story["out"] == ""
    for word in FAILURES[name]:
        assert word in line


def test_a_wrong_filter_points_at_the_word(stories: dict[str, Any]) -> None:
    story = stories["bad-filter"]
    assert story["status"] == 2
    assert "seventeen" in story["err"]
    assert "^" in story["err"]
    assert "Traceback" not in story["err"]


def test_no_file_is_left_of_a_capture_that_never_began(stories: dict[str, Any]) -> None:
    assert stories["never-written"] is False


def test_devices_are_listed(stories: dict[str, Any]) -> None:
    assert stories["list"]["out"] == f"1.{DEVICE} [Up]\n"
    (device,) = json.loads(stories["device-list"]["out"])
    assert (device["name"], device["up"]) == (DEVICE, True)
    assert stories["list-none"]["status"] == 0
    assert stories["list-none"]["out"] == ""


def test_devices_are_made_and_removed(run: vm.Run, stories: dict[str, Any]) -> None:
    for name in ("created", "deleted", "created-again"):
        assert (stories[name]["status"], stories[name]["err"]) == (0, "")
    listed = json.loads(stories["two-devices"]["out"])
    assert [(d["name"], d["up"]) for d in listed] == [(DEVICE, True), (live.SECOND, True)]
    assert vm.read_json(run.scenario("failures") / "devices.json") == [DEVICE]


def checks(story: dict[str, Any]) -> str:
    """What doctor printed, which is never a traceback."""
    assert story["err"] == ""
    out: str = story["out"]
    return out


def test_doctor_finds_a_machine_that_can_capture(run: vm.Run, stories: dict[str, Any]) -> None:
    assert stories["doctor"]["status"] == stories["doctor-text"]["status"] == 0
    report = json.loads(checks(stories["doctor"]))
    assert report["can_capture"] is True
    said = {check["name"]: check["says"] for check in report["checks"]}
    series = run.kernel.series
    assert run.kernel.release in said["kernel"]
    # The release that Debian freezes is not the kernel's true version; that is told too.
    assert f"({series}." in said["kernel"]
    assert "vsock_loopback" in said["transport"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("doctor-not-root", ("setcap cap_net_raw,cap_net_admin=ep",)),
        ("doctor-down", (DEVICE, "ip link set")),
        ("doctor-no-module", ("vsockmon", "module")),
    ],
)
def test_doctor_says_what_is_in_the_way(
    stories: dict[str, Any], name: str, words: tuple[str, ...]
) -> None:
    assert stories[name]["status"] == 1
    wrong = [line for line in checks(stories[name]).splitlines() if line.startswith("FAIL")]
    assert len(wrong) == 1
    for word in words:
        assert word in checks(stories[name])


def test_doctor_says_what_to_mind(stories: dict[str, Any]) -> None:
    assert stories["doctor-none"]["status"] == stories["doctor-two"]["status"] == 0
    assert "vsockdump device create" in checks(stories["doctor-none"])
    assert live.SECOND in checks(stories["doctor-two"])


def test_an_ordinary_user_captures_after_doing_what_doctor_says(run: vm.Run) -> None:
    folder = run.scenario("unprivileged")
    doctor = vm.read_json(folder / "doctor.json")
    assert "cannot capture" in doctor["before"]
    assert "This machine can capture" in doctor["after"]
    truth = vm.read_json(folder / "truth.json")
    (connection,) = truth["connections"]
    seen = sent(frames(folder / "unprivileged.pcapng"))
    ports = connection["client"][1], connection["server"][1]
    assert seen[ports].sha256 == connection["client_to_server"]["sha256"]
    assert seen[ports[::-1]].sha256 == connection["server_to_client"]["sha256"]
    owner, devices = vm.read_json(folder / "owner.json")
    assert owner == spawn.NOBODY
    # It could make the device it asked for and take it away again.
    assert devices == [DEVICE]
    interface = plain_savefile.read(Path(folder / "unprivileged.pcapng")).interfaces[0]
    assert plain_savefile.first(interface.options, 2) == live.SECOND.encode()
