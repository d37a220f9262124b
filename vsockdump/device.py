"""Find, create and remove vsockmon devices.

Strategy: looking is done in sysfs, which costs nothing; pyroute2 is loaded when something is
changed, and not before. A temporary device is removed by a small process of its own that waits for
this one to end: so it goes even if this process has dropped its privileges, or was killed.

Invariants: nothing but a vsockmon device is ever removed, and a temporary one only by who made it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from vsockdump.errors import DeviceError
from vsockdump.privileges import setcap_command

DEFAULT_NAME: Final = "vsockmon0"
NONE: Final = "no vsockmon device; make one with: vsockdump device create"
"""What is said where a list of them is empty."""
KIND: Final = "vsockmon"
"""Kind of the device in rtnetlink, and name of its module."""
_IFF_UP: Final = 1
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A network device of the vsockmon kind: name, index, whether it is up, and MTU in bytes."""

    name: str
    index: int
    up: bool
    mtu: int


class DeviceExistsError(DeviceError):
    """There is a device of this name already."""


def _is_vsockmon(hardware_type: int) -> bool:
    # numpy comes with it, and --help looks at this module too.
    from vsockdump import wire

    return hardware_type == wire.ARPHRD_VSOCKMON


def list_devices(root: Path = Path("/")) -> list[Device]:
    """The vsockmon devices in this network namespace, by index, from sysfs below ``root``."""
    found = []
    for entry in (root / "sys/class/net").glob("*"):
        try:
            if not _is_vsockmon(int((entry / "type").read_text())):
                continue
            device = Device(
                name=entry.name,
                index=int((entry / "ifindex").read_text()),
                up=bool(int((entry / "flags").read_text(), 16) & _IFF_UP),
                mtu=int((entry / "mtu").read_text()),
            )
        except OSError:
            # Not a device (a control file), or one that went away while we looked.
            continue
        found.append(device)
    return sorted(found, key=lambda device: device.index)


def create(name: str = DEFAULT_NAME) -> None:
    """Make a vsockmon device and bring it up, in one step.

    Raises DeviceError where it exists, where the kernel has no vsockmon, without CAP_NET_ADMIN.
    """
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as netlink:
            netlink.link("add", ifname=name, kind=KIND, state="up")
    except (NetlinkError, OSError) as error:
        raise _explained(name, "create", error) from None


def delete(name: str) -> None:
    """Remove a vsockmon device; DeviceError where ``name`` is not there, or of another kind."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as netlink:
            found = [link for link in netlink.get_links() if link.get_attr("IFLA_IFNAME") == name]
            if not found:
                raise DeviceError(f"{name}: no such device")
            if not _is_vsockmon(found[0]["ifi_type"]):
                raise DeviceError(f"{name} is not a vsockmon device; it stays")
            netlink.link("del", index=found[0]["index"])
    except (NetlinkError, OSError) as error:
        raise _explained(name, "delete", error) from None


def _explained(name: str, what: str, error: Exception) -> DeviceError:
    """Why a device could not be made or removed; ``error`` is pyroute2's or the kernel's."""
    number = getattr(error, "code", None) or getattr(error, "errno", None) or 0
    if number in (errno.EPERM, errno.EACCES):
        return DeviceError(
            f"{name}: no permission to {what} a device: run as root, or once as root: "
            f"{setcap_command()}"
        )
    if number == errno.EEXIST:
        return DeviceExistsError(f"{name} exists already")
    if number == errno.ENODEV:
        return DeviceError(f"{name}: no such device")
    if number == errno.EOPNOTSUPP:
        return DeviceError(
            f"{name}: this kernel has no vsockmon loaded; try: modprobe {KIND} "
            "(vsockdump device doctor tells more)"
        )
    if number in (errno.EINVAL, errno.ERANGE):
        return DeviceError(f"{name!r} is not a name for a network device")
    return DeviceError(f"{name}: cannot {what} it: {os.strerror(number) if number else error}")


@contextmanager
def temporary(name: str = DEFAULT_NAME) -> Iterator[bool]:
    """The device ``name`` for as long as the block runs: made if missing, and then removed.

    Yields whether it was made. It is removed also when this process is killed, or has become
    another user by then. DeviceError where it cannot be made, or not removed.
    """
    # No signal comes between making the device and having someone who removes it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    ours = None
    try:
        if all(device.name != name for device in list_devices()):
            ours = _make_kept(name)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield ours is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ours is not None:
            _end_keeping(*ours)


def _make_kept(name: str) -> tuple[socket.socket, int] | None:
    """Make the device and the process that removes it: its channel and id; None if it exists."""
    try:
        create(name)
    except DeviceExistsError:
        return None
    ours, theirs = socket.socketpair()
    keeper = os.fork()
    if keeper == 0:
        ours.close()
        _keep(name, theirs)
    theirs.close()
    return ours, keeper


def _keep(name: str, channel: socket.socket) -> NoReturn:
    """The keeper's whole life: wait for the other end to close, remove, say what went wrong.

    What ends a capture from a terminal or a service manager is sent to it too, and stays blocked.
    """
    try:
        channel.recv(1)
        try:
            delete(name)
        except DeviceError as error:
            channel.sendall(str(error).encode())
    finally:
        os._exit(0)


def _end_keeping(channel: socket.socket, keeper: int) -> None:
    """Have the device removed, and raise what hindered that."""
    with channel:
        channel.shutdown(socket.SHUT_WR)
        with channel.makefile() as answer:
            trouble = answer.read()
    os.waitpid(keeper, 0)
    if trouble:
        raise DeviceError(trouble)
