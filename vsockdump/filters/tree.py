"""The syntax tree of a filter: a small core that every spelling of the language comes down to.

Strategy: the parser turns qualifiers (``src port 1024``, ``guest``, ``flags eom``) into comparisons
of header fields, so that each back end has to know six kinds of value and seven of condition. All
numbers are unsigned. A value is narrow (32 bits, as the kernel's filter machine calculates) unless
there is a CID, a tracked number or a number past 2^32 in it, which makes it wide (64 bits).

Invariants:

- conditions are two-valued: a comparison is false when a byte it needs is not there, and ``Not`` is
  the exact complement;
- ``And`` and ``Or`` are flat and have two terms or more, save the constants ALWAYS and NEVER;
  there is no ``Not`` of a ``Not``: build them with ``all_of``, ``any_of`` and ``negated``;
- no tree is deeper than MAX_DEPTH, so that walking one by recursion is safe;
- ``at``, the place in the expression that a node came from, takes no part in equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vsockdump import wire

MAX_DEPTH: Final = 128
"""Levels of a tree; a few stack frames each stay far below Python's limit."""
MAX_BRACKETS: Final = 64
"""Levels of brackets; between two lies the whole ladder of precedence, so they cost more frames."""

NARROW_BITS: Final = 32
WIDE_BITS: Final = 64

RELATIONS: Final = ("==", "!=", "<", "<=", ">", ">=")
OPERATORS: Final = ("|", "^", "&", "<<", ">>", "+", "-", "*", "/", "%")
BITWISE: Final = frozenset("&|^")

BINDING: Final = {"|": 1, "^": 2, "&": 3, "<<": 4, ">>": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6}
"""How closely each operator binds; the left of two alike comes first."""

CONNECTION: Final = "conn"
STATE: Final = "conn.state"
TRACKED_NUMBERS: Final = (
    *(CONNECTION, "window", "effective_window", "in_flight", "tx_cnt", "outstanding"),
)
"""Numbers that tracking knows of a packet: its connection's, and its sender's credit after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """An unsigned number below 2^64."""

    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A field of ``wire.HEADERS``; it is there when its header is there whole."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caplen:
    """How many bytes of the frame were captured; always there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """``size`` bytes (1, 2 or 4), little-endian, at ``offset`` from the start of ``base``.

    ``base`` is ``vsock``, from the first byte of the vsockmon header to the frame's end, or
    ``payload``, from behind the transport header, ``virtio.len`` bytes at most.
    """

    base: str
    offset: Value
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """One of TRACKED_NUMBERS."""

    name: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A calculation, modulo 2^32 or 2^64; without a value for a divisor of 0 or too far a shift."""

    operator: str
    left: Value
    right: Value
    at: int = field(default=0, compare=False)


Value = Number | Header | Caplen | Raw | Tracked | Binary


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """An unsigned comparison; false, whatever the relation, if a side has no value."""

    relation: str
    left: Value
    right: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class InState:
    """The packet's connection is in this state after it."""

    state: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """The sender's direction is stalled after this packet."""

    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The packet has a finding of this code; of any code if it is empty."""

    code: str = ""
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """True where ``term`` is false."""

    term: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class And:
    """True where every term is."""

    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Or:
    """True where some term is."""

    terms: tuple[Node, ...]


Node = Compare | InState | Stalled | Finding | Not | And | Or
NeedsTracking = Tracked | InState | Stalled | Finding

ALWAYS: Final = And(terms=())
NEVER: Final = Or(terms=())


def all_of(terms: Iterable[Node]) -> Node:
    """The conjunction of ``terms``, flat."""
    flat: list[Node] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, And) else (term,))
    if NEVER in flat:
        return NEVER
    return flat[0] if len(flat) == 1 else And(terms=tuple(flat))


def any_of(terms: Iterable[Node]) -> Node:
    """The disjunction of ``terms``, flat."""
    flat: list[Node] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Or) else (term,))
    if ALWAYS in flat:
        return ALWAYS
    return flat[0] if len(flat) == 1 else Or(terms=tuple(flat))


def negated(term: Node) -> Node:
    """The complement of ``term``, without a double negation."""
    if isinstance(term, Not):
        return term.term
    if term in (ALWAYS, NEVER):
        return NEVER if term == ALWAYS else ALWAYS
    return Not(term=term)


def field_bits(name: str) -> int:
    """How wide a header field is."""
    return 8 * wire.HEADERS[name].itemsize


def field_offset(name: str) -> int:
    """Where a header field starts, in bytes from the vsockmon header."""
    fields = wire.HEADERS.fields
    assert fields is not None
    return int(fields[name][1])


def is_wide(value: Value) -> bool:
    """Whether a value is calculated and compared in 64 bits."""
    return any(
        isinstance(part, Tracked)
        or (isinstance(part, Number) and part.value >= 1 << NARROW_BITS)
        or (isinstance(part, Header) and field_bits(part.name) > NARROW_BITS)
        for part in walk(value)
    )


def walk(node: Node | Value) -> Iterator[Node | Value]:
    """Every node and value below ``node``, itself first, in the order they are written."""
    stack: list[Node | Value] = [node]
    while stack:
        node = stack.pop()
        yield node
        match node:
            case And() | Or():
                stack.extend(reversed(node.terms))
            case Not():
                stack.append(node.term)
            case Compare() | Binary():
                stack += (node.right, node.left)
            case Raw():
                stack.append(node.offset)


def tracking_in(node: Node | Value) -> NeedsTracking | None:
    """The first part of ``node`` that only tracking can answer."""
    for part in walk(node):
        if isinstance(part, NeedsTracking):
            return part
    return None


def depth(node: Node | Value) -> int:
    """The most levels below ``node``, itself included; for trees of any depth."""
    deepest = 0
    stack: list[tuple[Node | Value, int]] = [(node, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        below: tuple[Node | Value, ...] = ()
        match node:
            case And() | Or():
                below = node.terms
            case Not():
                below = (node.term,)
            case Compare() | Binary():
                below = (node.left, node.right)
            case Raw():
                below = (node.offset,)
        stack.extend((part, level + 1) for part in below)
    return deepest


def show(node: Node) -> str:
    """The tree as an expression that parses into the same tree; "" for ALWAYS."""
    if node == ALWAYS:
        return ""
    return _show(node)


def _show(node: Node) -> str:
    match node:
        case Compare():
            return f"{show_value(node.left)} {node.relation} {show_value(node.right)}"
        case InState():
            return f"{STATE} {node.state}"
        case Stalled():
            return "stalled"
        case Finding():
            return f"finding {node.code}".rstrip()
        case Not():
            return f"not {_nested(node.term)}"
        case And() | Or():
            if not node.terms:
                return "0 == 0" if node == ALWAYS else "0 == 1"
            return (" and " if isinstance(node, And) else " or ").join(map(_nested, node.terms))


def _nested(node: Node) -> str:
    text = _show(node)
    # A lone "finding" would take the word behind it for its code.
    needed = isinstance(node, And | Or | Not) or node == Finding()
    return f"({text})" if needed else text


def show_value(value: Value) -> str:
    """A value as it is written in an expression."""
    match value:
        case Number():
            return str(value.value)
        case Header() | Tracked():
            return value.name
        case Caplen():
            return "caplen"
        case Raw():
            return f"{value.base}[{show_value(value.offset)}:{value.size}]"
        case Binary():
            binding = BINDING[value.operator]
            left, right = show_value(value.left), show_value(value.right)
            if isinstance(value.left, Binary) and BINDING[value.left.operator] < binding:
                left = f"({left})"
            if isinstance(value.right, Binary) and BINDING[value.right.operator] <= binding:
                right = f"({right})"
            return f"{left} {value.operator} {right}"
