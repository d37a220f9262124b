"""What is printed is what golden/ says, byte for byte; `make golden` writes it anew."""

from __future__ import annotations

from pathlib import Path

import goldens
import pytest
from command import call
from goldens import FOLDER, TABLE, Golden
from line_cases import zone

from vsockdump.cli.dump import dump


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return goldens.write_odd(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("golden", TABLE, ids=lambda golden: golden.name)
def test_output_is_the_golden_one(
    capfdbinary: pytest.CaptureFixture[bytes], odd: Path, golden: Golden
) -> None:
    with zone("UTC"):
        _, out, _ = call(capfdbinary, *golden.arguments(odd))
    assert out == golden.expected.read_bytes()


def test_the_table_and_the_folder_have_the_same_names() -> None:
    names = [golden.name for golden in TABLE]
    assert len(set(names)) == len(names)
    assert {golden.expected for golden in TABLE} == set(FOLDER.glob("*.out"))


def test_every_option_that_changes_what_is_printed_is_shown() -> None:
    """An option of these sections is in some row, so that its output is held."""
    shown = " ".join(golden.options for golden in TABLE)
    for param in dump.params:
        if getattr(param, "section", "") in ("What is printed", "Times"):
            assert any(
                f" {opt}" in f" {shown}" or (len(opt) == 2 and opt[1] in _letters(shown))
                for opt in param.opts
            ), param.opts


def _letters(shown: str) -> str:
    """The short options among these words, run together as they are typed."""
    return "".join(word[1:] for word in shown.split() if word[0] == "-" and word[1] != "-")
