"""What a command reads: a file, a pipe or live devices, and the filter over it.

A filter on a live device goes into the kernel, where it saves copying; what only tracking can
tell is filtered afterwards. On a file all filtering comes after tracking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockdump.errors import DeviceError, VsockdumpError
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

    def __post_init__(self) -> None:
        if self.file is not None and self.interfaces:
            raise VsockdumpError("-r and -i exclude each other: a file or a device")
        if self.filter_file is not None and self.expression:
            raise VsockdumpError("-F and a filter expression exclude each other")

    @property
    def live(self) -> bool:
        """Whether packets come from a device."""
        return self.file is None

    @property
    def kept(self) -> int:
        """The snapshot length, with "all" as a number."""
        return self.snaplen or WHOLE

    def selects(self) -> Filter | None:
        """The filter, compiled; None if there is none."""
        text = " ".join(self.expression)
        if self.filter_file is not None:
            try:
                text = Path(self.filter_file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise VsockdumpError(f"{self.filter_file}: {error}") from error
        if not text.strip():
            return None
        from vsockdump import filters

        return filters.compile(text)


@contextmanager
def opened(inputs: Inputs) -> Iterator[tuple[Source, Filter | None]]:
    """The source, and the filter that is still to be applied to its packets."""
    selects = inputs.selects()
    if inputs.file is not None:
        from vsockdump.sources.savefile import Savefile

        source: Source = Savefile(inputs.file)
        try:
            yield source, selects
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
        program, text = None, ""
        if selects is not None and not selects.needs_tracking:
            program, text, selects = selects.bpf(inputs.kept), selects.text, None
        capture = LiveCapture(
            names,
            snaplen=inputs.snaplen,
            ring_bytes=inputs.buffer * _KIB if inputs.buffer else RING_BYTES,
            immediate=inputs.immediate,
            program=program,
            filter_text=text,
        )
        stack.callback(capture.close)
        yield capture, selects


def _only_device() -> str:
    from vsockdump.device import list_devices

    up = [device.name for device in list_devices() if device.up]
    if not up:
        raise DeviceError(
            "no vsockmon device is up: make one with `vsockdump device create`, see "
            "`vsockdump device doctor`, or read a file with -r"
        )
    return up[0]
