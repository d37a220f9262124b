"""Small captures from real kernels; README.md beside this file tells how each was made."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The names of the bundled captures, sorted."""
    return sorted(x.name for x in _FOLDER.iterdir() if x.suffix == ".pcapng")


def path(name: str) -> Path:
    """Where the bundled capture `name` stands; FileNotFoundError when there is none."""
    found = _FOLDER / name
    if name not in names():
        raise FileNotFoundError(f"no bundled capture {name!r}; there are {', '.join(names())}")
    return found
