"""Devices: listed from a made-up sysfs, kept and removed in a network namespace.

A vsockmon device is never made here, only in the test VM: ``create`` talks to a made-up netlink,
and where a device is needed, the test makes a veth that passes for vsockmon's kind.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NoReturn, Self

import click.testing
import netns
import pyroute2
import pytest
from forked import forked
from pyroute2 import IPRoute, NetlinkError

from vsockdump import device, diagnosis, privileges, wire
from vsockdump.cli.device import device as command
from vsockdump.errors import DeviceError

ETHERNET = 1


def sysfs(root: Path, name: str, **files: object) -> None:
    folder = root / "sys/class/net" / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(f"{content}\n")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A namespace in which veth devices pass for vsockmon's, and are what is made."""
    monkeypatch.setattr(wire, "ARPHRD_VSOCKMON", ETHERNET)
    monkeypatch.setattr(device, "create", netns.veth)
    # Sysfs shows the devices of the namespace it was mounted in.
    monkeypatch.setattr(device, "list_devices", list)
    with netns.namespace():
        yield


class FakeNetlink:
    """What pyroute2's IPRoute is to ``create``: notes what was asked, or fails as told."""

    asked: ClassVar[list[tuple[object, ...]]] = []
    failure: ClassVar[Exception | None] = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def link(self, command: str, **settings: object) -> None:
        self.asked.append((command, settings))
        if self.failure is not None:
            raise self.failure

    def get_links(self) -> NoReturn:
        assert self.failure is not None
        raise self.failure


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> type[FakeNetlink]:
    monkeypatch.setattr(pyroute2, "IPRoute", FakeNetlink)
    monkeypatch.setattr(FakeNetlink, "asked", [])
    return FakeNetlink


def flags() -> dict[str, bool]:
    """Whether each device of the namespace is up."""
    with IPRoute() as netlink:
        return {
            link.get_attr("IFLA_IFNAME"): bool(link["flags"] & 1) for link in netlink.get_links()
        }


def test_only_vsockmon_devices_are_listed_by_index(tmp_path: Path) -> None:
    assert device.list_devices(tmp_path) == []
    common = {"type": wire.ARPHRD_VSOCKMON, "mtu": 65568}
    sysfs(tmp_path, "mon1", ifindex=9, flags="0x80", **common)
    sysfs(tmp_path, "eth0", type=ETHERNET, ifindex=2, flags="0x1003", mtu=1500)
    sysfs(tmp_path, "vsockmon0", ifindex=4, flags="0x81", **common)
    sysfs(tmp_path, "gone", type=wire.ARPHRD_VSOCKMON)
    (tmp_path / "sys/class/net/bonding_masters").write_text("")
    assert device.list_devices(tmp_path) == [
        device.Device(name="vsockmon0", index=4, up=True, mtu=65568),
        device.Device(name="mon1", index=9, up=False, mtu=65568),
    ]


def test_looking_at_devices_does_not_load_netlink() -> None:
    code = (
        "import sys; from vsockdump import device; import vsockdump.cli.device;"
        "device.list_devices(); sys.exit('pyroute2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_device_is_made_and_brought_up_in_one_step(netlink: type[FakeNetlink]) -> None:
    device.create("mon0")
    assert netlink.asked == [("add", {"ifname": "mon0", "kind": "vsockmon", "state": "up"})]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EEXIST, "mon0 exists already"),
        (errno.ENODEV, "mon0: no such device"),
        (errno.EINVAL, "'mon0' is not a name for a network device"),
        (errno.ERANGE, "'mon0' is not a name for a network device"),
        (
            errno.EOPNOTSUPP,
            "mon0: this kernel has no vsockmon loaded; try: modprobe vsockmon "
            "(vsockdump device doctor tells more)",
        ),
        (
            errno.EPERM,
            "mon0: no permission to create a device: run as root, or once as root: "
            f"{privileges.setcap_command()}",
        ),
        (errno.ENOBUFS, f"mon0: cannot create it: {os.strerror(errno.ENOBUFS)}"),
    ],
)
@pytest.mark.parametrize("kind", [NetlinkError, lambda number: OSError(number, "")])
def test_what_the_kernel_refuses_is_said_in_words(
    netlink: type[FakeNetlink],
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[int], Exception],
    number: int,
    says: str,
) -> None:
    monkeypatch.setattr(netlink, "failure", kind(number))
    with pytest.raises(DeviceError) as raised:
        device.create("mon0")
    assert str(raised.value) == says
    assert isinstance(raised.value, device.DeviceExistsError) == (number == errno.EEXIST)
    with pytest.raises(DeviceError) as raised:
        device.delete("mon0")
    assert str(raised.value) == says.replace("create", "delete")


def test_a_device_is_removed(stand_in: None) -> None:
    netns.veth("mon0")
    device.delete("mon0")
    assert "mon0" not in flags()
    with pytest.raises(DeviceError, match=r"^mon0: no such device$"):
        device.delete("mon0")


def test_a_device_of_another_kind_stays(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    netns.veth("mon0")
    monkeypatch.setattr(wire, "ARPHRD_VSOCKMON", ETHERNET + 1)
    with pytest.raises(DeviceError, match=r"^mon0 is not a vsockmon device; it stays$"):
        device.delete("mon0")
    assert "mon0" in flags()


def test_removing_takes_permission(stand_in: None) -> None:
    netns.veth("mon0")

    def attempt() -> None:
        privileges.drop("nobody")
        device.delete("mon0")

    assert forked(attempt) == [
        "DeviceError",
        "mon0: no permission to delete a device: run as root, or once as root: "
        f"{privileges.setcap_command()}",
    ]
    assert "mon0" in flags()


def test_a_temporary_device_is_there_for_the_block(stand_in: None) -> None:
    with device.temporary("mon0") as made:
        assert made
        assert flags()["mon0"]
    assert "mon0" not in flags()
    with pytest.raises(KeyError), device.temporary("mon0"):
        raise KeyError
    assert "mon0" not in flags()


def test_a_device_that_was_there_is_left_there(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns.veth("mon0")

    def exists(name: str) -> NoReturn:
        raise device.DeviceExistsError(name)

    monkeypatch.setattr(device, "create", exists)
    with device.temporary("mon0") as made:
        assert not made
    # Where it is seen at once, nothing is tried that may take permission.
    monkeypatch.setattr(device, "create", None)
    found = device.Device(name="mon0", index=1, up=True, mtu=1)
    monkeypatch.setattr(device, "list_devices", lambda: [found])
    with device.temporary("mon0") as made:
        assert not made
    assert "mon0" in flags()


def test_a_temporary_device_that_cannot_be_made_is_an_error(
    netlink: type[FakeNetlink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "failure", NetlinkError(errno.EOPNOTSUPP))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(DeviceError, match="no vsockmon"), device.temporary("mon0"):
        pytest.fail("there is no device")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_temporary_device_that_is_gone_already_is_told(stand_in: None) -> None:
    with pytest.raises(DeviceError, match=r"^mon0: no such device$"), device.temporary("mon0"):
        device.delete("mon0")


def test_a_temporary_device_goes_even_without_privileges(stand_in: None) -> None:
    def use() -> bool:
        with device.temporary("mon0") as made:
            privileges.drop("nobody")
        return made

    assert forked(use) is True
    assert "mon0" not in flags()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_temporary_device_goes_with_who_made_it(stand_in: None, number: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            with device.temporary("mon0"):
                # As a terminal or a service manager ends a capture: the whole group, if it may.
                (os.kill if number == signal.SIGKILL else os.killpg)(os.getpid(), number)
                time.sleep(60)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 10
    while "mon0" in flags() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "mon0" not in flags()


def run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command, arguments)


def test_create_and_delete_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("create", "delete"):
        monkeypatch.setattr(device, name, done.append)
    assert run("create").output == "vsockmon0 created, up\n"
    assert run("create", "m1").output == "m1 created, up\n"
    assert run("delete", "m1").output == "m1 removed\n"
    assert done == ["vsockmon0", "m1", "m1"]
    # What is removed has to be named.
    assert run("delete").exit_code == 2


def test_a_failure_reaches_whoever_runs_the_command(
    netlink: type[FakeNetlink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "failure", NetlinkError(errno.EPERM))
    assert isinstance(run("create").exception, DeviceError)
    assert isinstance(run("delete", "m1").exception, DeviceError)


def test_list_shows_name_state_mtu_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        device.Device(name="vsockmon0", index=4, up=True, mtu=65568),
        device.Device(name="m1", index=10, up=False, mtu=1500),
    ]
    monkeypatch.setattr(device, "list_devices", lambda: found)
    assert run("list").output == (
        "vsockmon0  up    mtu 65568  index 4\nm1         down  mtu 1500  index 10\n"
    )
    assert json.loads(run("list", "--json").output) == [
        {"name": "vsockmon0", "index": 4, "up": True, "mtu": 65568},
        {"name": "m1", "index": 10, "up": False, "mtu": 1500},
    ]
    monkeypatch.setattr(device, "list_devices", list)
    result = run("list")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "vsockdump device create" in result.stderr
    assert json.loads(run("list", "--json").output) == []


@pytest.mark.parametrize("verdict", list(diagnosis.Verdict))
def test_doctor_tells_in_words_in_json_and_by_its_status(
    monkeypatch: pytest.MonkeyPatch, verdict: diagnosis.Verdict
) -> None:
    checks = [
        diagnosis.Check(name="kernel", verdict=diagnosis.Verdict.OK, says="fine"),
        diagnosis.Check(name="permission", verdict=verdict, says="so and so", do="this"),
    ]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: checks)
    works = verdict is not diagnosis.Verdict.FAIL
    result = run("doctor")
    assert result.exit_code == (0 if works else 1)
    lines = result.output.splitlines()
    assert lines[0].split() == ["ok", "kernel", "fine"]
    assert lines[1].lower().split() == [verdict.value, "permission", "so", "and", "so"]
    assert lines[2].split() == ["->", "this"]
    assert lines[-1] == f"This machine {'can capture' if works else 'cannot capture now'}."
    result = run("doctor", "--json")
    assert result.exit_code == (0 if works else 1)
    assert json.loads(result.output) == {
        "can_capture": works,
        "checks": [
            {"name": "kernel", "verdict": "ok", "says": "fine", "do": ""},
            {"name": "permission", "verdict": verdict.value, "says": "so and so", "do": "this"},
        ],
    }


def test_doctor_looks_at_this_machine_without_a_traceback() -> None:
    result = run("doctor")
    assert result.exit_code in (0, 1)
    assert isinstance(result.exception, SystemExit | None)
    assert "This machine can" in result.output
