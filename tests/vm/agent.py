"""Runs inside the test VM: brings vsock up, carries out scenarios, writes down how they ended.

A scenario is a function of a Context (see scenarios.py). One that raises, or takes longer than
its limit, is written down as failed and the next one starts. Results that grow fast are written
to memory first (`context.work`) and copied at the end: the shared folder is slow, and a capture
that has to wait for it would lose packets for no fault of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import guard

DEVICE = "vsockmon0"
BEAT = "beat"
SCENARIO_SECONDS = 300
MODULES = ("vsock_loopback", "vsockmon", "vsock_diag")
_WORK = Path("/run/vsockdump")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a scenario gets: a folder in memory to work in and one whose contents last."""

    name: str
    work: Path
    results: Path
    release: str

    def keep(self, *names: str) -> None:
        """Copy files of the work folder to the results."""
        for name in names:
            shutil.copyfile(self.work / name, self.results / name)

    def write(self, name: str, value: Any) -> None:
        """Write a value as JSON into the results."""
        write_json(self.results / name, value)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that whoever sees the file sees the whole of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.rename(path)


def command(*words: str) -> str:
    """Run a command in the VM and return what it printed; raises with its words on failure."""
    guard.require_test_vm()
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def add_device(name: str = DEVICE) -> None:
    """Create a vsockmon device and bring it up."""
    command("ip", "link", "add", name, "type", "vsockmon")
    command("ip", "link", "set", name, "up")


def remove_device(name: str = DEVICE) -> None:
    """Remove a vsockmon device."""
    command("ip", "link", "delete", name)


def quiet_console() -> None:
    """Keep the kernel's own messages off the console, where they would come between."""
    command("dmesg", "--console-level", "emerg")


def bring_up() -> None:
    """Load the modules, raise the loopback interface, mount memory to work in."""
    guard.require_test_vm()
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    command("modprobe", "-a", *MODULES)
    command("ip", "link", "set", "lo", "up")
    _WORK.mkdir(mode=0o755, exist_ok=True)
    command("mount", "-t", "tmpfs", "-o", "size=1200M", "tmpfs", str(_WORK))


def _too_long(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not done within {SCENARIO_SECONDS} s")


def carry_out(name: str, results: Path) -> bool:
    """Run one scenario and write its status; whether it ended well."""
    from .scenarios import SCENARIOS

    folder = results / name
    folder.mkdir()
    work = _WORK / name
    work.mkdir()
    context = Context(name=name, work=work, results=folder, release=os.uname().release)
    status: dict[str, Any] = {"ok": True, "error": None}
    started = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SCENARIO_SECONDS)
    try:
        SCENARIOS[name](context)
    # Whatever goes wrong in a scenario is its result, to be told on the other side.
    except Exception as error:  # noqa: BLE001
        status = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        status["traceback"] = traceback.format_exc()
    finally:
        signal.alarm(0)
    status["seconds"] = round(time.monotonic() - started, 3)
    write_json(folder / "status.json", status)
    shutil.rmtree(work)
    print(
        f"{name}: {'ok' if status['ok'] else status['error']} ({status['seconds']} s)", flush=True
    )
    return bool(status["ok"])


@contextlib.contextmanager
def _beating(beat: Path) -> Iterator[None]:
    """Let `beat` grow every two seconds, which says on the other side that the VM is alive."""
    loop = f"while sleep 2; do echo >> {shlex.quote(str(beat))}; done"
    heart = subprocess.Popen(["sh", "-c", loop])
    try:
        yield
    finally:
        heart.kill()
        heart.wait()


def _shell(words: list[str], results: Path) -> int:
    """Run a command, or a shell, on the console; its exit status."""
    from .shell import BEGIN, END

    environment = dict(os.environ, RESULTS=str(results), TERM=os.environ.get("TERM", "linux"))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    quiet_console()
    print(BEGIN.decode(), flush=True)
    done = subprocess.run(words or ["bash", "--norc", "-i"], env=environment, cwd=results)
    print(END.decode(), flush=True)
    return done.returncode


def main() -> int:
    """Entry point: bring the VM up and carry out the scenarios named on the command line."""
    parser = argparse.ArgumentParser(description="Carry out scenarios inside the test VM.")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--shell", nargs=argparse.REMAINDER, help="run this instead, or a shell")
    parser.add_argument("scenarios", nargs="*")
    options = parser.parse_args()
    guard.require_test_vm()
    bring_up()
    add_device()
    write_json(options.results / "agent.json", {"release": os.uname().release})
    if options.shell is not None:
        status = _shell(options.shell, options.results)
        write_json(options.results / "done.json", status)
        return status
    with _beating(options.results / BEAT):
        ended = {name: carry_out(name, options.results) for name in options.scenarios}
    write_json(options.results / "done.json", ended)
    os.sync()
    return 0 if all(ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
