"""The command line: a tcpdump-like command, and one module for each subcommand.

``vsockdump SUBCOMMAND ...`` runs a subcommand; anything else is the tcpdump-like command. Here is
the one place that turns errors into a line on standard error and an exit status: 0 when all went
well (a closed pipe and an interrupt included), 1 when the input, the device or the output failed,
2 when the command line was wrong; ``check`` has more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import click

SUBCOMMANDS: Final = {
    "conns": "vsockdump.cli.conns:conns",
    "credit": "vsockdump.cli.credit:credit",
    "check": "vsockdump.cli.check:check",
    "device": "vsockdump.cli.device:device",
}
"""Each subcommand's name and where its click command is; imported when it is called for."""


def load(name: str) -> click.Command:
    """The click command of a subcommand; of the tcpdump-like command for any other name."""
    module, _, attribute = SUBCOMMANDS.get(name, "vsockdump.cli.dump:dump").partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (``sys.argv`` unless given) and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # OpenBLAS starts a thread a core at import; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(_run(given))


def _run(given: list[str]) -> int:
    from click import Abort, ClickException

    from vsockdump.errors import VsockdumpError

    name = "vsockdump"
    if given and given[0] in SUBCOMMANDS:
        name = f"vsockdump {given[0]}"
    try:
        command = load(given[0] if given else "")
        rest = given[1:] if name != "vsockdump" else given
        status = command.main(rest, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # Whoever read us has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Abort, KeyboardInterrupt):
        return 130
    except VsockdumpError as error:
        sys.stdout.flush()
        print(f"vsockdump: {error}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0
