"""Can this machine capture vsock traffic? A list of checks, each in plain words.

Strategy: every check reads files (procfs, sysfs, the kernel's configuration and module lists) below
a root that tests can replace, and gives what it found, what follows from it and what to do.

Invariants: nothing is opened but files for reading, nothing is loaded, created or changed; in
particular no vsock is touched.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from vsockdump import device, kernels, privileges

VSOCKMON_OPTION: Final = "CONFIG_VSOCKMON"


class Transport(NamedTuple):
    """A vsock transport: its module, the option it is built with, and whose connections it has."""

    module: str
    option: str
    carries: str


_GUEST: Final = Transport(
    "vmw_vsock_virtio_transport", "CONFIG_VIRTIO_VSOCKETS", "of this guest with its host"
)
TAPPED: Final = (
    Transport("vhost_vsock", "CONFIG_VHOST_VSOCK", "of this host with its guests"),
    _GUEST,
    Transport("vsock_loopback", "CONFIG_VSOCKETS_LOOPBACK", "within this machine"),
)
"""Transports whose packets reach vsockmon."""
UNTAPPED: Final = (
    Transport("hv_sock", "CONFIG_HYPERV_VSOCKETS", "over Hyper-V"),
    Transport("vmw_vsock_vmci_transport", "CONFIG_VMWARE_VMCI_VSOCKETS", "over VMware's VMCI"),
)
"""Transports that the kernel never shows to vsockmon."""
USERSPACE_VMMS: Final = {
    "firecracker": "Firecracker",
    "cloud-hyperviso": "cloud-hypervisor",
    "vhost-device-vs": "vhost-device-vsock",
    "krun": "libkrun",
    "krunvm": "libkrun",
}
"""Programs that carry vsock past the host's kernel, by ``comm`` (cut to 15 characters)."""


class Verdict(Enum):
    """OK; NOTE, which is worth knowing; FAIL, with which nothing can be captured."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at: what was found (``says``) and what to do about it (``do``, or "")."""

    name: str
    verdict: Verdict
    says: str
    do: str = ""


def diagnose(root: Path = Path("/")) -> list[Check]:
    """All checks of the machine whose files are below ``root``: those that failed come first, and
    what the kernel's tap gets wrong comes last."""
    machine = _Machine(root)
    needed = [
        *_kernel(machine),
        *_vsockmon(machine),
        _packet_sockets(machine),
        _permission(machine),
    ]
    checks = [
        *needed,
        *_transports(machine, captured=can_capture(needed)),
        *_vmms(machine),
        *_tap(machine),
    ]
    return sorted(checks, key=lambda check: check.verdict is not Verdict.FAIL)


def can_capture(checks: list[Check]) -> bool:
    """Whether no check failed."""
    return all(check.verdict is not Verdict.FAIL for check in checks)


class _Machine:
    """What the files say; a file that is not there says nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.release = self.read("proc/sys/kernel/osrelease").strip()
        self.loaded = {line.split()[0] for line in self.read("proc/modules").splitlines()}
        modules = f"lib/modules/{self.release}"
        self.builtin = set(map(_module, self.read(f"{modules}/modules.builtin").splitlines()))
        self.loadable = {
            _module(line.partition(":")[0])
            for line in self.read(f"{modules}/modules.dep").splitlines()
        }
        self.config = self._config()
        self.devices = device.list_devices(root)
        self.capabilities = privileges.effective(root)

    def read(self, path: str) -> str:
        """Text of a file below the root, "" where there is none to read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return ""

    def version(self) -> kernels.Version | None:
        """The release's number; None if it is not known."""
        signature = self.read("proc/version_signature")
        return kernels.parse(signature or f"{self.release} {self.read('proc/version')}")

    def may(self, capability: int) -> bool:
        """Whether this process has the capability."""
        return bool(self.capabilities >> capability & 1)

    def present(self, module: str, option: str) -> bool:
        """Whether a module's code is in the running kernel, loaded or built in."""
        return (
            module in self.loaded
            or module in self.builtin
            or self.config.get(option) == "y"
            or (self.root / "sys/module" / module).is_dir()
        )

    def virtio_device(self) -> bool:
        """Whether the guest's transport drives a device."""
        return any((self.root / "sys/bus/virtio/drivers" / _GUEST.module).glob("virtio*"))

    def programs(self) -> set[str]:
        """Names of the processes there are, as far as the kernel keeps them (15 characters)."""
        folders = (self.root / "proc").glob("[0-9]*")
        return {self.read(f"proc/{folder.name}/comm").strip() for folder in folders}

    def _config(self) -> dict[str, str]:
        """The kernel's configuration: options that are set; empty where it is not to be had."""
        text = ""
        for path in (f"boot/config-{self.release}", f"lib/modules/{self.release}/config"):
            text = text or self.read(path)
        packed = self.root / "proc/config.gz"
        if not text and packed.exists():
            text = gzip.decompress(packed.read_bytes()).decode(errors="replace")
        pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
        return {name: value for name, _, value in pairs}


def _module(path: str) -> str:
    """The module's name from its file's path."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _kernel(machine: _Machine) -> Iterator[Check]:
    """The release."""
    version = machine.version()
    if version is None:
        yield Check(
            name="kernel",
            verdict=Verdict.NOTE,
            says="its release is not known, nor then what its tap gets wrong",
        )
        return
    number = ".".join(map(str, version))
    yield Check(name="kernel", verdict=Verdict.OK, says=f"Linux {machine.release} ({number})")


def _tap(machine: _Machine) -> Iterator[Check]:
    """What the tap of this release is known to get wrong."""
    version = machine.version()
    if version is None:
        return
    for bug in kernels.TAP_BUGS:
        affected = bug.affects(version)
        if affected is not False:
            says = bug.effect if affected else f"{bug.effect}, unless this release mends it"
            yield Check(name="tap", verdict=Verdict.NOTE, says=says, do=bug.advice)


def _vsockmon(machine: _Machine) -> Iterator[Check]:
    """Whether the kernel can make vsockmon devices, which there are, and whether one is up."""
    module = _module_of_device(machine)
    yield module
    if machine.devices or module.verdict is not Verdict.FAIL:
        yield from _devices(machine)


def _module_of_device(machine: _Machine) -> Check:
    """Whether the kernel has the code of vsockmon devices."""
    if machine.devices or machine.present(device.KIND, VSOCKMON_OPTION):
        return Check(name="vsockmon", verdict=Verdict.OK, says="the kernel has it loaded")
    if device.KIND in machine.loadable:
        return Check(
            name="vsockmon",
            verdict=Verdict.OK,
            says="its module is installed; it loads when a device is made",
        )
    if machine.config and VSOCKMON_OPTION not in machine.config:
        says = f"this kernel was built without {VSOCKMON_OPTION}"
    else:
        says = f"no module {device.KIND} is installed for this kernel"
    return Check(
        name="vsockmon",
        verdict=Verdict.FAIL,
        says=says,
        do=f"boot a kernel that has {VSOCKMON_OPTION} (those of distributions do, small guest "
        "kernels often do not), or capture at the other end",
    )


def _packet_sockets(machine: _Machine) -> Check:
    """Whether the kernel has packet sockets, which capturing reads from."""
    if (machine.root / "proc/net/packet").exists():
        return Check(name="packet sockets", verdict=Verdict.OK, says="available")
    if "af_packet" in machine.loadable:
        return Check(
            name="packet sockets", verdict=Verdict.OK, says="available; the module loads when used"
        )
    return Check(
        name="packet sockets",
        verdict=Verdict.FAIL,
        says="this kernel has none",
        do="modprobe af_packet, or boot a kernel that has CONFIG_PACKET",
    )


def _permission(machine: _Machine) -> Check:
    """Whether this process may open packet sockets and make devices."""
    if not machine.may(privileges.CAP_NET_RAW):
        return Check(
            name="permission",
            verdict=Verdict.FAIL,
            says="you may not capture (CAP_NET_RAW is missing)",
            do=f"run as root, or once as root: {privileges.setcap_command()} (then everybody who "
            "can run that Python can capture: use one of its own, as venv --copies makes)",
        )
    if not machine.may(privileges.CAP_NET_ADMIN):
        return Check(
            name="permission",
            verdict=Verdict.NOTE,
            says="you may capture, but not make or remove devices (CAP_NET_ADMIN is missing)",
        )
    return Check(
        name="permission", verdict=Verdict.OK, says="you may capture, and make and remove devices"
    )


def _devices(machine: _Machine) -> Iterator[Check]:
    """Which vsockmon devices there are, and whether one can be used."""
    up = [found.name for found in machine.devices if found.up]
    if not machine.devices:
        may = machine.may(privileges.CAP_NET_ADMIN)
        yield Check(
            name="devices",
            verdict=Verdict.NOTE if may else Verdict.FAIL,
            says="there is no vsockmon device yet",
            do=f"vsockdump device create{'' if may else ' (as root)'}, or capture with --create",
        )
    elif not up:
        first = machine.devices[0].name
        yield Check(
            name="devices",
            verdict=Verdict.FAIL,
            says=f"{', '.join(found.name for found in machine.devices)}: down",
            do=f"ip link set {first} up",
        )
    else:
        yield Check(name="devices", verdict=Verdict.OK, says=f"{', '.join(up)}: up")
    if len(up) > 1:
        yield Check(
            name="devices",
            verdict=Verdict.NOTE,
            says="every packet appears on each device that is up",
            do="capture on one of them only",
        )


def _transports(machine: _Machine, *, captured: bool) -> Iterator[Check]:
    """Which transports are there, and whether the kernel shows their packets.

    ``captured``: nothing else is in the way, so that packets that are shown can be captured.
    """
    tapped = [found for found in TAPPED if machine.present(found.module, found.option)]
    untapped = [found for found in UNTAPPED if machine.present(found.module, found.option)]
    for found in tapped:
        says = f"{found.module} is loaded: connections {found.carries} are captured"
        if not captured:
            says = f"{found.module} is loaded: it carries connections {found.carries}"
        if found is _GUEST and not machine.virtio_device():
            says = f"{found.module} is loaded, but this machine has no virtio vsock device"
        yield Check(name="transport", verdict=Verdict.OK, says=says)
    for found in untapped:
        yield Check(
            name="transport",
            # Alone, it is all that this machine's vsock goes through.
            verdict=Verdict.NOTE if tapped else Verdict.FAIL,
            says=f"{found.module} is loaded: connections {found.carries} never reach vsockmon",
            do="capture on a machine whose vsock is virtio (KVM)",
        )
    if not tapped and not untapped:
        yield Check(
            name="transport",
            verdict=Verdict.NOTE,
            says="no vsock transport is loaded: nothing passes yet",
            do="start a guest with a vsock device, or: modprobe vsock_loopback",
        )


def _vmms(machine: _Machine) -> Iterator[Check]:
    """Programs that carry vsock themselves, past this kernel."""
    for name in sorted({USERSPACE_VMMS[x] for x in machine.programs() if x in USERSPACE_VMMS}):
        yield Check(
            name="guests",
            verdict=Verdict.NOTE,
            says=f"{name} carries its guests' vsock itself, past this kernel",
            do="capture inside the guest",
        )
