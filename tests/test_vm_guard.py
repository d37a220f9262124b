"""Outside the test VM nothing that touches a live vsock gets past the guard."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from vm import agent, capture, guard, peers
from vm.truth import Truth

TOKEN = "0123456789abcdef"
FILES = {
    "cmdline": f"console=ttyS0 {guard.TOKEN_PARAMETER}={TOKEN} quiet\n",
    "1/comm": "virtme-ng-init\n",
    "1/mounts": "proc /proc proc rw 0 0\n/dev/root / 9p ro,access=any,trans=virtio 0 0\n",
    "cpuinfo": "processor\t: 0\nflags\t\t: fpu svm hypervisor lahf_lm\n",
}


def make_proc(folder: Path, **changed: str) -> Path:
    for name, text in (FILES | changed).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_test_vm_is_recognised(tmp_path: Path) -> None:
    assert guard.refusal(make_proc(tmp_path), TOKEN) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cmdline", "console=ttyS0 quiet\n"),
        ("cmdline", f"console=ttyS0 {guard.TOKEN_PARAMETER}={TOKEN}0 quiet\n"),
        ("1/comm", "systemd\n"),
        ("1/mounts", "/dev/vda / ext4 rw 0 0\nx /mnt 9p ro 0 0\n"),
        ("cpuinfo", "processor\t: 0\nflags\t\t: fpu svm lahf_lm\n"),
        ("cpuinfo", ""),
    ],
)
def test_any_other_machine_is_refused(tmp_path: Path, name: str, text: str) -> None:
    assert guard.refusal(make_proc(tmp_path, **{name: text}), TOKEN) is not None


def test_a_missing_file_counts_against_us(tmp_path: Path) -> None:
    for name in FILES:
        proc = make_proc(tmp_path)
        (proc / name).unlink()
        assert guard.refusal(proc, TOKEN) is not None


def test_a_token_of_another_boot_is_refused(tmp_path: Path) -> None:
    assert guard.refusal(make_proc(tmp_path), TOKEN[::-1]) is not None
    assert guard.refusal(make_proc(tmp_path), "") is not None


def a_context(folder: Path) -> agent.Context:
    return agent.Context(name="x", work=folder, results=folder, release=os.uname().release)


@pytest.mark.parametrize("token", ["", TOKEN], ids=["no-token", "made-up-token"])
@pytest.mark.parametrize(
    "touch",
    [
        lambda _: guard.vsock_socket(socket.SOCK_STREAM),
        lambda _: peers.Listener(),
        lambda _: peers.connect(Truth(), 1),
        lambda _: agent.command("modprobe", "vsockmon"),
        lambda _: agent.add_device(),
        lambda _: agent.bring_up(),
        lambda folder: capture.tcpdump(a_context(folder)),
    ],
)
def test_nothing_is_opened_loaded_or_created_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, touch: Callable[[Path], object]
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was touched outside the test VM")

    monkeypatch.setenv(guard.TOKEN_VARIABLE, token)
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(subprocess, "run", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    with pytest.raises(guard.NotInTestVMError):
        touch(tmp_path)


def test_only_the_guard_opens_vsock_sockets() -> None:
    folder = Path(guard.__file__).parent
    users = [x.name for x in folder.glob("*.py") if "socket.socket(" in x.read_text()]
    assert users == ["guard.py"]


def test_every_module_of_the_vm_can_be_loaded_here() -> None:
    folder = Path(guard.__file__).parent
    for file in folder.glob("*.py"):
        if not file.name.startswith(("test_", "conftest")):
            importlib.import_module(f"{guard.__package__}.{file.stem}")
