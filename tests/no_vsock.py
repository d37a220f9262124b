"""Keeps tests away from the vsock of the machine they run on, whatever code they reach.

The machine may have a vsock of its own, with other people's traffic on it. An audit hook sees what
the interpreter is about to do and refuses it: an AF_VSOCK socket, the vsock devices, a command that
makes a vsockmon device or loads a module for one, rtnetlink below ``vsockdump.device.create``.
``tests/no_vsock_child`` puts the hook into every Python that a test starts. In the project's test
VM, which is made for just that, everything is allowed.

Invariant: standard library only, and nothing but this file: it is loaded before anything else.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from importlib import util
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
CHILD = HERE / "no_vsock_child"
DEVICES = ("/dev/vsock", "/dev/vhost-vsock")
_VSOCK_MODULE = re.compile(r"(vmw_)?(vsock|vhost)")
_SHELLS = ("sh", "bash", "dash")
_STARTS = ("subprocess.Popen", "os.exec", "os.posix_spawn")


class VsockTouchedError(RuntimeError):
    """A test was about to touch the vsock of this machine."""


refused: list[str] = []
"""What was refused in this process, so that nobody can swallow it."""


def install() -> None:
    """Watch this process from now on; there is no way back."""
    sys.addaudithook(_hook)


def refusal(event: str, args: tuple[Any, ...]) -> str | None:
    """What is wrong with this audit event, None if nothing is."""
    if event == "socket.__new__":
        family = args[1]
        if family == socket.AF_VSOCK:
            return "an AF_VSOCK socket"
        if family == socket.AF_NETLINK and args[3] == socket.NETLINK_ROUTE and _creating():
            return "a vsockmon device"
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path = os.fsdecode(args[0])
        if path in DEVICES:
            return path
    elif event == "os.system":
        return _command(["sh", "-c", os.fsdecode(args[0])])
    elif event in _STARTS:
        return _command([os.fsdecode(word) for word in args[1] or ()])
    return None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    what = refusal(event, args)
    if what is not None and not _in_test_vm():
        refused.append(what)
        raise VsockTouchedError(f"refused outside the test VM: {what}")


def _creating() -> bool:
    """Whether the call comes from where vsockdump makes a device."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if (
            frame.f_globals.get("__name__") == "vsockdump.device"
            and frame.f_code.co_name == "create"
        ):
            return True
        frame = frame.f_back
    return False


def _command(words: list[str]) -> str | None:
    """What a command would do, None if it is harmless."""
    if not words:
        return None
    name = Path(words[0]).name
    if name in _SHELLS and "-c" in words[:-1]:
        script = words[words.index("-c") + 1]
        for part in re.split(r"[;&|\n()]+", script):
            try:
                found = _command(shlex.split(part))
            except ValueError:
                continue
            if found:
                return found
    if name == "ip" and "vsockmon" in words and not {"show", "list"} & set(words):
        return "a vsockmon device"
    if name in ("modprobe", "insmod") and any(_VSOCK_MODULE.search(word) for word in words[1:]):
        return "a vsock module"
    return None


def _in_test_vm() -> bool:
    spec = util.spec_from_file_location("_vm_guard", HERE / "vm" / "guard.py")
    assert spec is not None and spec.loader is not None
    guard = util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    return guard.refusal() is None
