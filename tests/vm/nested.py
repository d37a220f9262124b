"""The host's side of the traffic with the real guest of guest.py; runs inside the test VM."""

from __future__ import annotations

import hashlib
import subprocess
import time

from . import guard, guest, kernels
from .agent import Context, command
from .peers import End, Listener, connect, payload
from .truth import Direction, Truth

BOOT_SECONDS = 200
END_SECONDS = 60
HOST_SLEEP = 1.5
"""Seconds for which the host's slow reader does not read."""
TO_GUEST_BYTES, SLOW_GUEST_BYTES = 300_000, 1_000_000
ECHO_SIZES = (6, 1000, 20_000)


class Guest:
    """The running guest; entered, it is being started, left, it has ended by itself."""

    def __init__(self, context: Context) -> None:
        guard.require_test_vm()
        self.console = context.results / "guest-console.log"
        self.said = context.results / "guest-qemu.err"
        kernel = kernels.kept_kernel_of(context.release)
        words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-m", "512"]
        words += ["-kernel", str(kernel.image), "-initrd", str(guest.image_path(kernel.release))]
        words += ["-append", "console=ttyS0 panic=-1 quiet", "-display", "none", "-no-reboot"]
        words += ["-device", f"vhost-vsock-pci,guest-cid={guest.CID}", "-net", "none"]
        words += ["-serial", f"file:{self.console}", "-monitor", "none"]
        self.words = words
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Guest:
        self.console.touch()
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.process.wait(END_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        """What the guest's console said so far."""
        return self.console.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, words: str) -> None:
        """Wait until the guest's console says `words`."""
        until = time.monotonic() + BOOT_SECONDS
        while words not in self.text():
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the guest ended before it said {words!r}: {self.text()[-500:]}"
                )
            if time.monotonic() > until:
                raise TimeoutError(f"the guest did not say {words!r}: {self.text()[-500:]}")
            time.sleep(0.1)


def _receive(end: End, sent: bytes) -> None:
    """Read all that the guest sends and write down what we know it to be."""
    end.read_to_end()
    end.connection.client_to_server.accept(sent)
    end.close()


def _send(truth: Truth, port: int, data: bytes) -> Direction:
    """Send `data` to the guest's `port` and say that this was all."""
    end = connect(truth, port, cid=guest.CID, own_cid=guest.HOST)
    end.send(data)
    end.close()
    return end.out


def _echo(truth: Truth) -> None:
    client = connect(truth, guest.ECHO, cid=guest.CID, own_cid=guest.HOST)
    for number, size in enumerate(ECHO_SIZES):
        data = payload(size, number)
        client.send(data)
        client.read_exactly(size)
        # The guest's cat sends back what it got; its own sizes are not known.
        client.inward.accept(data)
    client.close()


def converse(context: Context) -> Truth:
    """Start the guest and make traffic both ways, with a slow reader on either side."""
    command("modprobe", "-a", "vhost_vsock", "kvm_amd")
    truth = Truth()
    with (
        Listener(port=guest.FROM_GUEST) as from_guest,
        Listener(port=guest.SLOW_HOST) as slow_host,
        Guest(context) as machine,
    ):
        from_guest.sock.settimeout(BOOT_SECONDS)
        end = from_guest.accept_stranger(truth, guest.HOST)
        _receive(end, payload(guest.SENT_BYTES, guest.SENT_SEED))
        end = slow_host.accept_stranger(truth, guest.HOST)
        end.sleep(HOST_SLEEP)
        _receive(end, payload(guest.SLOW_BYTES, guest.SLOW_SEED))
        machine.wait_for(guest.LISTENING)
        fast = _send(truth, guest.TO_GUEST, payload(TO_GUEST_BYTES, 1))
        slow = _send(truth, guest.SLOW_GUEST, payload(SLOW_GUEST_BYTES, 2))
        _echo(truth)
        _send(truth, guest.QUIT, b"")
    digests = guest.read_digests(machine.text())
    for direction, data, digest in (
        (fast, payload(TO_GUEST_BYTES, 1), digests[0]),
        (slow, payload(SLOW_GUEST_BYTES, 2), digests[1]),
    ):
        if digest != hashlib.sha256(data).hexdigest():
            raise RuntimeError(f"the guest read something else than was sent: {digest}")
        direction.deliver(data)
    return truth
