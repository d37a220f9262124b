"""Makes the bundled captures anew: `python -m tests.vm.make_captures [NAME ...]`.

Boots each kernel once, has the scenarios of bundle.py captured there, copies the files into
captures/ and writes the table of captures/README.md from what was made.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from . import kernels, vm
from .bundle import BUNDLED, Bundled

CAPTURES = vm.REPOSITORY / "captures"
README = CAPTURES / "README.md"
LARGEST = 150 * 1024
LARGEST_TOTAL = 1536 * 1024
_HEADING = "| File | Kernel | Command | Packets | Shows | SHA-256 |\n|---|---|---|---|---|---|\n"


def _check(row: Bundled, folder: Path, file: Path) -> dict[str, int]:
    """The counts of a capture that lost nothing and is small enough to bundle."""
    counts: dict[str, int] = vm.read_json(folder / "counts.json")
    if counts["dropped by kernel"]:
        raise vm.VMError(f"{row.name}: {counts['dropped by kernel']} packets were dropped")
    if file.stat().st_size > LARGEST:
        raise vm.VMError(f"{row.name}: {file.stat().st_size} bytes, more than {LARGEST}")
    return counts


def make(series: str, rows: list[Bundled], folder: Path) -> dict[str, str]:
    """Boot a kernel and make its captures; the README's lines by file name."""
    kernel = kernels.ensure_kernel(series)
    run = vm.boot(kernel, [row.scenario for row in rows], folder)
    lines = {}
    for row in rows:
        results = run.scenario(row.scenario)
        made = vm.read_json(results / "made.json")
        target = CAPTURES / row.file(series)
        counts = _check(row, results, results / made["file"])
        shutil.copyfile(results / made["file"], target)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        cells = [f"`{target.name}`", kernel.release, f"`{made['command']}`"]
        cells += [str(counts["captured"]), row.shows, f"`{digest}`"]
        lines[target.name] = f"| {' | '.join(cells)} |\n"
    return lines


def kept_lines(text: str) -> dict[str, str]:
    """The rows of the README's table by file name."""
    rows = [line for line in text.splitlines(keepends=True) if line.startswith("| `")]
    return {line.split("`")[1]: line for line in rows}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Make the bundled captures anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    wanted = parser.parse_args().names
    unknown = set(wanted) - {row.name for row in BUNDLED}
    if unknown:
        parser.error(f"no such capture: {', '.join(sorted(unknown))}")
    kernels.ensure_packages()
    text = README.read_text(encoding="utf-8")
    lines = kept_lines(text)
    with tempfile.TemporaryDirectory(prefix="vsockdump-captures-") as work:
        for series in kernels.SERIES:
            rows = [r for r in BUNDLED if series in r.series and (not wanted or r.name in wanted)]
            if rows:
                lines |= make(series, rows, Path(work) / series)
    offered = [row.file(series) for row in BUNDLED for series in row.series]
    table = "".join(lines[name] for name in offered if name in lines)
    before, _, after = text.partition(_HEADING)
    rest = "".join(x for x in after.splitlines(keepends=True) if not x.startswith("| `"))
    README.write_text(before + _HEADING + table + rest, encoding="utf-8")
    total = sum(x.stat().st_size for x in CAPTURES.glob("*.pcapng"))
    print(f"{len(lines)} captures, {total} bytes")
    return 0 if total <= LARGEST_TOTAL else 1


if __name__ == "__main__":
    sys.exit(main())
