"""The sessions in README.md and docs/: their commands, what they show, how to write it anew."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from command import run

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *(ROOT / "docs" / name for name in ("output.md", "json.md", "findings.md"))]
"""Pages that have sessions."""
_SESSION = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = "$ vsockdump "


def session(text: str) -> str:
    """A console block with the output that its commands have now."""
    shown = []
    for line in text.splitlines():
        if line.startswith(_PROMPT):
            arguments = shlex.split(line.removeprefix(_PROMPT))
            output = run(*arguments, cwd=ROOT).out.decode()
            shown.append(f"{line}\n{output}")
    return "".join(shown)


def sessions(page: str) -> Iterator[tuple[str, str]]:
    """Each console block as it is shown, and as it should be."""
    for match in _SESSION.finditer(page):
        yield match[1], session(match[1])


def python(page: str) -> list[str]:
    """The Python examples."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """The files that the page links to."""
    return re.findall(r"\]\(([^):#]+)\)", page)


def main() -> None:
    """Write the outputs anew."""
    for file in PAGES:
        page = file.read_text()
        file.write_text(_SESSION.sub(lambda m: f"```console\n{session(m[1])}```", page))


if __name__ == "__main__":
    main()
