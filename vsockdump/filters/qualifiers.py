"""What qualifiers mean: ``src port 1024`` as comparisons of header fields.

A qualifier is what a bare number or name behind ``and`` or ``or`` repeats, so it is a value of its
own, applied to one identifier after another. Everything here turns words into tree nodes; where a
word means nothing it raises ``Misused``, and the builder says so under the expression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vsockdump import wire
from vsockdump.filters import names, tree
from vsockdump.filters.complaints import listed, perhaps, quoted
from vsockdump.filters.tree import Compare, Header, Node, Number, Value

SIDES: Final = ("src", "dst")
_SUFFIXES: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_WHAT: Final = {
    "flags": "flag",
    **{name: "CID" for name in names.HEADER_FIELDS if name.endswith("cid")},
    **{f"{side}_port": "port" for side in SIDES},
}
"""What a header field's values are to a user, where that is not its name."""
_WIDEST: Final = (1 << tree.WIDE_BITS) - 1


class Misused(Exception):
    """A word without meaning in its place; the text is the reason."""


def number(word: str) -> int:
    """A number as C and pcap-filter write it: 10, 0x10, 010, 0b10; also 4k, 1M, 1G (of 1024)."""
    text = word.lower()
    scale = 1
    base = 10
    if text[-1] in _SUFFIXES and not text.startswith("0x"):
        scale = _SUFFIXES[text[-1]]
        text = text[:-1]
    elif len(text) > 1 and text[0] == "0":
        base = {"x": 16, "b": 2}.get(text[1], 8)
        text = text[1:] if base == 8 else text[2:]
    digits = "0123456789abcdef"[:base]
    if not text or any(char not in digits for char in text):
        kind = {2: "a binary", 8: "an octal", 16: "a hexadecimal"}.get(base, "a")
        raise Misused(f"{quoted(word)} is not {kind} number")
    # Python refuses to convert thousands of digits, and nobody needs them.
    value = int(text, base) * scale if len(text) <= tree.WIDE_BITS else _WIDEST + 1
    if value > _WIDEST:
        raise Misused(f"{quoted(word)} is more than 64 bits can hold")
    return value


def relate(relation: str, left: Value, right: int) -> Compare:
    """``left relation right``."""
    return Compare(relation=relation, left=left, right=Number(value=right))


def between(value: Value, low: int, high: int) -> Node:
    """``value`` is in the range, its ends included and in either order."""
    low, high = sorted((low, high))
    if low == high:
        return relate("==", value, low)
    return tree.all_of([relate(">=", value, low), relate("<=", value, high)])


def named(field: str, word: str, *, also: Iterable[str] = ()) -> int:
    """The number that ``word``, a name or a number, is for a header field.

    ``also`` are other words that may have been meant.
    """
    what = _WHAT.get(field, field)
    if word[0].isdigit():
        value = number(word)
        most = (1 << tree.field_bits(field)) - 1
        if value > most:
            raise Misused(f"{quoted(word)} is too much for {what}, which is {most} at most")
        return value
    known = names.NAMES.get(field, {})
    found = names.lookup(known, word)
    if found is not None:
        return found
    if not known:
        raise Misused(f"{what} takes a number, not {quoted(word)}")
    raise _unknown(what, word, known, also)


def _unknown(what: str, word: str, known: Iterable[str], also: Iterable[str] = ()) -> Misused:
    known = tuple(known)
    hint = perhaps(word, known) or perhaps(word, also) or f"; it can be {listed(known)}"
    return Misused(f"no {what} is called {quoted(word)}{hint}")


def flag(word: str) -> Node:
    """The packet has this flag: bits mean something on SHUTDOWN, and on RW of SEQPACKET."""
    if word[0].isdigit():
        raise Misused(f"flags takes a name; to test bits, compare: flags & {word} != 0")
    bit = names.lookup(names.FLAGS, word)
    if bit is None:
        raise _unknown("flag", word, names.FLAGS)
    has = relate(
        "!=", tree.Binary(operator="&", left=Header(name="flags"), right=Number(value=bit)), 0
    )
    op = Header(name="op")
    if names.plain(word) in names.RW_FLAGS:
        seqpacket = relate("==", Header(name="type"), wire.Type.SEQPACKET)
        return tree.all_of([relate("==", op, wire.Op.RW), seqpacket, has])
    return tree.all_of([relate("==", op, wire.Op.SHUTDOWN), has])


def state(word: str) -> str:
    """The connection state ``word`` names."""
    found = names.among(names.STATES, word)
    if found is None:
        raise _unknown("state", word, names.STATES)
    return found


def finding(word: str) -> str:
    """The code of a finding that ``word`` is."""
    found = names.among(names.FINDINGS, word)
    if found is None:
        raise Misused(f"no finding is called {quoted(word)}{perhaps(word, names.FINDINGS)}")
    return found


def endpoint(side: str, word: str) -> Node:
    """``CID.PORT`` at one side."""
    cid, _, port = word.rpartition(".")
    fields = {f"{side}_cid": cid, f"{side}_port": port}
    return tree.all_of(
        [relate("==", Header(name=name), named(name, part)) for name, part in fields.items()]
    )


def pair(one: str, other: str) -> Node:
    """All packets between two endpoints, both directions."""
    return tree.any_of(
        [
            tree.all_of([endpoint("src", one), endpoint("dst", other)]),
            tree.all_of([endpoint("src", other), endpoint("dst", one)]),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualifier:
    """What an identifier is tested for.

    ``kind`` is ``cid``, ``port``, ``conn`` (an endpoint), one of the named header fields,
    ``finding`` or ``conn.state``. The first three look at ``sides``, and want all of them to match
    if ``every``. ``negative``: what it was last applied to stood behind ``not``.
    """

    kind: str
    sides: Sequence[str] = SIDES
    every: bool = False
    negative: bool = False

    @property
    def single(self) -> str:
        """What a packet has one of, so that no two can be asked for; "" if it may have more."""
        if self.kind in ("cid", "port"):
            side = {"src": "source", "dst": "destination"}[self.sides[0]]
            return f"{side} {self.kind.replace('cid', 'CID')}" if len(self.sides) == 1 else ""
        return self.kind if self.kind not in ("conn", "flags", "finding") else ""

    def knows(self, word: str) -> bool:
        """Whether a bare name can be a repetition of this qualifier."""
        if self.kind == "cid":
            return word.lower() in names.SIDES or names.lookup(names.CIDS, word) is not None
        if self.kind == "conn.state":
            return names.among(names.STATES, word) is not None
        if self.kind == "finding":
            return names.among(names.FINDINGS, word) is not None
        return names.lookup(names.NAMES.get(self.kind, {}), word) is not None

    def of(self, word: str, at: int) -> Node:
        """The condition for one identifier: a number, a name, or an endpoint with a dot."""
        match self.kind:
            case "cid" | "port" | "conn":
                return self._combined([self._at_side(side, word) for side in self.sides])
            case "flags":
                return flag(word)
            case "finding":
                return tree.Finding(code=finding(word), at=at)
            case "conn.state":
                return tree.InState(state=state(word), at=at)
        return relate("==", Header(name=self.kind), named(self.kind, word))

    def range(self, low: str, high: str) -> Node:
        """The condition for a range of numbers."""
        if self.kind not in ("cid", "port"):
            raise Misused(f"{self.kind} takes no range")
        return self._combined(
            [
                between(field, *(named(field.name, end) for end in (low, high)))
                for field in self._fields()
            ]
        )

    def related(self, relation: str, word: str) -> Node:
        """The condition for ``port > 1023``; ``!=`` is ``not ==``, whatever the sides."""
        if relation == "!=":
            return tree.negated(self.related("==", word))
        return self._combined(
            [relate(relation, field, named(field.name, word)) for field in self._fields()]
        )

    def _fields(self) -> list[Header]:
        return [Header(name=f"{side}_{self.kind}") for side in self.sides]

    def _combined(self, terms: list[Node]) -> Node:
        return tree.all_of(terms) if self.every else tree.any_of(terms)

    def _at_side(self, side: str, word: str) -> Node:
        if "." in word and self.kind != "port":
            return endpoint(side, word)
        if self.kind == "conn":
            raise Misused(f"an endpoint is written CID.PORT, not {quoted(word)}")
        field = Header(name=f"{side}_{self.kind}")
        if self.kind == "cid" and word.lower() == names.GUEST_NAME:
            first = relate(">=", field, wire.FIRST_GUEST_CID)
            return tree.all_of([first, relate("!=", field, wire.CID_ANY)])
        also = names.SIDES if self.kind == "cid" else ()
        return relate("==", field, named(field.name, word, also=also))
