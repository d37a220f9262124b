"""Write the pages that are made from the program: docs/cli.md, and the tables of docs/json.md.

`make docs` runs this; tests fail when a page is not what would be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vsockdump.cli import SUBCOMMANDS, load

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLI = DOCS / "cli.md"
JSON = DOCS / "json.md"
_WIDTH = 100
_TABLE = re.compile(r"(<!-- ([\w.]+)(?:#(\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = """\
# The command line

What `--help` says of every command. [output.md](output.md) tells what is printed,
[filters.md](filters.md) what a FILTER may be.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by the words that call it, groups before what is in them."""
    for name in ("", *SUBCOMMANDS):
        yield from _below(f"vsockdump {name}".rstrip(), load(name))


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for sub, inner in command.commands.items():
            yield from _below(f"{name} {sub}", inner)


def help_text(name: str, command: click.Command) -> str:
    """What a command says to --help on a terminal of a fixed width."""
    context = command.make_context(
        name, [], resilient_parsing=True, terminal_width=_WIDTH, color=False
    )
    return context.get_help().rstrip() + "\n"


def cli_page() -> str:
    """docs/cli.md."""
    parts = [_HEAD]
    for name, command in commands():
        parts.append(f"\n## {name}\n\n```text\n{help_text(name, command)}```\n")
    return "".join(parts)


def json_page() -> str:
    """docs/json.md with the tables that its schemas make."""
    return _TABLE.sub(_filled, JSON.read_text("utf-8"))


def _filled(match: re.Match[str]) -> str:
    schema = json.loads((DOCS / match[2]).read_text("utf-8"))
    part = schema["$defs"][match[3]] if match[3] else schema
    rows = [f"| `{key}` | {value['description']} |\n" for key, value in part["properties"].items()]
    link = f"[{match[2]}]({match[2]})\n\n" if not match[3] else ""
    return f"{match[1]}{link}| Key | Value |\n|---|---|\n{''.join(rows)}{match[4]}"


def properties(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All properties of a schema, those of its parts included."""
    for part in (schema, *schema.get("$defs", {}).values()):
        yield from part.get("properties", {}).values()


def main() -> None:
    """Write them."""
    CLI.write_text(cli_page(), "utf-8")
    JSON.write_text(json_page(), "utf-8")


if __name__ == "__main__":
    main()
