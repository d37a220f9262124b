"""Which kernels the table of tap bugs means, and how a kernel's version is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsockdump.kernels import TAP_BUGS, Version, parse

BUGS = {bug.name: bug for bug in TAP_BUGS}
SPLIT = ("whole-buffer", "repeated-start", "uninitialised")
"""The mistakes mended together in May 2026."""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.12.90", (6, 12, 90)),
        ("Linux 6.12.117+deb12-amd64", (6, 12, 117)),
        ("5.14.0-427.13.1.el9_4.x86_64", (5, 14, 0)),
        ("7.1-rc3", (7, 1, 0)),
        (
            "6.1.0-37-amd64 Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) "
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)",
            (6, 1, 140),
        ),
        ("Ubuntu 6.8.0-45.45-generic 6.8.12", (6, 8, 12)),
        ("", None),
        ("unknown", None),
    ],
)
def test_a_version_is_told_from_what_kernels_say(text: str, version: Version | None) -> None:
    assert parse(text) == version


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ((4, 11, 0), set()),
        ((5, 6, 19), {"repeated", "early"}),
        ((5, 7, 0), {"early"}),
        ((5, 10, 240), {"early"}),
        ((6, 1, 192), {"early", "whole-buffer"}),
        ((6, 5, 0), {"early", "whole-buffer"}),
        ((6, 6, 139), {"early", "whole-buffer"}),
        ((6, 6, 140), {"early"}),
        ((6, 8, 12), {"early", *SPLIT}),
        ((6, 9, 0), {*SPLIT}),
        ((6, 12, 89), {*SPLIT}),
        ((6, 12, 90), set()),
        ((7, 0, 8), {*SPLIT}),
        ((7, 0, 9), set()),
        ((7, 1, 0), set()),
    ],
)
def test_the_table_knows_which_releases_are_affected(version: Version, names: set[str]) -> None:
    known = {name: bug.affects(version) for name, bug in BUGS.items()}
    assert {name for name, affected in known.items() if affected} == names
    assert None not in known.values()


def test_where_the_mending_release_is_not_known_neither_is_the_answer() -> None:
    assert {name for name, bug in BUGS.items() if bug.affects((6, 18, 44)) is None} == set(SPLIT)
    assert BUGS["whole-buffer"].affects((6, 1, 191)) is None


def test_the_documented_table_is_this_one() -> None:
    page = (Path(__file__).parents[1] / "docs/live-capture.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for bug in TAP_BUGS:
        numbers = ["?" if n is None else str(n) for n in bug.stable.values()]
        mended = [f"{a}.{b}.{n}" for (a, b), n in zip(bug.stable, numbers, strict=True)]
        cells = [
            f"`{bug.name}`",
            ", ".join(
                ["{}.{}".format(*bug.since), *(f"{a}.{b}.{n}" for (a, b), n in bug.seen.items())]
            ),
            ", ".join([*mended, "{}.{}".format(*bug.fixed)]),
            bug.effect,
            bug.advice,
        ]
        assert f"| {' | '.join(cells)} |" in rows
