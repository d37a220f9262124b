"""Write every golden file anew from what the command prints now; git tells what changed.

Names on the command line choose rows of the table that begin with them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import goldens
from command import run


def main() -> None:
    """Write those asked for, or all of them and nothing else."""
    wanted = tuple(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        odd = goldens.write_odd(Path(folder))
        for golden in goldens.TABLE:
            if golden.name.startswith(wanted or ("",)):
                golden.expected.write_bytes(run(*golden.arguments(odd)).out)
    if not wanted:
        kept = {golden.expected for golden in goldens.TABLE}
        for file in set(goldens.FOLDER.glob("*.out")) - kept:
            file.unlink()


if __name__ == "__main__":
    main()
