"""Prepares everything the test VM needs: `python -m tests.vm.setup`.

Installs missing packages (as root), fetches and unpacks the kernels, builds the nested guest and
the kernel's own vsock tests. What is there already is left alone, so a second run takes seconds.
"""

from __future__ import annotations

import sys

from . import guest, kernels, suite


def prepare() -> None:
    """Do all of it; SetupError says what is in the way."""
    kernels.ensure_packages()
    for series in kernels.SERIES:
        kernel = kernels.ensure_kernel(series)
        guest.ensure_image(kernel)
        if series == suite.SERIES:
            suite.ensure_suite(kernel)
        print(f"ready: kernel {kernel.release}")


def main() -> int:
    """Entry point."""
    try:
        prepare()
    except kernels.SetupError as error:
        print(f"the test VM cannot be prepared: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
