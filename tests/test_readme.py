from __future__ import annotations

import subprocess
import sys

import pytest
import readme

PAGE = readme.README.read_text()


def test_sessions_show_what_the_commands_print() -> None:
    shown = list(readme.sessions(PAGE))
    assert shown
    for expected, printed in shown:
        assert expected == printed


@pytest.mark.parametrize("example", readme.python(PAGE))
def test_examples_run(example: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=readme.README.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()


def test_every_page_it_names_is_there() -> None:
    for target in readme.links(PAGE):
        assert (readme.README.parent / target).exists(), target
