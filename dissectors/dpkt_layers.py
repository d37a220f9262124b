"""dpkt packets of a vsockmon frame: ``VSockMon`` and, as its ``data``, ``VirtioVsock``.

For scripts that read with dpkt and want fields of one packet at a time; field names are those of
``wire.HEADERS``. As with dpkt's own classes, a buffer too short for the first header raises
``dpkt.NeedData``, a header inside that cannot be read stays bytes in ``data``, and building fills
nothing in. ``bytes()`` of what was unpacked is what was unpacked.
"""

# mypy: disallow-subclassing-any=False
# dpkt's classes have no types, so they are Any here.

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, Final

from vsockdump import wire

from .optional import MissingLibraryError

try:
    import dpkt
except ImportError as missing:
    raise MissingLibraryError("dpkt", missing) from missing

__all__ = ["VSockMon", "VirtioVsock"]

_FORMATS: Final = {2: "H", 4: "I", 8: "Q"}
_VIRTIO_NAMES: Final = {name: name.removeprefix("virtio_") for name in wire.VIRTIO_FIELDS}


def _field(name: str, default: int) -> tuple[str, str, int]:
    return _VIRTIO_NAMES.get(name, name), _FORMATS[wire.HEADERS[name].itemsize], default


def _spell(enum: type[IntEnum]) -> Callable[[int], str]:
    return lambda value: enum(value).name if value in enum.__members__.values() else str(value)


class VirtioVsock(dpkt.Packet):
    """``struct virtio_vsock_hdr``; ``data`` is the payload, at most ``len`` bytes.

    ``extra`` is what a longer transport header has behind the 44 bytes, ``padding`` what the frame
    holds behind the payload.
    """

    __byte_order__ = "<"
    __hdr__ = tuple(
        _field(name, {"type": wire.Type.STREAM, "op": wire.Op.RW}.get(name, 0))
        for name in wire.VIRTIO_FIELDS
    )
    __pprint_funcs__: ClassVar = {"type": _spell(wire.Type), "op": _spell(wire.Op)}
    extra = b""
    padding = b""

    def unpack(self, buf: bytes) -> None:
        """Unpack a header of 44 bytes and what follows it."""
        super().unpack(buf)
        self.split(self.data, 0)

    def split(self, rest: bytes, extra: int) -> None:
        """Tell apart what follows the 44 bytes: ``extra`` more of the header, payload, padding."""
        end = extra + self.len
        # Only what is there becomes an attribute, so that repr shows no more.
        if extra:
            self.extra = rest[:extra]
        if len(rest) > end:
            self.padding = rest[end:]
        self.data = rest[extra:end]

    def __len__(self) -> int:
        return len(bytes(self))

    def __bytes__(self) -> bytes:
        return bytes(self.pack_hdr() + self.extra + bytes(self.data) + self.padding)


class VSockMon(dpkt.Packet):
    """``struct af_vsockmon_hdr``; ``data`` is a VirtioVsock, or bytes where none can be read.

    ``transport_header`` is a transport header that is no virtio header.
    """

    __byte_order__ = "<"
    __hdr__ = (
        *(
            _field(
                name,
                {
                    "mon_op": wire.MonOp.PAYLOAD,
                    "transport": wire.Transport.VIRTIO,
                    "transport_len": wire.VIRTIO_HDR_LEN,
                }.get(name, 0),
            )
            for name in wire.MON_FIELDS
        ),
        ("reserved", "2s", bytes(2)),
    )
    __pprint_funcs__: ClassVar = {
        "mon_op": _spell(wire.MonOp),
        "transport": _spell(wire.Transport),
    }
    transport_header = b""
    data: Any

    def unpack(self, buf: bytes) -> None:
        """Unpack a frame."""
        super().unpack(buf)
        rest = self.data
        length = self.transport_len
        if self.transport != wire.Transport.VIRTIO or length < wire.VIRTIO_HDR_LEN:
            if length:
                self.transport_header = rest[:length]
            self.data = rest[length:]
        elif len(rest) >= wire.VIRTIO_HDR_LEN:
            self.data = VirtioVsock(rest[: wire.VIRTIO_HDR_LEN])
            self.data.split(rest[wire.VIRTIO_HDR_LEN :], length - wire.VIRTIO_HDR_LEN)

    def __len__(self) -> int:
        return len(bytes(self))

    def __bytes__(self) -> bytes:
        return bytes(self.pack_hdr() + self.transport_header + bytes(self.data))
