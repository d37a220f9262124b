"""A shell, or one command, in the test VM: `python -m tests.vm.shell [--kernel 6.1] [-- COMMAND]`.

vsock is up there and vsockmon0 waits for a capture; `vsockdump` of this checkout is on the PATH.
The VM sees this machine's files read-only (changes go to memory and are lost), except for the
folder named by $RESULTS. The exit status is the command's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import select
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import kernels, vm

BEGIN, END = b"--- in the test VM ---", b"--- left the test VM ---"
"""What the agent prints before and after the command; only what is between them is shown."""


class Between:
    """Passes on what comes between two marks in a stream that arrives in pieces.

    `plain` leaves the carriage returns out that each terminal on the way has added.
    """

    def __init__(self, out: int, *, plain: bool = False) -> None:
        self._out = out
        self._plain = plain
        self._held = b""
        self._open = False

    def show(self, chunk: bytes) -> None:
        """Take the next piece and write what is to be shown of it."""
        self._held += chunk.replace(b"\r", b"") if self._plain else chunk
        if not self._open:
            before, mark, after = self._held.partition(BEGIN)
            self._open = bool(mark)
            # The line that holds the mark ends before the command says anything.
            self._held = after.lstrip(b"\r\n") if mark else before[-len(BEGIN) :]
        if self._open:
            shown, mark, _ = self._held.partition(END)
            # A piece may end inside the mark: the last bytes wait for what follows.
            keep = (
                0
                if mark
                else next(n for n in range(len(END), -1, -1) if END[:n] == shown[len(shown) - n :])
            )
            _write_all(self._out, shown[: len(shown) - keep])
            self._held = shown[len(shown) - keep :]
            if mark:
                self._open, self._held = False, b""


def _write_all(out: int, data: bytes) -> None:
    while data:
        data = data[os.write(out, data) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[bool]:
    """Hand every key to the VM while this lasts; whether there is a terminal to do so with."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def run(kernel: kernels.Kernel, command: Sequence[str], folder: Path) -> int:
    """Run a command (a shell when empty) in a VM on this terminal; its exit status."""
    agent = [*vm.agent_command(folder, []), "--shell", *command]
    words = vm.vng_command(kernel, folder, agent, token=secrets.token_hex(8))
    show = Between(sys.stdout.fileno())
    with _raw_terminal() as keys, vm.Console(words, folder / "console.log") as console:
        while (chunk := console.read(0.05)) is not None:
            show.show(chunk)
            if keys and select.select([sys.stdin], [], [], 0)[0]:
                _write_all(console.terminal, os.read(sys.stdin.fileno(), 4096))
    try:
        return int(vm.read_json(folder / "done.json"))
    except FileNotFoundError:
        tail = (folder / "console.log").read_bytes()[-2000:].decode("utf-8", "replace")
        raise vm.VMError(f"the VM died: {tail}") from None


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="A shell or a command in the test VM.")
    parser.add_argument("--kernel", choices=sorted(kernels.SERIES), default="6.12")
    parser.add_argument("--results", type=Path, help="keep $RESULTS in this folder")
    parser.add_argument("command", nargs="*", help="after --, what to run (default: a shell)")
    options = parser.parse_args()
    try:
        kernel = kernels.kept_kernel(options.kernel)
        with tempfile.TemporaryDirectory(prefix="vsockdump-shell-") as work:
            folder = Path(options.results or work).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            print(f"booting {kernel.release} ...", file=sys.stderr)
            return run(kernel, options.command, folder)
    except (kernels.SetupError, vm.VMError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
