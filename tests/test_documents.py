"""The documents say what the program does: its help, its grammar, its JSON, its sessions."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import goldens
import pytest
import readme
from golden import pages
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from lark import Lark, UnexpectedInput
from line_cases import batches, tracked
from test_text import styles, without_comments

from vsockdump.cli import load
from vsockdump.cli.command import EXAMPLES
from vsockdump.packets import PacketBatch
from vsockdump.sinks.text import TextPrinter, TextStyle
from vsockdump.tracking.findings import CODES, Severity
from vsockdump.tracking.states import State

DOCS = pages.DOCS
OUTPUT = (DOCS / "output.md").read_text("utf-8")
LINE, BELOW = (
    match[1] for match in re.finditer(r"^```lark\n(.*?)^```$", OUTPUT, re.MULTILINE | re.DOTALL)
)
SCHEMAS = {
    name: json.loads((DOCS / f"{name}.schema.json").read_text("utf-8"))
    for name in ("packet", "connection", "finding")
}
TEXT = [row for row in goldens.TABLE if not row.command and "color" not in row.name]


# -- help ---------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return text.split()


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    # Words alone: versions of click differ in where they break lines.
    assert words(pages.CLI.read_text("utf-8")) == words(pages.cli_page())


COMMANDS = dict(pages.commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_that_can_be_typed_is_documented(name: str) -> None:
    command = COMMANDS[name]
    page = pages.CLI.read_text("utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, param.opts
            assert not param.hidden, param.opts
            assert all(
                re.search(rf"(^|[ ,]){re.escape(opt)}\b", section) or opt == "-#"
                for opt in param.opts
            ), param.opts
    for sub in getattr(command, "commands", ()):
        assert f"\n## {name} {sub}\n" in page


@pytest.mark.parametrize(("line", "says"), EXAMPLES)
def test_examples_can_be_typed(line: str, says: str) -> None:
    assert says
    for part in line.split(" | "):
        typed = shlex.split(part)
        if "vsockdump" in typed:
            given_ = typed[typed.index("vsockdump") + 1 :]
            load("").make_context("vsockdump", given_)


def test_a_page_names_every_command_there_is() -> None:
    top = pages.help_text("vsockdump", load(""))
    for name in COMMANDS:
        first = name.split()[1:2]
        assert not first or re.search(rf"^  {first[0]} ", top, re.MULTILINE)


# -- lines --------------------------------------------------------------------------------------


GRAMMAR = Lark(LINE, start="line")


def shape(text: str) -> str:
    """The line with all its numbers alike, so that lines of one kind are parsed once."""
    if "0x" in text:
        return text
    text = re.sub(r"[0-9]", "1", text)
    text = re.sub(r"\b1+\.1+(?= >|:)", "1.1", text)
    return re.sub(r"(?<![.:1-])1+(?![.:1-])", "1", text)


def test_golden_lines_are_in_the_grammar() -> None:
    shapes = set()
    for row in TEXT:
        if "json" in row.name or "count" in row.name or "filter-d" in row.name:
            continue
        for text in row.expected.read_text("utf-8").splitlines():
            if not text.startswith("\t") and "-A" not in row.options:
                shapes.add(shape(text))
    assert len(shapes) > 100
    for text in shapes:
        GRAMMAR.parse(text)


@given(batches(max_size=3).map(without_comments), styles, st.data())
def test_any_line_is_in_the_grammar(
    batch: PacketBatch, style: TextStyle, data: st.DataObject
) -> None:
    figures = data.draw(st.none() | tracked(len(batch)))
    shown = TextPrinter(replace(style, color=False)).render(batch, figures).decode()
    for text in shown.splitlines():
        GRAMMAR.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "18:13:29.652 vsockmon0 3.1 > host.2: RW, length 0",
        "3.1 > host.2: RW, length -1",
        "3.1 > guest.2: RW, length 1",
        "3.1 > host.2: RW [EOM|], length 1",
        "3.1 > host.2: RW, seq 1, fwd 0, win 0, length 1",
        "3.1 > host.2: rw, length 1",
        "vsock [truncated virtio]",
    ],
)
def test_the_grammar_refuses_other_lines(text: str) -> None:
    with pytest.raises(UnexpectedInput):
        GRAMMAR.parse(text)


def test_what_stands_below_a_line_is_in_the_grammar() -> None:
    grammar = Lark(BELOW, start=["dump", "comment"])
    seen = {"dump": 0, "comment": 0}
    for row in TEXT:
        for text in row.expected.read_text("utf-8").splitlines():
            if text.startswith("\t") and "-A" not in row.options:
                start = "comment" if text.startswith("\tcomment") else "dump"
                seen[start] += 1
                if seen[start] < 40:
                    grammar.parse(text, start=start)
    assert all(seen.values())


def test_the_page_tells_of_every_option_of_text() -> None:
    for param in load("").params:
        if getattr(param, "section", "") in ("What is printed", "Times"):
            told = any(f"`{opt}" in OUTPUT for opt in param.opts)
            assert told or param.opts in (["--json"], ["--count"], ["-l"]), param.opts


# -- JSON ---------------------------------------------------------------------------------------

OBJECTS = [
    *(("packet", row) for row in goldens.TABLE if not row.command and "json" in row.name),
    *(
        (schema, row)
        for schema, commands in (("connection", ("conns", "credit")), ("finding", ("check",)))
        for row in goldens.TABLE
        if row.command in commands and "json" in row.name
    ),
]


@pytest.mark.parametrize(("name", "row"), OBJECTS, ids=lambda x: getattr(x, "name", x))
def test_objects_are_in_their_schema(name: str, row: goldens.Golden) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema)
    keys = list(schema["properties"])
    for text in row.expected.read_text("utf-8").splitlines():
        assert text.isascii()
        found = json.loads(text)
        validator.validate(found)
        assert list(found) == [key for key in keys if key in found]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas_and_say_what_everything_is(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    for value in pages.properties(schema):
        assert value["description"].endswith(".")
    required: list[Any] = schema["required"]
    assert required == [key for key in schema["properties"] if key != "stall_list"]


def test_schemas_know_all_names_there_are() -> None:
    finding, connection = SCHEMAS["finding"]["properties"], SCHEMAS["connection"]["properties"]
    assert finding["code"]["enum"] == list(CODES)
    assert finding["severity"]["enum"] == [severity.label for severity in Severity]
    assert sorted(connection["state"]["enum"]) == sorted(state.label for state in State)


def test_the_page_about_json_is_made_from_the_schemas() -> None:
    assert pages.JSON.read_text("utf-8") == pages.json_page()


# -- sessions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", readme.PAGES[1:], ids=lambda page: page.name)
def test_sessions_of_the_docs_show_what_the_commands_print(page: Path) -> None:
    shown = list(readme.sessions(page.read_text("utf-8")))
    assert shown
    for expected, printed in shown:
        assert expected == printed


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in readme.links(page.read_text("utf-8")):
        assert (DOCS / target).exists(), target
