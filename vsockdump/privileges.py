"""Who may capture, and giving that up: ``-Z`` and the words that tell how to get permission.

Capturing needs CAP_NET_RAW while the packet socket is opened, making a device needs CAP_NET_ADMIN;
nothing needs either afterwards, so a capture that parses bytes of guests can run as anybody.

Invariant: after ``drop`` the process holds no capability, no user or group identity but the given
user's, and no way back: not by a saved id, and not by a set-user-ID program.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shlex
import struct
from pathlib import Path
from typing import Final

from vsockdump.errors import VsockdumpError

CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
"""Numbers of ``include/uapi/linux/capability.h``."""

_CAPABILITY_VERSION_3: Final = 0x20080522
_PR_SET_NO_NEW_PRIVS: Final = 38


def effective(root: Path = Path("/")) -> int:
    """The capabilities in effect, a bit mask: ``CapEff`` of ``proc/self/status`` below ``root``."""
    for line in (root / "proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0


def setcap_command() -> str:
    """The command that lets this Python capture without root; it names the real binary.

    A link to it (as in a virtual environment) or a wrapper script cannot hold capabilities.
    """
    binary = Path("/proc/self/exe").readlink()
    return f"setcap cap_net_raw,cap_net_admin=ep {shlex.quote(str(binary))}"


def drop(user: str) -> None:
    """Become ``user`` (a name or a number) for good; needs root or CAP_SETUID and CAP_SETGID.

    Raises VsockdumpError where there is no such user, where it is root (nothing would be dropped),
    and where the kernel refuses; the process is then not to go on.
    """
    entry = _entry(user)
    if entry.pw_uid == 0:
        raise VsockdumpError(f"-Z {user}: is root, which drops nothing; name an ordinary user")
    uid, gid = entry.pw_uid, entry.pw_gid
    try:
        os.initgroups(entry.pw_name, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise VsockdumpError(f"-Z {user}: only root can become another user") from None
    libc = ctypes.CDLL(None, use_errno=True)
    # Leaving uid 0 empties the capability sets; a process that got here by file capabilities
    # was not uid 0 and still holds them.
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    none = ctypes.create_string_buffer(struct.calcsize("=6I"))
    if libc.capset(header, none) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise VsockdumpError(f"-Z {user}: cannot give up capabilities: {os.strerror(number)}")
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or effective():
        raise VsockdumpError(f"-Z {user}: privileges are still there after dropping them")


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise VsockdumpError(f"-Z {user}: there is no such user") from None
