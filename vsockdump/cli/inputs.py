"""What a command reads: a file, a pipe or live devices, and the filter over it.

A filter on a live device goes into the kernel, where it saves copying. One that asks for what only
tracking knows is split: the kernel does the part that passes whole connections, the rest comes
after tracking. On a file all filtering comes after tracking.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from click import UsageError

from vsockdump.cli.command import LINK_TYPE
from vsockdump.errors import DeviceError, FilterError, VsockdumpError
from vsockdump.sinks.names import escape
from vsockdump.sources import Source

if TYPE_CHECKING:
    from vsockdump.filters import Filter

WHOLE: Final = 262_144
"""Snapshot length that stands for "all", as tcpdump has it: more than any vsock frame."""
_KIB: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The options that say where packets come from."""

    file: str | None = None
    interfaces: Sequence[str] = ()
    expression: Sequence[str] = ()
    filter_file: str | None = None
    snaplen: int = 0
    buffer: int | None = None
    immediate: bool = False
    create: bool = False
    in_kernel: bool = True
    """Whether a filter on a device may run in the kernel, where it hides packets from tracking."""
    large: bool = False
    """Whether large batches of a file's packets are wanted: they cost less, and more memory."""

    def __post_init__(self) -> None:
        if self.file is not None and self.interfaces:
            raise UsageError("-r and -i exclude each other: a file or a device")
        if self.filter_file is not None and self.expression:
            raise UsageError("-F and a filter on the command line exclude each other")
        if self.create and self.file is not None:
            raise UsageError("--create is for a device, not for a file")

    @property
    def live(self) -> bool:
        """Whether packets come from a device."""
        return self.file is None

    @property
    def kept(self) -> int:
        """The snapshot length, with "all" as a number."""
        return self.snaplen or WHOLE

    def announce(self, source: Source) -> None:
        """Say on standard error, in tcpdump's words, that a device is listened on from now."""
        if self.live:
            print(
                f"listening on {escape(source.name)}, link-type {LINK_TYPE}, "
                f"snapshot length {self.kept} bytes",
                file=sys.stderr,
                flush=True,
            )

    def selects(self) -> Filter | None:
        """The filter, compiled; None if there is none.

        Raises FilterError, and UsageError where a second file stands in the filter's place.
        """
        text = " ".join(self.expression)
        if self.filter_file is not None:
            from pathlib import Path

            try:
                text = Path(self.filter_file).read_text("utf-8")
            except OSError as error:
                raise VsockdumpError(f"{self.filter_file}: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise VsockdumpError(f"{self.filter_file}: not text: {error.reason}") from error
        if not text.strip():
            return None
        from vsockdump import filters

        try:
            return filters.compile(text)
        except FilterError as error:
            first = self.expression[0] if self.expression else ""
            # Unlike Path.is_file this raises nothing where a filter is too long for a name.
            if not os.path.isfile(first):  # noqa: PTH113
                raise
            if self.file is not None:
                raise UsageError(f"two files, {self.file} and {first}: name one") from None
            hint = f"{first} is a file: to read it, write -r {first}"
            raise FilterError(f"{error}\n{hint}", column=error.column) from None


class Opened(NamedTuple):
    """A source, the filter still to be applied to its packets, and whether it shows whole
    connections, so that what is tracked is right."""

    source: Source
    selects: Filter | None
    exact: bool


@contextmanager
def opened(inputs: Inputs) -> Iterator[Opened]:
    """Open what the options name; closed again at the end of the block."""
    selects = inputs.selects()
    if inputs.file is not None:
        from vsockdump.sources.savefile import CHUNK, LARGE_CHUNK, Savefile

        source: Source = Savefile(inputs.file, chunk=LARGE_CHUNK if inputs.large else CHUNK)
        try:
            yield Opened(source, selects, True)
        finally:
            source.close()
        return
    from vsockdump.sources.live import RING_BYTES, LiveCapture

    names = inputs.interfaces or [_only_device()]
    with ExitStack() as stack:
        if inputs.create:
            from vsockdump.device import temporary

            for name in names:
                stack.enter_context(temporary(name))
        program, text, exact = None, "", True
        if selects is not None and inputs.in_kernel:
            kernel: Filter | None = selects
            if selects.needs_tracking:
                kernel, selects = selects.kernel_part()
            else:
                exact, selects = selects.keeps_connections, None
            if kernel is not None:
                program, text = kernel.bpf(inputs.kept), kernel.text
        capture = LiveCapture(
            names,
            snaplen=inputs.snaplen,
            ring_bytes=inputs.buffer * _KIB if inputs.buffer else RING_BYTES,
            immediate=inputs.immediate,
            program=program,
            filter_text=text,
        )
        stack.callback(capture.close)
        yield Opened(capture, selects, exact)


def _only_device() -> str:
    from vsockdump.device import list_devices

    up = [device.name for device in list_devices() if device.up]
    if not up:
        raise DeviceError(
            "no vsockmon device is up: make one with `vsockdump device create`, see "
            "`vsockdump device doctor`, or read a file with -r"
        )
    return up[0]
