"""Network namespaces for tests: traffic that nobody else sees, and nobody else's traffic.

A namespace is the calling thread's, for as long as the block runs; sockets opened in it stay in it.
IPv6 is off in it, so that the only frames on its devices are those that a test sends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000
OUTGOING_ONLY = (
    (0x30, 0, 0, 0xFFFFF004),  # ldb [SKF_AD_OFF + SKF_AD_PKTTYPE]
    (0x15, 0, 1, socket.PACKET_OUTGOING),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)
"""A BPF program for a loopback device, where a packet socket sees each frame leave and arrive."""
_TUNSETIFF = 0x400454CA
_TUNSETLINK = 0x400454CD
_IFF_TUN_NO_PI = 0x1001
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def namespace() -> Iterator[None]:
    """A fresh network namespace; skips the test where there cannot be one (fails in CI)."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        try:
            _call("unshare", CLONE_NEWNET)
        except OSError as error:
            if os.environ.get("CI") or error.errno not in (errno.EPERM, errno.ENOSYS):
                raise
            pytest.skip(f"no network namespace of our own: {error.strerror}")
        try:
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
    finally:
        os.close(home)


def change(name: str, **settings: object) -> None:
    """``ip link set name ...``"""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, **settings)


def remove(name: str) -> None:
    """``ip link del name``"""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("del", index=index)


def veth(name: str, mtu: int = 65535) -> str:
    """One end of a new pair, up (its other end is ``name`` with ``-far``); returns its name."""
    far = f"{name}-far"
    with IPRoute() as netlink:
        netlink.link("add", ifname=name, kind="veth", peer={"ifname": far})
    # In this order, the near end has a carrier as it comes up. The other would get it later, and
    # drop what is sent until then.
    for end in (far, name):
        change(end, state="up", mtu=mtu)
    return name


@contextmanager
def tun(name: str, hardware_type: int) -> Iterator[str]:
    """A device of any hardware type, up; skips the test where /dev/net/tun is not to be had."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        pytest.skip(f"/dev/net/tun: {error.strerror}")
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
        fcntl.ioctl(fd, _TUNSETLINK, hardware_type)
        change(name, state="up")
        yield name
    finally:
        os.close(fd)


class Sender:
    """Sends raw frames out of one device; a capture there sees them leave, in order."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind((name, 0))

    def send(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            self.socket.send(frame)

    def close(self) -> None:
        self.socket.close()
