"""Giving privileges up, each time in a child process, and as root: that is who has some."""

from __future__ import annotations

import ctypes
import os
import pwd
import shlex
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import forked

from vsockdump import privileges
from vsockdump.errors import VsockdumpError

NOBODY = pwd.getpwnam("nobody")
PR_SET_KEEPCAPS = 8
CAP_SETUID = 7

as_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="only root has privileges to drop"
)


def identity() -> dict[str, Any]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "groups": sorted(os.getgroups()),
        "capabilities": [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")],
        "no_new_privs": status["NoNewPrivs"].strip(),
    }


@as_root
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_the_process_becomes_the_user_and_nothing_else(user: str) -> None:
    def attempt() -> dict[str, Any]:
        os.setgroups([0, 4, 27])
        privileges.drop(user)
        return identity()

    assert forked(attempt) == {
        "uid": [NOBODY.pw_uid] * 3,
        "gid": [NOBODY.pw_gid] * 3,
        "groups": sorted(os.getgrouplist("nobody", NOBODY.pw_gid)),
        "capabilities": [0, 0, 0],
        "no_new_privs": "1",
    }


def open_packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@as_root
@pytest.mark.parametrize(
    "regain",
    [
        lambda: os.setuid(0),
        lambda: os.seteuid(0),
        lambda: os.setgid(0),
        lambda: os.setgroups([0]),
        open_packet_socket,
    ],
)
def test_there_is_no_way_back(regain: Callable[[], None]) -> None:
    def attempt() -> None:
        privileges.drop("nobody")
        regain()

    assert forked(attempt)[0] == "PermissionError"


@as_root
def test_capabilities_that_survive_a_change_of_user_are_given_up_too() -> None:
    # As with file capabilities: an ordinary user who holds some.
    def become_capable(keep: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
        header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
        sets = ctypes.create_string_buffer(struct.pack("=6I", keep, keep, 0, 0, 0, 0))
        assert libc.capset(header, sets) == 0

    setgid, setuid, raw = 1 << 6, 1 << CAP_SETUID, 1 << privileges.CAP_NET_RAW

    def attempt() -> list[Any]:
        become_capable(setgid | setuid | raw)
        before = privileges.effective()
        privileges.drop("nobody")
        return [before, identity()["capabilities"], os.getuid()]

    assert forked(attempt) == [setgid | setuid | raw, [0, 0, 0], NOBODY.pw_uid]


@as_root
def test_an_ordinary_user_cannot_become_another() -> None:
    def attempt() -> None:
        privileges.drop("nobody")
        privileges.drop("daemon")

    assert forked(attempt) == ["VsockdumpError", "-Z daemon: only root can become another user"]


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("no such user", "-Z no such user: there is no such user"),
        ("", "-Z : there is no such user"),
        ("4294967294", "-Z 4294967294: there is no such user"),
        ("9" * 30, f"-Z {'9' * 30}: there is no such user"),
        ("root", "-Z root: is root, which drops nothing; name an ordinary user"),
        ("0", "-Z 0: is root, which drops nothing; name an ordinary user"),
    ],
)
def test_a_user_that_will_not_do_is_an_error_and_nothing_changes(user: str, says: str) -> None:
    before = identity()
    with pytest.raises(VsockdumpError) as raised:
        privileges.drop(user)
    assert str(raised.value) == says
    assert identity() == before


def test_effective_reads_the_mask(tmp_path: Path) -> None:
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tpython3\nCapPrm:\t00000000ffffffff\nCapEff:\t0000000000003000\n")
    both = 1 << privileges.CAP_NET_ADMIN | 1 << privileges.CAP_NET_RAW
    assert privileges.effective(tmp_path) == both
    status.write_text("Name:\tpython3\n")
    assert privileges.effective(tmp_path) == 0


def test_the_setcap_line_names_the_binary_that_runs() -> None:
    setcap, capabilities, binary = shlex.split(privileges.setcap_command())
    assert (setcap, capabilities) == ("setcap", "cap_net_raw,cap_net_admin=ep")
    assert Path(binary).samefile(sys.executable)
    assert not Path(binary).is_symlink()
