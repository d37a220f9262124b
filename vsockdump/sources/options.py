"""Read the options of a pcapng block.

Lax: options end at their end mark or where one does not fit into its block, as other readers have
it. Generators throughout: a block of nothing but empty options costs no memory.

Source: draft-ietf-opsawg-pcapng, section 3.5, and 4.3 for those of packets.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final

from vsockdump.frames import Option

END: Final = 0
COMMENT: Final = 1
SHB_HARDWARE: Final = 2
SHB_OS: Final = 3
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_DESCRIPTION: Final = 3
IF_TSRESOL: Final = 9
IF_FILTER: Final = 11
IF_OS: Final = 12
IF_TSOFFSET: Final = 14
ISB_STARTTIME: Final = 2
ISB_ENDTIME: Final = 3
ISB_IFRECV: Final = 4
ISB_IFDROP: Final = 5
_INTEGERS: Final = {2: 4, 4: 8, 5: 8, 6: 4}
"""Packet options that hold one integer (flags, drop count, packet id, queue) and its width."""
_CUSTOM: Final = {2988, 2989, 19372, 19373}
"""Options that start with their maker's number, of four bytes."""
MAX_OPTIONS: Final = 65_536
"""Options of one packet that are read: more would cost far more memory than they have bytes."""


def pairs(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option, in the byte order ``order``."""
    head = struct.Struct(order + "HH")
    at = 0
    while at + head.size <= len(data):
        code, length = head.unpack_from(data, at)
        at += head.size
        if code == END or at + length > len(data):
            return
        yield code, data[at : at + length]
        at += length + (-length & 3)


def of_packet(data: bytes, order: str) -> tuple[Option, ...] | None:
    """A packet's options with their integers little-endian; None if there are too many."""
    found = tuple(
        Option(code=code, value=_little(code, value) if order == ">" else value)
        for code, value in islice(pairs(data, order), MAX_OPTIONS + 1)
    )
    return found if len(found) <= MAX_OPTIONS else None


def _little(code: int, value: bytes) -> bytes:
    if _INTEGERS.get(code) == len(value):
        return value[::-1]
    if code in _CUSTOM and len(value) >= 4:
        return value[3::-1] + value[4:]
    return value


class Chosen:
    """The options of a block that are asked for: the first one of each code, and all comments."""

    def __init__(self, data: bytes, order: str, codes: Collection[int]) -> None:
        self._first: dict[int, bytes] = {}
        comments = []
        for code, value in pairs(data, order):
            if code == COMMENT:
                comments.append(text(value))
            elif code in codes:
                self._first.setdefault(code, value)
        self.comments = tuple(comments)

    def get(self, code: int) -> bytes | None:
        """The value of an option, None without it."""
        return self._first.get(code)

    def text(self, code: int) -> str:
        """The text of an option, empty without it."""
        return text(self._first.get(code, b""))


def text(value: bytes) -> str:
    """An option's value as text, whatever is in it."""
    return value.rstrip(b"\0").decode("utf-8", "replace")
