"""The kernel's own vsock tests (tools/testing/vsock), built from Debian's kernel source.

Only that folder and the headers it includes are unpacked. The source follows the 6.12 kernel, so
its tests are run on that kernel.
"""

from __future__ import annotations

from pathlib import Path

from . import kernels

SERIES = "6.12"
PROGRAMS = ("vsock_test", "vsock_perf", "vsock_diag_test")
_PACKAGE = f"linux-source-{SERIES}"
_FOLDERS = ("tools/testing/vsock", "tools/include")


def folder(release: str) -> Path:
    """Where the programs for a kernel release stand once they are built."""
    return kernels.cache_dir() / "suite" / release


def program(release: str, name: str) -> Path:
    """A built program; SetupError when it is not there."""
    found = folder(release) / name
    if not found.is_file():
        raise kernels.SetupError(f"{found} is missing: run python -m tests.vm.setup")
    return found


def _unpack(package: Path, work: Path) -> Path:
    """Unpack the two folders of the kernel source that are needed."""
    pipe = (
        'set -o pipefail; dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/src/$2.tar.xz" '
        '| tar -xJ -C "$3" "${@:4}"'
    )
    folders = [f"{_PACKAGE}/{name}" for name in _FOLDERS]
    kernels.run(["bash", "-c", pipe, "bash", package, _PACKAGE, work, *folders])
    return work / _PACKAGE


def ensure_suite(kernel: kernels.Kernel) -> Path:
    """Build the programs for `kernel` unless they are built; the folder they stand in."""
    target = folder(kernel.release)
    with kernels.building(target) as work:
        if work is not None:
            package = kernels.download_package(_PACKAGE, work)
            tests = _unpack(package, work) / _FOLDERS[0]
            kernels.run(["make", *PROGRAMS], cwd=tests)
            for name in PROGRAMS:
                (tests / name).rename(work / name)
            package.unlink()
            kernels.run(["rm", "-r", work / _PACKAGE])
    return target
