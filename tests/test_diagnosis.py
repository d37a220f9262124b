"""Every verdict of the doctor, from made-up machines; and that it only looks."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsockdump import diagnosis, privileges, wire
from vsockdump.diagnosis import Check, Verdict, can_capture, diagnose

RELEASE = "6.12.117+deb12-amd64"
MODULES = f"lib/modules/{RELEASE}"
ROOT = 1 << privileges.CAP_NET_RAW | 1 << privileges.CAP_NET_ADMIN

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that can capture, with files changed, added, or (None) taken away."""

    def make(capabilities: int = ROOT, **changed: Any) -> Path:
        files: dict[str, str | bytes | None] = {
            "proc/sys/kernel/osrelease": f"{RELEASE}\n",
            "proc/version": f"Linux version {RELEASE}",
            "proc/self/status": f"CapEff:\t{capabilities:016x}\n",
            "proc/net/packet": "",
            "proc/modules": "vhost_vsock 28672 0 - Live 0x0\nvsockmon 16384 0 - Live 0x0\n",
        }
        files |= device("vsockmon0", up=True) | changed.pop("files", {})
        assert not changed
        for name, content in files.items():
            if content is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return make


def device(name: str, *, up: bool) -> dict[str, str | bytes | None]:
    folder = f"sys/class/net/{name}"
    return {
        f"{folder}/type": f"{wire.ARPHRD_VSOCKMON}\n",
        f"{folder}/ifindex": f"{len(name)}\n",
        f"{folder}/flags": "0x81\n" if up else "0x80\n",
        f"{folder}/mtu": "65568\n",
    }


NO_DEVICE = dict.fromkeys(device("vsockmon0", up=True))


def named(checks: list[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def test_a_machine_that_can_capture_has_nothing_to_be_done(machine: Machine) -> None:
    checks = diagnose(machine())
    assert can_capture(checks)
    assert {check.verdict for check in checks} == {Verdict.OK}
    assert [check.do for check in checks] == [""] * len(checks)
    assert {check.name for check in checks} == {
        *("kernel", "vsockmon", "devices", "packet sockets", "permission", "transport")
    }
    (kernel,) = named(checks, "kernel")
    assert RELEASE in kernel.says
    assert "6.12.117" in kernel.says


def test_mistakes_of_the_kernel_s_tap_are_told(machine: Machine) -> None:
    old = machine(files={"proc/version": "#1 SMP Debian 6.12.63-1 (2026-01-01)"})
    told = named(diagnose(old), "tap")
    assert len(told) == 3
    assert {check.verdict for check in told} == {Verdict.NOTE}
    assert any("whole buffer" in check.says and "virtio length" in check.do for check in told)
    ubuntu = machine(files={"proc/version_signature": "Ubuntu 6.8.0-45.45-generic 6.8.12\n"})
    assert "(6.8.12)" in named(diagnose(ubuntu), "kernel")[0].says


def test_a_mending_release_that_is_not_known_is_said_to_be_so(machine: Machine) -> None:
    files = {"proc/sys/kernel/osrelease": "6.18.44\n", "proc/version": "Linux version 6.18.44"}
    told = named(diagnose(machine(files=files)), "tap")
    assert told
    assert all(check.says.endswith("unless this release mends it") for check in told)


def test_a_kernel_that_tells_no_version_is_no_failure(machine: Machine) -> None:
    files = {"proc/sys/kernel/osrelease": None, "proc/version": None}
    (kernel,) = named(diagnose(machine(files=files)), "kernel")
    assert kernel.verdict is Verdict.NOTE


BUILT_WITHOUT = "CONFIG_VSOCKETS=y\n# CONFIG_VSOCKMON is not set\n"


@pytest.mark.parametrize(
    ("files", "verdict", "says"),
    [
        ({"proc/modules": "vsockmon 1 0 - Live 0x0\n"}, Verdict.OK, "loaded"),
        ({f"{MODULES}/modules.builtin": "kernel/drivers/net/vsockmon.ko\n"}, Verdict.OK, "loaded"),
        ({f"boot/config-{RELEASE}": "CONFIG_VSOCKMON=y\n"}, Verdict.OK, "loaded"),
        ({f"{MODULES}/config": "CONFIG_VSOCKMON=y\n"}, Verdict.OK, "loaded"),
        ({"proc/config.gz": gzip.compress(b"CONFIG_VSOCKMON=y\n")}, Verdict.OK, "loaded"),
        ({"sys/module/vsockmon/version": "1\n"}, Verdict.OK, "loaded"),
        (
            {f"{MODULES}/modules.dep": "kernel/drivers/net/vsockmon.ko.xz: kernel/vsock.ko.xz\n"},
            Verdict.OK,
            "its module is installed",
        ),
        ({f"boot/config-{RELEASE}": BUILT_WITHOUT}, Verdict.FAIL, "without CONFIG_VSOCKMON"),
        (
            {"proc/config.gz": gzip.compress(BUILT_WITHOUT.encode())},
            Verdict.FAIL,
            "without CONFIG_VSOCKMON",
        ),
        # Configured as a module, and the module's package is not there.
        ({f"boot/config-{RELEASE}": "CONFIG_VSOCKMON=m\n"}, Verdict.FAIL, "no module vsockmon"),
        ({}, Verdict.FAIL, "no module vsockmon"),
    ],
)
def test_vsockmon_is_found_wherever_it_may_be(
    machine: Machine, files: dict[str, str | bytes], verdict: Verdict, says: str
) -> None:
    checks = diagnose(machine(files={"proc/modules": "", **NO_DEVICE, **files}))
    (check,) = named(checks, "vsockmon")
    assert check.verdict is verdict
    assert says in check.says
    assert bool(check.do) == (verdict is Verdict.FAIL)
    # Nobody is told to make a device that cannot be made.
    assert bool(named(checks, "devices")) == (verdict is Verdict.OK)
    assert can_capture(checks) == (verdict is Verdict.OK)


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({}, Verdict.OK),
        ({"proc/net/packet": None, f"{MODULES}/modules.dep": "a/af_packet.ko:\n"}, Verdict.OK),
        ({"proc/net/packet": None}, Verdict.FAIL),
    ],
)
def test_packet_sockets(machine: Machine, files: dict[str, str | None], verdict: Verdict) -> None:
    (check,) = named(diagnose(machine(files=files)), "packet sockets")
    assert check.verdict is verdict
    assert ("modprobe af_packet" in check.do) == (verdict is Verdict.FAIL)


@pytest.mark.parametrize(
    ("capabilities", "present", "permission", "devices"),
    [
        (ROOT, True, Verdict.OK, Verdict.OK),
        (ROOT, False, Verdict.OK, Verdict.NOTE),
        (1 << privileges.CAP_NET_RAW, True, Verdict.NOTE, Verdict.OK),
        (1 << privileges.CAP_NET_RAW, False, Verdict.NOTE, Verdict.FAIL),
        (1 << privileges.CAP_NET_ADMIN, True, Verdict.FAIL, Verdict.OK),
        (0, True, Verdict.FAIL, Verdict.OK),
        (0, False, Verdict.FAIL, Verdict.FAIL),
    ],
)
def test_permission_and_what_it_takes_to_have_a_device(
    machine: Machine, capabilities: int, present: bool, permission: Verdict, devices: Verdict
) -> None:
    checks = diagnose(machine(capabilities, files={} if present else NO_DEVICE))
    (check,) = named(checks, "permission")
    assert check.verdict is permission
    assert (privileges.setcap_command() in check.do) == (permission is Verdict.FAIL)
    (check,) = named(checks, "devices")
    assert check.verdict is devices
    assert ("vsockdump device create" in check.do) == (not present)
    assert ("as root" in check.do) == (devices is Verdict.FAIL)
    assert can_capture(checks) == (Verdict.FAIL not in (permission, devices))


def test_a_device_that_is_down_is_to_be_brought_up(machine: Machine) -> None:
    (check,) = named(diagnose(machine(files=device("vsockmon0", up=False))), "devices")
    assert (check.verdict, check.do) == (Verdict.FAIL, "ip link set vsockmon0 up")


def test_two_devices_show_everything_twice(machine: Machine) -> None:
    up, twice = named(diagnose(machine(files=device("m1", up=True))), "devices")
    assert (up.verdict, up.says) == (Verdict.OK, "m1, vsockmon0: up")
    assert twice.verdict is Verdict.NOTE
    one_down = device("m1", up=False)
    (up,) = named(diagnose(machine(files=one_down)), "devices")
    assert up.says == "vsockmon0: up"


def loaded(*modules: str) -> dict[str, str]:
    return {"proc/modules": "".join(f"{name} 1 0 - Live 0x0\n" for name in modules)}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (loaded("vhost_vsock"), [(Verdict.OK, "of this host with its guests")]),
        (loaded("vsock_loopback"), [(Verdict.OK, "within this machine")]),
        (
            loaded("vmw_vsock_virtio_transport"),
            [(Verdict.OK, "no virtio vsock device")],
        ),
        (
            {
                **loaded("vmw_vsock_virtio_transport"),
                "sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio3": "",
            },
            [(Verdict.OK, "of this guest with its host")],
        ),
        (
            {"proc/modules": "", f"boot/config-{RELEASE}": "CONFIG_VSOCKETS_LOOPBACK=y\n"},
            [(Verdict.OK, "within this machine")],
        ),
        (loaded("hv_sock"), [(Verdict.FAIL, "over Hyper-V")]),
        (loaded("vmw_vsock_vmci_transport"), [(Verdict.FAIL, "over VMware's VMCI")]),
        (
            loaded("vsock_loopback", "hv_sock"),
            [(Verdict.OK, "within this machine"), (Verdict.NOTE, "over Hyper-V")],
        ),
        (loaded(), [(Verdict.NOTE, "no vsock transport is loaded")]),
    ],
)
def test_transports_are_told_apart_by_whether_they_are_tapped(
    machine: Machine, files: dict[str, str], found: list[tuple[Verdict, str]]
) -> None:
    checks = named(diagnose(machine(files=files)), "transport")
    assert [check.verdict for check in checks] == [verdict for verdict, _ in found]
    for check, (verdict, says) in zip(checks, found, strict=True):
        assert says in check.says
        assert bool(check.do) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("capabilities", "files"), [(ROOT, {"proc/modules": "vhost_vsock 1 0 -\n"}), (0, {})]
)
def test_what_fails_comes_first_and_the_tap_s_mistakes_last(
    machine: Machine, capabilities: int, files: dict[str, str]
) -> None:
    old = {"proc/version": "#1 SMP Debian 6.12.63-1 (2026-01-01)"}
    checks = diagnose(machine(capabilities, files=files | old | (NO_DEVICE if files else {})))
    verdicts = [check.verdict for check in checks]
    failed = verdicts.count(Verdict.FAIL)
    assert failed
    assert verdicts[:failed] == [Verdict.FAIL] * failed
    told = named(checks, "tap")
    assert told == checks[-len(told) :] != []
    # Nothing is said to be captured on a machine that cannot.
    (transport,) = named(checks, "transport")
    assert "of this host with its guests" in transport.says
    assert not any("are captured" in check.says for check in checks)
    works = diagnose(machine(ROOT, files=device("vsockmon0", up=True) | loaded("vhost_vsock")))
    assert can_capture(works)
    assert "are captured" in named(works, "transport")[0].says


def test_guests_whose_vsock_passes_this_kernel_by_are_named(machine: Machine) -> None:
    names = ["firecracker", "cloud-hyperviso", "bash", "firecracker"]
    files = {f"proc/{pid}/comm": f"{name}\n" for pid, name in enumerate(names, start=100)}
    checks = named(diagnose(machine(files=files)), "guests")
    assert [check.says.split(" carries")[0] for check in checks] == [
        "Firecracker",
        "cloud-hypervisor",
    ]
    assert all(check.verdict is Verdict.NOTE for check in checks)
    assert all(len(comm) <= 15 for comm in diagnosis.USERSPACE_VMMS)


def test_the_doctor_only_reads(machine: Machine) -> None:
    root = machine(files={"proc/config.gz": gzip.compress(BUILT_WITHOUT.encode())})
    opened: list[tuple[object, ...]] = []
    watching = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if watching and event.partition(".")[0] in ("open", "socket", "subprocess", "os", "fcntl"):
            opened.append((event, *args))

    # Hooks stay; this one falls silent.
    sys.addaudithook(hook)
    diagnose(root)
    diagnose()
    watching = False
    assert {event for event, *_ in opened} <= {"open", "os.scandir", "os.listdir"}
    paths = [str(args[0]) for event, *args in opened if event == "open"]
    assert any(path.startswith(str(root)) for path in paths)
    assert not any(path.startswith("/dev") for path in paths)
    for event, *args in opened:
        if event == "open":
            assert str(args[1] or "r").strip("bt") == "r"
