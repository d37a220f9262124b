"""Finds, fetches and keeps what the test VM needs: packages, kernels, a place to keep them.

A kernel is taken from Debian's package, unpacked and never installed: installing would spend a
minute on an initrd that nothing here reads, and would change the machine. What is finished
stands in the cache under its final name; everything is made under a temporary name beside it
and renamed when whole, so an interrupted download or a second run at the same time leaves no
half kernel behind. File names change with each Debian update, so they are looked up, newest
first, and a kernel that is already here serves when the archive cannot be reached.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

SERIES = {
    "6.1": re.compile(r"linux-image-(6\.1\.0-\d+-amd64)"),
    "6.12": re.compile(r"linux-image-(6\.12\.\d+\+deb12-amd64)"),
}
"""Kernel series the live tests run on, and the package names that carry them."""

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "socat": "socat",
    "tcpdump": "tcpdump",
    "ip": "iproute2",
    "depmod": "kmod",
    "setcap": "libcap2-bin",
    "gcc": "gcc",
    "make": "make",
    "xz": "xz-utils",
    "file": "file",
}
_HEADERS = {
    "/usr/include/stdio.h": "libc6-dev",
}


class SetupError(RuntimeError):
    """The test VM cannot be prepared; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An unpacked kernel: its series, its release (`uname -r`) and where it stands."""

    series: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release


def cache_dir() -> Path:
    """Where kernels and built tools are kept between runs (VSOCKDUMP_VM_CACHE overrides)."""
    chosen = os.environ.get("VSOCKDUMP_VM_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "vsockdump" / "vm").absolute()


def tool_path() -> str:
    """A PATH that also finds the administrator's tools and this interpreter's own."""
    given = os.environ.get("PATH", os.defpath).split(os.pathsep)
    extra = [str(Path(sys.executable).parent), *_SBIN]
    return os.pathsep.join([*given, *(x for x in extra if x not in given)])


def which(command: str) -> str | None:
    """The path of a command, looking where administrators' tools stand as well."""
    return shutil.which(command, path=tool_path())


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Yield a folder to build `target` in, or None when it is already there.

    One builder at a time; the folder becomes `target` when the block ends without an error and
    goes away otherwise.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            work = Path(folder) / "work"
            work.mkdir()
            yield work
            work.rename(target)


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a command and return what it printed; a failure is a SetupError that quotes it."""
    words = [str(word) for word in command]
    env = dict(os.environ, PATH=tool_path(), LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
    try:
        done = subprocess.run(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError as error:
        raise SetupError(f"cannot run {words[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise SetupError(f"`{' '.join(words)}` failed ({done.returncode}): " + " | ".join(said))
    return done.stdout


def missing_packages() -> list[str]:
    """Debian packages that the test VM needs and this machine lacks."""
    lacking = {package for command, package in _PACKAGES.items() if which(command) is None}
    lacking |= {package for header, package in _HEADERS.items() if not Path(header).exists()}
    return sorted(lacking)


def ensure_packages() -> None:
    """Install what is missing when we may; otherwise say what to install."""
    if which("vng") is None:
        raise SetupError("virtme-ng is missing: pip install -e '.[dev]'")
    lacking = missing_packages()
    if not lacking:
        return
    advice = f"apt-get install --no-install-recommends {' '.join(lacking)}"
    if which("apt-get") is None:
        raise SetupError(f"this machine has no apt-get; needed are Debian's {', '.join(lacking)}")
    if os.geteuid() != 0:
        raise SetupError(f"packages are missing and only root may install them: {advice}")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *lacking]
    try:
        run(command)
    except SetupError:
        run(["apt-get", "update"])
        run(command)
    still = missing_packages()
    if still:
        raise SetupError(f"still missing after {advice}: {', '.join(still)}")


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def _newest_offered(series: str) -> str | None:
    names = run(["apt-cache", "pkgnames", "linux-image-6"]).splitlines()
    offered = [m[1] for name in names if (m := SERIES[series].fullmatch(name))]
    return max(offered, key=_version_key, default=None)


def _newest_kept(series: str) -> str | None:
    kept = (cache_dir() / "kernels").glob("*")
    releases = [x.name for x in kept if SERIES[series].fullmatch(f"linux-image-{x.name}")]
    return max(releases, key=_version_key, default=None)


def download_package(package: str, folder: Path) -> Path:
    """Fetch one Debian package into `folder` without installing it."""
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
    try:
        run(command, cwd=folder)
    except SetupError:
        # The lists may be older than the archive; only root may renew them.
        if os.geteuid() != 0:
            raise
        run(["apt-get", "update"])
        run(command, cwd=folder)
    found = list(folder.glob("*.deb"))
    if len(found) != 1:
        raise SetupError(f"downloading {package} left {len(found)} packages instead of one")
    return found[0]


def _unpack(series: str, release: str) -> Kernel:
    kernel = Kernel(series=series, release=release, root=cache_dir() / "kernels" / release)
    with building(kernel.root) as work:
        if work is not None:
            package = download_package(f"linux-image-{release}", work)
            run(["dpkg-deb", "-x", package, work])
            package.unlink()
            run(["depmod", "-b", work, release])
    if not kernel.image.is_file():
        raise SetupError(f"no kernel image {kernel.image}; remove {kernel.root} and try again")
    return kernel


def kept_kernel(series: str) -> Kernel:
    """The newest kernel of `series` that stands in the cache, without asking the archive."""
    release = _newest_kept(series)
    if release is None:
        raise SetupError(f"no {series} kernel in {cache_dir()}: run python -m tests.vm.setup")
    return _unpack(series, release)


def kept_kernel_of(release: str) -> Kernel:
    """The cached kernel of exactly this release."""
    for series, pattern in SERIES.items():
        root = cache_dir() / "kernels" / release
        if pattern.fullmatch(f"linux-image-{release}") and root.is_dir():
            return Kernel(series=series, release=release, root=root)
    raise SetupError(f"no kernel {release} in {cache_dir()}: run python -m tests.vm.setup")


def ensure_kernel(series: str) -> Kernel:
    """The newest kernel of `series`: from the archive, or the cache when that fails."""
    kept = _newest_kept(series)
    try:
        offered = _newest_offered(series)
        if offered is None and os.geteuid() == 0:
            run(["apt-get", "update"])
            offered = _newest_offered(series)
        if offered is None:
            raise SetupError(
                f"apt offers no {series} kernel; on Debian 12 with its security archive "
                "`apt-get update` brings it"
            )
        return _unpack(series, offered)
    except SetupError as error:
        if kept is None:
            raise
        print(f"using the cached {kept}: {error}", file=sys.stderr)
        return _unpack(series, kept)
