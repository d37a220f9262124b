"""The one door to a live vsock: open in the test VM only, shut everywhere else.

The machine that runs the tests may have a vsock of its own, with other people's traffic on it.
So whatever loads a module, creates a vsockmon device or opens an AF_VSOCK socket asks here
first. The answer rests on four things that together hold only in a VM this project booted:

- the kernel's command line carries the token of this boot, and the environment names the same;
- process 1 is virtme-ng's init;
- the root file system that process 1 sees is the host's, shared over 9p or virtiofs;
- the processor says that it is virtual.

Invariants: nothing here opens, loads or changes anything; a file that cannot be read counts
against us.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

TOKEN_PARAMETER = "vsockdump.test_vm"
TOKEN_VARIABLE = "VSOCKDUMP_TEST_VM"
_INIT_NAMES = ("virtme-ng-init", "virtme-init")
_SHARED_ROOTS = ("9p", "virtiofs")


class NotInTestVMError(RuntimeError):
    """Something that touches a live vsock was asked for outside the test VM."""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def refusal(proc: Path = Path("/proc"), token: str | None = None) -> str | None:
    """Why this is not the test VM, or None where it is.

    `proc` is where the process file system is looked for, `token` the boot's token (by default
    what the environment says).
    """
    expected = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    if not expected:
        return f"{TOKEN_VARIABLE} is not set"
    if f"{TOKEN_PARAMETER}={expected}" not in _read(proc / "cmdline").split():
        return f"the kernel was not booted with {TOKEN_PARAMETER}={expected}"
    # The kernel keeps 15 characters of a process's name.
    if _read(proc / "1/comm").strip() not in {name[:15] for name in _INIT_NAMES}:
        return "process 1 is not virtme-ng's init"
    roots = [line.split() for line in _read(proc / "1/mounts").splitlines()]
    if not any(r[1:3] == ["/", kind] for r in roots for kind in _SHARED_ROOTS):
        return "the root file system is not one shared by a host"
    flags = [x for x in _read(proc / "cpuinfo").splitlines() if x.startswith("flags")]
    if not flags or "hypervisor" not in flags[0].split():
        return "the processor is not a virtual one"
    return None


@cache
def require_test_vm() -> None:
    """Raise NotInTestVMError unless this is the test VM.

    A process stays where it is, so a yes is remembered; a no is found out again each time.
    """
    why = refusal()
    if why is not None:
        raise NotInTestVMError(f"refused outside the test VM: {why}")


def vsock_socket(kind: socket.SocketKind) -> socket.socket:
    """An AF_VSOCK socket of `kind` (SOCK_STREAM or SOCK_SEQPACKET), in the test VM only."""
    require_test_vm()
    return socket.socket(socket.AF_VSOCK, kind)
