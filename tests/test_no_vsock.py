"""No test touches the vsock of the machine it runs on: not in this process, not in a child.

The cases would be harmless even if the guard let them pass: what would open something only says so
to the audit hooks, and the device to be made is of a kind that no kernel knows.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import no_vsock
import pytest

SOCKET = "import socket, sys; sys.audit('socket.__new__', None, socket.AF_VSOCK, 1, 0)"
DEVICE = "import sys; sys.audit('open', '/dev/vsock', 'r', 0)"
CREATE = "from vsockdump import device; device.KIND = 'nosuchkind'; device.create('nosuch0')"
EVENTS = """
import socket, sys
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)))
socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
open('/dev/null')
assert any(e == 'socket.__new__' and a[1] == socket.AF_UNIX for e, a in seen)
assert any(e == 'open' and a[0] == '/dev/null' for e, a in seen)
"""


def refuses(code: str) -> bool:
    """Whether the guard ends a child of ours that runs this."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 1 and no_vsock.VsockTouchedError.__name__ in done.stderr


@pytest.mark.parametrize("code", [SOCKET, DEVICE, CREATE], ids=["socket", "device", "create"])
def test_a_child_is_refused(code: str) -> None:
    assert refuses(code)


def test_a_child_that_does_none_of_it_runs() -> None:
    subprocess.run([sys.executable, "-c", EVENTS], check=True)
    subprocess.run([sys.executable, "-c", "import os; os.system('true')"], check=True)


def test_this_process_is_watched() -> None:
    # Asked of the hook directly, which then refuses: nothing is opened.
    with pytest.raises(no_vsock.VsockTouchedError):
        sys.audit("open", no_vsock.DEVICES[0], "r", 0)
    assert no_vsock.refused.pop() == no_vsock.DEVICES[0]
    assert not no_vsock.refused


@pytest.mark.parametrize(
    "command",
    [
        ["ip", "link", "add", "type", "vsockmon"],
        ["/sbin/modprobe", "vsockmon"],
        ["modprobe", "-q", "vhost_vsock"],
        ["modprobe", "vmw_vsock_virtio_transport"],
        ["insmod", "/lib/modules/x/vsock_loopback.ko"],
        ["sh", "-c", "true && ip link add v0 type vsockmon"],
    ],
)
def test_commands_that_would_touch_it_are_refused(command: list[str]) -> None:
    assert no_vsock.refusal("subprocess.Popen", (command[0], command, None, None))


@pytest.mark.parametrize(
    "command", [[], ["ip", "link"], ["ip", "link", "show", "type", "vsockmon"], ["sh", "-c", "'"]]
)
def test_other_commands_are_not(command: list[str]) -> None:
    assert no_vsock.refusal("subprocess.Popen", ("", command, None, None)) is None


def test_one_place_in_the_sources_opens_such_a_socket() -> None:
    root = Path(__file__).resolve().parent.parent
    places = []
    for folder in ("vsockdump", "dissectors", "captures", "tests", "bench"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and "AF_VSOCK" in map(_name, node.args):
                    places += [file.relative_to(root).as_posix()] * (_name(node.func) == "socket")
    assert places == ["tests/vm/guard.py"]


def _name(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else None


def test_children_find_the_guard() -> None:
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(no_vsock.CHILD)
