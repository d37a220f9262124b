"""Parts of docs/credit-model.md that tests read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).parent.parent / "docs" / "credit-model.md"


def table() -> dict[str, list[str]]:
    """The table of states by state: what RESPONSE, SHUTDOWN (one, both), RST, the rest do."""
    rows = {}
    for line in MODEL.read_text(encoding="utf-8").splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for state in re.findall("`([a-z-]+)`", first) if line.startswith("| `") else ():
            rows[state] = [cell.strip("`") for cell in cells]
    return rows


TABLE: Final = table()
