"""Boots a kernel under virtme-ng and has the agent carry out a list of scenarios in it.

The machine is emulated in software (a /dev/kvm may be present and still fail), on top of the
host's own file system, read-only; one folder is shared for results. virtme-ng wants a terminal,
so it gets a pseudo terminal whose output becomes console.log.

Boots cost seconds and scenarios little, so one boot does everything: the caller names the
scenarios, the agent writes one folder for each, and nothing is told through the terminal or
the exit status: agent.json says that the VM came up, `<scenario>/status.json` how each one
ended, done.json that the agent came to its end. What is missing there is a failure here.
"""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import guard, kernels
from .agent import BEAT

BOOT_SECONDS = 300
"""How long a boot may take; a slow machine under load needs more than a minute."""
HUNG_SECONDS = 100
"""How long the agent may give no sign of life."""
MEMORY = "2G"
CPUS = 1
"""With several emulated processors, a kernel that patches its own code on one of them now and then
panics on a stale breakpoint on another; and the guest inside runs at half the speed."""
_CACHED_ROOT = (
    "-virtfs local,path=/,mount_tag=cached,security_model=none,readonly=on,multidevs=remap"
)
"""The host's files once more, for enter.sh to mount with a cache."""
REPOSITORY = Path(__file__).resolve().parents[2]


class VMError(RuntimeError):
    """The VM did not boot, died, or took too long; the message ends in the console's last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The results of one boot: `folder` holds one folder for each scenario."""

    kernel: kernels.Kernel
    folder: Path

    def scenario(self, name: str) -> Path:
        """The folder of a scenario that ended well; VMError with its story otherwise."""
        folder = self.folder / name
        status = self.status(name)
        if not status.get("ok"):
            raise VMError(
                f"scenario {name} failed on {self.kernel.release}: {status.get('error')}\n"
                f"{status.get('traceback', '')}"
            )
        return folder

    def status(self, name: str) -> dict[str, Any]:
        """How a scenario ended: ok, error, traceback, seconds."""
        try:
            status: dict[str, Any] = read_json(self.folder / name / "status.json")
        except FileNotFoundError:
            return {"ok": False, "error": "it never ended; see console.log"}
        return status


def read_json(path: Path) -> Any:
    """The value a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def vng_command(
    kernel: kernels.Kernel, folder: Path, command: Sequence[str], *, token: str
) -> list[str]:
    """The virtme-ng command that boots `kernel` and runs `command` in it as root."""
    vng = kernels.which("vng")
    if vng is None:
        raise VMError("virtme-ng is missing: pip install -e '.[dev]'")
    inside = ["sh", str(Path(__file__).with_name("enter.sh")), str(folder)]
    inside += ["env", f"{guard.TOKEN_VARIABLE}={token}", f"PYTHONPATH={REPOSITORY}", *command]
    options = ["--disable-kvm", "--disable-microvm", "--force-9p", "--user", "root", "--verbose"]
    options += ["--cpus", str(CPUS), "--memory", MEMORY, "--rwdir", str(folder)]
    options += [f"--qemu-opts={_CACHED_ROOT}", "--append", f"{guard.TOKEN_PARAMETER}={token}"]
    return [vng, "--run", str(kernel.image), *options, "--", shlex.join(inside)]


def agent_command(folder: Path, scenarios: Sequence[str]) -> list[str]:
    """The command that runs the agent in the VM."""
    return [sys.executable, "-m", "tests.vm.agent", "--results", str(folder), *scenarios]


def _console_tail(log: Path, lines: int = 25) -> str:
    text = log.read_bytes().decode("utf-8", "replace") if log.exists() else ""
    return "\n".join(text.replace("\r", "").splitlines()[-lines:])


class Console:
    """virtme-ng on a pseudo terminal: what the VM's console shows is logged, and may be watched.

    Left, virtme-ng and the QEMU below it have ended; they form a process group of their own.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log.open("ab", buffering=0)
        self.terminal, inner = pty.openpty()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=inner,
                stdout=inner,
                stderr=inner,
                # virtme-ng calls its own helpers by name.
                env=dict(os.environ, PATH=kernels.tool_path()),
                start_new_session=True,
            )
        finally:
            os.close(inner)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        os.close(self.terminal)
        self.log.close()

    def read(self, seconds: float) -> bytes | None:
        """What the console shows next: empty when nothing comes in time, None at its end."""
        ready, _, _ = select.select([self.terminal], [], [], seconds)
        if not ready:
            return b""
        try:
            chunk = os.read(self.terminal, 65536)
        except OSError:  # the other end of the pseudo terminal is gone
            chunk = b""
        self.log.write(chunk)
        return chunk or None


class Hung(VMError):
    """The VM stands still: its processors do nothing any more."""


def _watch(
    console: Console, folder: Path, limit: float, show: Callable[[bytes], None]
) -> str | None:
    """Show the console until its end; say which limit was passed, if one was."""
    up, beat = folder / "agent.json", folder / BEAT
    started = changed = time.monotonic()
    size = 0
    while (chunk := console.read(0.2)) is not None:
        show(chunk)
        now = time.monotonic()
        if now - started > BOOT_SECONDS and not up.exists():
            return f"did not boot within {BOOT_SECONDS} s"
        if now - started > limit:
            return f"did not finish within {limit:g} s"
        if beat.exists() and size != (size := beat.stat().st_size):
            changed = now
        if size and now - changed > HUNG_SECONDS:
            raise Hung(f"the VM gave no sign of life for {HUNG_SECONDS} s")
    console.process.wait()
    return None


def boot(
    kernel: kernels.Kernel,
    scenarios: Sequence[str],
    folder: Path,
    *,
    seconds: float = 1800,
    show: Callable[[bytes], None] = lambda chunk: None,
) -> Run:
    """Boot `kernel`, run the scenarios, return their results.

    `folder` is made when missing and has to be empty; `show` gets what the console shows. A
    scenario that failed does not raise here but where its results are asked for; a VM that did
    not come up or to its end does. One that stands still is booted once more.
    """
    try:
        return _boot(kernel, scenarios, folder, seconds, show)
    except Hung as hung:
        # QEMU without KVM, emulating a processor that runs a guest itself, does so at times.
        print(f"{hung}; once more", file=sys.stderr)
        folder.rename(folder.with_name(f"{folder.name}-hung"))
        return _boot(kernel, scenarios, folder, seconds, show)


def _boot(
    kernel: kernels.Kernel,
    scenarios: Sequence[str],
    folder: Path,
    seconds: float,
    show: Callable[[bytes], None],
) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise VMError(f"{folder} is not empty")
    token = secrets.token_hex(8)
    command = vng_command(kernel, folder, agent_command(folder, scenarios), token=token)
    log = folder / "console.log"
    with Console(command, log) as console:
        late = _watch(console, folder, seconds, show)
    if late is None and not (folder / "agent.json").exists():
        late = f"ended before it was up (virtme-ng's status {console.process.returncode})"
    if late is None and not (folder / "done.json").exists():
        late = "died before its scenarios were done"
    if late is not None:
        raise VMError(f"the {kernel.release} VM {late}\n{_console_tail(log)}")
    return Run(kernel=kernel, folder=folder)
