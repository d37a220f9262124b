"""The small guest that runs inside the test VM: a real guest over vhost-vsock, with CID 42.

Its root is an initramfs of busybox, socat with its libraries and the vsock modules of the same
kernel; its init is the script below, which makes the guest's side of the traffic. What it sends
is known beforehand (`peers.payload`), so both sides' bytes can be checked without a way back.

The order of things, so that neither side has to guess: the host listens on FROM_GUEST and
SLOW_HOST before the guest starts; the guest sends to both, opens its own listeners, and says so
on its console; the host connects to each; the last connection, to QUIT, ends the guest.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
from pathlib import Path

from . import kernels
from .peers import payload

CID = 42
HOST = 2
FROM_GUEST, SLOW_HOST = 5001, 5002
TO_GUEST, SLOW_GUEST, ECHO, QUIT = 6001, 6002, 6003, 6004
LISTENING = "guest: listening"
GUEST_SLEEP = 2
"""Seconds for which the guest's slow reader does not read."""
SENT_BYTES, SLOW_BYTES = 200_000, 1_000_000
"""How much the guest sends to FROM_GUEST and to SLOW_HOST."""
SENT_SEED, SLOW_SEED = 101, 102

_MODULES = ("virtio_pci", "vmw_vsock_virtio_transport")
"""What the guest loads; a kernel may have the first built in."""
_INIT = f"""#!/bin/busybox sh
# Made by vsockdump's test VM. Both files that are sent stand in the root folder.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec >/dev/ttyS0 2>&1 </dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
socat -u OPEN:/sent VSOCK-CONNECT:{HOST}:{FROM_GUEST} || echo "guest: sending failed"
socat -u OPEN:/slow VSOCK-CONNECT:{HOST}:{SLOW_HOST} || echo "guest: slow sending failed"
listen() {{ socat -d -d "$@" 2>>/log & }}
listen -u VSOCK-LISTEN:{TO_GUEST} SYSTEM:"sha256sum >/read"
listen -u VSOCK-LISTEN:{SLOW_GUEST} SYSTEM:"sleep {GUEST_SLEEP}; sha256sum >/slow-read",pipes
listen VSOCK-LISTEN:{ECHO} EXEC:/bin/cat
listen -u VSOCK-LISTEN:{QUIT} CREATE:/quit
until [ "$(grep -c 'N listening on' /log)" = 4 ]; do sleep 0.1; done
echo "{LISTENING}"
wait
echo "guest: read $(cut -c1-64 /read)"
echo "guest: slowly read $(cut -c1-64 /slow-read)"
poweroff -f
"""


def read_digests(console: str) -> tuple[str | None, str | None]:
    """SHA-256 of what the guest's two readers read, from its console."""
    found = [
        re.search(rf"guest: {how} ([0-9a-f]{{64}})", console) for how in ("read", "slowly read")
    ]
    first, second = (m[1] if m else None for m in found)
    return first, second


def image_path(kernel_release: str) -> Path:
    """Where the initramfs for a kernel stands; with another content it has another name."""
    digest = hashlib.sha256(_INIT.encode())
    for data in _sent().values():
        digest.update(data)
    name = f"{kernel_release}-{digest.hexdigest()[:12]}"
    return kernels.cache_dir() / "guest" / name / "initramfs"


def _sent() -> dict[str, bytes]:
    """The files that the guest sends."""
    return {"sent": payload(SENT_BYTES, SENT_SEED), "slow": payload(SLOW_BYTES, SLOW_SEED)}


def _libraries(program: Path) -> list[Path]:
    """The shared libraries a program needs, with its loader."""
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", kernels.run(["ldd", program]))]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    target.chmod(0o755)


def _add_modules(kernel: kernels.Kernel, root: Path) -> None:
    """Copy the guest's modules, unpacked, and the order to load them in."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text(encoding="utf-8").splitlines():
        file, _, others = line.partition(":")
        # What a module needs is named nearest first, so the farthest is loaded first.
        needs[Path(file).name.split(".")[0]] = [*reversed(others.split()), file]
    folder = root / "modules"
    folder.mkdir()
    order: dict[str, None] = {}
    for file in [file for name in _MODULES for file in needs.get(name, [])]:
        content = (kernel.modules / file).read_bytes()
        plain = Path(file).name.removesuffix(".xz")
        (folder / plain).write_bytes(lzma.decompress(content) if file.endswith(".xz") else content)
        order[plain] = None
    (folder / "order").write_text("\n".join(order) + "\n", encoding="utf-8")


def _fill(kernel: kernels.Kernel, root: Path) -> None:
    tools = {name: kernels.which(name) for name in ("busybox", "socat")}
    if None in tools.values():
        raise kernels.SetupError(
            "busybox-static and socat are needed: run python -m tests.vm.setup"
        )
    for name, found in tools.items():
        _copy(Path(str(found)), root / "bin" / name)
    for library in _libraries(Path(str(tools["socat"]))):
        _copy(library, root / library.relative_to("/"))
    for name in ("dev", "proc"):
        (root / name).mkdir()
    for name, data in _sent().items():
        (root / name).write_bytes(data)
    _add_modules(kernel, root)
    (root / "init").write_text(_INIT, encoding="utf-8")
    (root / "init").chmod(0o755)


def ensure_image(kernel: kernels.Kernel) -> Path:
    """Build the guest's initramfs for `kernel` unless it is there; its path."""
    image = image_path(kernel.release)
    with kernels.building(image.parent) as work:
        if work is not None:
            root = work / "root"
            root.mkdir()
            _fill(kernel, root)
            names = sorted(x.relative_to(root) for x in root.rglob("*"))
            (work / "names").write_text("".join(f"{os.fspath(x)}\n" for x in names))
            pack = 'cd "$1" && busybox cpio -o -H newc <"$2" >"$3"'
            kernels.run(["sh", "-c", pack, "sh", root, work / "names", work / image.name])
            kernels.run(["rm", "-r", root, work / "names"])
    return image
