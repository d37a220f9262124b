"""The vocabulary of filters: which names stand for which numbers, and where.

Names of numbers come from ``wire``, in lower case and with ``-`` for ``_`` allowed, those of states
and findings from ``tracking``. A name belongs to a field: ``rw`` is an op and nothing else. Nothing
here knows the grammar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final

from vsockdump import wire
from vsockdump.filters import tree
from vsockdump.tracking.findings import CODES
from vsockdump.tracking.states import State

ANY_NAME: Final = "any"
GUEST_NAME: Final = "guest"
"""Not one CID but all that a guest can have: FIRST_GUEST_CID and up, save CID_ANY."""
_APART: Final = 1
"""A misspelling is hardly longer or shorter than the word."""


def _enum_names(enum: type[IntEnum]) -> dict[str, int]:
    return {member.name.lower(): int(member) for member in enum}


CIDS: Final[Mapping[str, int]] = {
    **{name: cid for cid, name in wire.CID_NAMES.items()},
    ANY_NAME: wire.CID_ANY,
}
SIDES: Final = (*wire.CID_NAMES.values(), GUEST_NAME)
"""Names that are conditions of their own: ``host`` is ``cid host``."""

FLAGS: Final[Mapping[str, int]] = {
    **{str(flag.name).lower(): int(flag) for flag in wire.RwFlag},
    **{str(flag.name).lower(): int(flag) for flag in wire.ShutdownFlag},
}
RW_FLAGS: Final = frozenset(str(flag.name).lower() for flag in wire.RwFlag)

STATES: Final[Mapping[str, int]] = {state.label: int(state) for state in State}
"""What ``conn.state`` can be, and the code of it in a tracked column."""

NAMES: Final[Mapping[str, Mapping[str, int]]] = {
    "op": _enum_names(wire.Op),
    "mon_op": _enum_names(wire.MonOp),
    "type": _enum_names(wire.Type),
    "transport": _enum_names(wire.Transport),
    "flags": FLAGS,
    "src_cid": CIDS,
    "dst_cid": CIDS,
    "virtio_src_cid": CIDS,
    "virtio_dst_cid": CIDS,
}
"""The names of each header field that has any."""

HEADER_FIELDS: Final = (*wire.MON_FIELDS, *wire.VIRTIO_FIELDS)
FINDINGS: Final = tuple(CODES)
"""What ``finding`` can ask for."""

IN_LINES: Final[Mapping[str, str]] = {
    "win": "the win of a line is buf_alloc; window is the free space that credit leaves the sender",
    "fwd": "the fwd of a line is fwd_cnt",
    "length": "the length of a line is len",
    "seq": "packets carry no sequence number; tx_cnt, where its second half ends, is tracked",
}
"""Words of the printed lines that are none of filters, and what to write."""

CONNECTION_ALIASES: Final = ("conn.id",)
NUMBERS: Final = (*HEADER_FIELDS, "caplen", *tree.TRACKED_NUMBERS, *CONNECTION_ALIASES)
"""Every word that stands for a number of the packet."""


def plain(word: str) -> str:
    """The spelling under which names are looked up."""
    return word.lower().replace("-", "_")


def lookup(names: Mapping[str, int], word: str) -> int | None:
    """The number ``word`` stands for among ``names``."""
    return names.get(plain(word))


def among(known: Iterable[str], word: str) -> str | None:
    """The one of ``known`` that ``word`` spells."""
    return next((name for name in known if plain(name) == plain(word)), None)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` may be a misspelling or the beginning of."""
    from difflib import get_close_matches  # only a mistake pays for loading it

    spelled = {name.lower(): name for name in known}
    word = word.lower()
    begun = [name for name in spelled if name.startswith(word)]
    if len(begun) == 1:
        return spelled[begun[0]]
    alike = [name for name in spelled if abs(len(name) - len(word)) <= _APART]
    found = get_close_matches(word, alike, n=1, cutoff=0.6)
    return spelled[found[0]] if found else None
