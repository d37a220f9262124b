"""A capture of a running VM on this terminal, as it happens: `python -m tests.vm.demo`.

Boots the newer kernel, starts a few programs that talk over vsock, one of which stops reading for
a while, and runs vsockdump beside them. What is shown is vsockdump's own output, live; in the end
all connections and what is wrong with them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import capture, kernels, traffic, vm
from .agent import DEVICE, Context, quiet_console
from .shell import BEGIN, END, Between
from .truth import Truth

SERIES = "6.12"
PLAIN, COLORED = "demo", "demo-in-colour"
SECONDS = 6
"""About how long traffic is made for."""
_MAKERS: tuple[Callable[[], Truth], ...] = (
    partial(traffic.refused, 1),
    partial(traffic.half_close, 600),
    partial(traffic.seqpacket, (5, 500)),
    partial(traffic.slow_reader, 512 << 10, 256 << 10, (2.0, 1.0)),
)


def _show(context: Context, color: str) -> None:
    """In the VM: vsockdump on the console, and traffic beside it."""
    quiet_console()
    print(BEGIN.decode(), flush=True)
    words = [str(capture.VSOCKDUMP), "-i", DEVICE, "-B", str(capture.RING_KIB), "-v", "-s", "128"]
    file = context.work / "demo.pcapng"
    words += [f"--color={color}", "--print", "-w", str(file)]
    print("# vsockdump -i vsockmon0 -v --print -w demo.pcapng", flush=True)
    tool = capture.Tool(context, words, PLAIN, out=sys.stdout.fileno())
    with tool:
        until = time.monotonic() + SECONDS
        for make in _MAKERS:
            make()
        while time.monotonic() < until:
            traffic.echo((6, 1000))
            time.sleep(0.7)
    print(tool.text(), end="", flush=True)
    for command in ("conns", "check"):
        print(f"\n# vsockdump {command} demo.pcapng", flush=True)
        subprocess.run([str(capture.VSOCKDUMP), command, str(file)], check=False)
    print(END.decode(), flush=True)


SCENARIOS: dict[str, Callable[[Context], None]] = {
    PLAIN: partial(_show, color="never"),
    COLORED: partial(_show, color="always"),
}
"""What the VM is asked for, on terminals without colours and with them."""


def main() -> int:
    """Entry point."""
    try:
        if kernels.missing_packages():
            print("installing what a virtual machine needs ...", flush=True)
        kernels.ensure_packages()
        print("looking for the newest kernel ...", flush=True)
        kernel = kernels.ensure_kernel(SERIES)
        print(f"booting Linux {kernel.release} in a virtual machine ...", flush=True)
        between = Between(sys.stdout.fileno(), plain=True)
        with tempfile.TemporaryDirectory(prefix="vsockdump-demo-") as work:
            name = COLORED if sys.stdout.isatty() else PLAIN
            run = vm.boot(kernel, [name], Path(work) / "run", show=between.show)
            run.scenario(name)
    except (kernels.SetupError, vm.VMError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
