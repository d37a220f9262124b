"""The command line: a tcpdump-like command, and one module for each subcommand.

``vsockdump SUBCOMMAND ...`` runs a subcommand; anything else is the tcpdump-like command. Here is
the one place that turns errors into a line on standard error and an exit status: 0 when all went
well (a closed pipe and an interrupt included), 1 when the input, the device or the output failed,
2 when the command line was wrong (a filter included), 130 when an interrupt had to be forced;
``check`` has more.

A command's module holds its options and help alone, and a call imports the module of what it does:
numpy, which nearly all of that needs, takes longer to load than all of ours.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
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
_OBJECTS: Final = 100_000
"""Objects made until garbage is looked for; some 60,000 are modules' and stay."""


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
    # Modules are no garbage: looking through them, again and again while they load and once more
    # at the end, is a seventh of a short run.
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)
    _hold_standard_streams()
    sys.exit(_run(given))


def _hold_standard_streams() -> None:
    """Have standard streams that take any text.

    A standard descriptor that is closed gets something put into, or the next file would get it.
    """
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The wrong way round for input and output, so that using it is an error as it should.
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (it stays open)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (it stays open)
    # A character that the output's encoding lacks is written as an escape, as Python itself does
    # on standard error. Nothing else may stand in for standard output but in a test.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(given: list[str]) -> int:
    from click import Abort, ClickException, UsageError
    from click.exceptions import Exit

    from vsockdump.cli.output import unwanted_color
    from vsockdump.errors import FilterError, VsockdumpError

    subcommand = given[0] if given and given[0] in SUBCOMMANDS else ""
    name = f"vsockdump {subcommand}".rstrip()
    try:
        command = load(subcommand)
        # Not command.main: that has its own ideas of what a closed pipe is.
        with command.make_context(name, given[1:] if subcommand else given) as context:
            context.color = False if unwanted_color() else None
            status = command.invoke(context)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except Exit as ended:
        return _flushed(ended.exit_code)
    except UsageError as error:
        message = error.format_message()
        if message.startswith("Usage:"):
            # A group without a subcommand: the message is its help.
            print(message, file=sys.stderr)
            return error.exit_code
        asked = error.ctx.command_path if error.ctx is not None else name
        return _fail(f"{message}\nTry '{asked} --help' for help.", error.exit_code)
    except ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except BrokenPipeError:
        # Whoever read us has gone.
        return _abandon_output(0)
    except (Abort, KeyboardInterrupt):
        return _abandon_output(130)
    except FilterError as error:
        return _fail(f"{error}{_meant(given)}", 2)
    except VsockdumpError as error:
        return _fail(str(error), 1)
    except OSError as error:
        # Files and devices have errors of their own; what is left is standard output.
        _abandon_output(1)
        return _fail(f"standard output: {error.strerror}", 1)


def _meant(given: list[str]) -> str:
    """A line about the command that the first word may stand for, if it is near a command's name.

    It was taken for the first word of a filter, for nothing else tells the two apart.
    """
    import click

    from vsockdump.filters.names import nearest

    word = given[0] if given else ""
    if word == "help":
        return "\nfor help: vsockdump --help"
    commands = {name: name for name in SUBCOMMANDS}
    for name in SUBCOMMANDS:
        group = load(name)
        if isinstance(group, click.Group):
            commands |= {inner: f"{name} {inner}" for inner in group.commands}
    near = nearest(word, commands) if word else None
    return f"\nif a command was meant: vsockdump {commands[near]}" if near else ""


def _fail(message: str, status: int) -> int:
    """Say what went wrong, behind everything that was printed before it."""
    from vsockdump.sinks.names import escape

    status = _flushed(status)
    for place, line in enumerate(message.splitlines()):
        print(f"{'' if place else 'vsockdump: '}{escape(line)}", file=sys.stderr)
    return status


def _flushed(status: int) -> int:
    """The status, once all that was printed is on its way; another one if that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _abandon_output(status)
    except OSError as error:
        _abandon_output(1)
        print(f"vsockdump: standard output: {error.strerror}", file=sys.stderr)
        return status or 1
    return status


def _abandon_output(status: int) -> int:
    """Let nobody try again to write what could not be written; Python would, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
