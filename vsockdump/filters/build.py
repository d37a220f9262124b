"""The meaning of a parsed expression: lark's shape of it to a syntax tree.

Strategy: one walk from left to right that remembers the last qualifier, because a bare number or
name behind ``and`` or ``or`` repeats it (``port 1024 or 1025``). Chains are walked by loops, only
brackets by recursion. Invariants: a FilterError points at the word that is wrong, the leftmost if
there are several; what could mean two things is refused, with both ways to write it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from lark import Token, Tree

from vsockdump.errors import FilterError
from vsockdump.filters import names, tree
from vsockdump.filters.complaints import complaint, in_lines, listed, perhaps, quoted
from vsockdump.filters.qualifiers import (
    SIDES,
    Misused,
    Qualifier,
    between,
    endpoint,
    named,
    number,
    pair,
    relate,
    state,
)
from vsockdump.filters.tree import Node, Value

if TYPE_CHECKING:
    Shape = Token | Tree[Token]

_JOINTS: Final = {"AND": "and", "AMPAMP": "and", "OR": "or", "BARBAR": "or"}
_NEGATIONS: Final = frozenset({"NOT", "BANG"})
_VALUES: Final = frozenset({"calculation", "signed", "raw", "named"})
_KINDS: Final = {"CID": "cid", "PORT": "port", "PORTRANGE": "port"}
_KEYWORDS: Final = (
    *(
        "and",
        "or",
        "not",
        "src",
        "dst",
        "cid",
        "port",
        "portrange",
        "op",
        "mon_op",
        "type",
        "flags",
    ),
    *("transport", "less", "greater", "conn", "in", "finding", "stalled", "conn.state"),
    *("vsock", "payload"),
)
_SIZES: Final = (1, 2, 4)


class _Place(NamedTuple):
    """Where a condition stands: what joins it to the last one ("" if nothing), and inside what."""

    joined: str = ""
    negative: bool = False
    depth: int = 0


class Builder:
    """Builds the tree of one expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.last: Qualifier | None = None

    def condition(self, shape: Shape) -> Node:
        """The tree of a whole expression."""
        return self._condition(shape, _Place())

    # --- conditions

    def _condition(self, shape: Shape, place: _Place) -> Node:
        if isinstance(shape, Token) or shape.data in _VALUES:
            return self._lone(shape, place)
        children = shape.children
        match shape.data:
            case "sequence":
                return _chained(
                    children,
                    lambda child, joined: self._condition(
                        child, place._replace(joined=joined or place.joined)
                    ),
                )
            case "row":
                first = children[0]
                apart = place._replace(joined="")
                terms = [self._condition(first, place)]
                for before, child in pairwise(children):
                    side, token = _last(before), _first(child)
                    if side in names.SIDES and token is child and token.type == "NUMBER":
                        reason = f"'{side}' is a CID itself: for CID {token} write cid {token}"
                        raise self._wrong(token, reason)
                    terms.append(self._condition(child, apart))
                return tree.all_of(terms)
            case "part":
                odd = len(children) % 2 == 0
                term = self._condition(children[-1], place._replace(negative=place.negative ^ odd))
                return tree.negated(term) if odd else term
            case "group":
                return self._condition(children[0], self._deeper(shape, place))
            case "qualified":
                return self._qualified(children, place)
            case "length":
                self.last = None
                relation = "<=" if _token(children[0]).type == "LESS" else ">="
                length = tree.Header(name="len")
                return relate(relation, length, self._number(_token(children[1])))
            case "pair":
                return self._pair([_token(child) for child in children], place)
        return self._comparison(shape)

    def _lone(self, shape: Shape, place: _Place) -> Node:
        """A condition that is a value: a repetition of the last qualifier, or a name."""
        token = _first(shape)
        if isinstance(shape, Tree):
            if shape.data == "named":
                if token.type == "FINDING":
                    self.last = None
                    return tree.Finding(at=_start(token))
                raise self._wrong(token, f"{token} needs a value, such as {_example(token)}")
            ends = shape.children
            if (
                shape.data == "calculation"
                and place.joined
                and self.last is not None
                and [getattr(end, "type", "") for end in ends] == ["NUMBER", "MINUS", "NUMBER"]
            ):
                shape = Tree("range", [ends[0], ends[2]])
                return self._repeat(shape, token, place)
            raise self._wrong(token, "a number is no condition: compare it, for example len > 0")
        if token.type in ("NUMBER", "ENDPOINT"):
            if self.last is None:
                known = "src or conn" if token.type == "ENDPOINT" else "port or cid"
                raise self._wrong(
                    token, f"{quoted(token)} of what? put a word such as {known} before it"
                )
            if not place.joined:
                reason = f"{quoted(token)} needs 'or' or a word such as port before it"
                raise self._wrong(token, reason)
            return self._repeat(token, token, place)
        return self._word(token, place)

    def _word(self, token: Token, place: _Place) -> Node:
        word = names.plain(token)
        if place.joined and self.last is not None and self.last.knows(token):
            return self._repeat(token, token, place)
        if word in names.SIDES:
            self.last = None
            return Qualifier(kind="cid").of(word, _start(token))
        if word == "stalled":
            self.last = None
            return tree.Stalled(at=_start(token))
        if token.type == "CONN" or word in names.NUMBERS:
            raise self._wrong(
                token, f"{token} is a number, no condition: compare it, as in {token} > 0"
            )
        kinds = {kind: names.NAMES[kind] for kind in ("op", "type", "flags", "transport", "mon_op")}
        takers: dict[str, Iterable[str]] = {
            **kinds,
            tree.STATE: names.STATES,
            "finding": names.FINDINGS,
        }
        takes = [kind for kind, known in takers.items() if names.among(known, token) is not None]
        if takes:
            could = listed(f"{kind} {token}" for kind in takes)
            raise self._wrong(token, f"{quoted(token)} of what? write {could}")
        known = (*_KEYWORDS, *names.SIDES, *names.NUMBERS)
        reason = f"{quoted(token)} is not a word of the filter language"
        raise self._wrong(
            token, reason + (_spaces(token) or in_lines(token) or perhaps(token, known))
        )

    def _repeat(self, shape: Shape, token: Token, place: _Place) -> Node:
        """The last qualifier, applied to one more identifier."""
        last = self.last
        assert last is not None
        positive = not place.negative or (token.type == "WORD" and last.kind == "cid")
        if place.joined == "and" and last.single and positive and not last.negative:
            reason = f"a packet has one {last.single}, so this asks for the impossible"
            if last.kind in ("cid", "port"):
                reason += f": write {last.kind} {token} for either side, or src or dst before it"
            raise self._wrong(token, reason)
        self.last = replace(last, negative=place.negative)
        return self._identifier(last, shape, place)

    # --- qualified identifiers

    def _qualified(self, children: list[Shape], place: _Place) -> Node:
        kind, every = "cid", False
        sides: tuple[str, ...] = SIDES
        for child in children[:-1]:
            token = _first(child)
            if isinstance(child, Token):
                kind = _KINDS[child.type]
            elif child.data == "direction":
                given = [str(part) for part in child.children]
                every = "and" in given or "&&" in given
                sides = tuple(side for side in SIDES if side in given)
            else:
                kind = str(token)
        qualifier = Qualifier(kind=kind, sides=sides, every=every, negative=place.negative)
        node = self._identifier(qualifier, children[-1], place)
        self.last = qualifier
        return node

    def _identifier(self, qualifier: Qualifier, shape: Shape, place: _Place) -> Node:
        """One identifier, or several in brackets or braces, under one qualifier."""
        if isinstance(shape, Token):
            try:
                return qualifier.of(shape, _start(shape))
            except Misused as error:
                raise self._wrong(shape, str(error)) from None
        children = shape.children
        match shape.data:
            case "ids":
                deeper = self._deeper(shape, place)
                return _chained(
                    children, lambda child, _: self._identifier(qualifier, child, deeper)
                )
            case "negated_ids":
                term = self._identifier(qualifier, children[-1], place)
                return tree.negated(term) if len(children) % 2 == 0 else term
            case "set":
                return tree.any_of(
                    [self._identifier(qualifier, child, place) for child in children[1:]]
                )
        try:
            if shape.data == "related":
                return qualifier.related(_relation(children[0]), _token(children[1]))
            return qualifier.range(_token(children[0]), _token(children[-1]))
        except Misused as error:
            raise self._wrong(_token(children[-1]), str(error)) from None

    def _pair(self, tokens: list[Token], place: _Place) -> Node:
        """``conn 3.1024 host.5000``, ``conn 3.1024`` or ``conn 3``."""
        conn, *ends = tokens
        self.last = None
        if ends[0].type == "NUMBER":
            connection = tree.Tracked(name=tree.CONNECTION, at=_start(conn))
            return relate("==", connection, self._number(ends[0]))
        for end in ends:
            try:
                endpoint("src", end)
            except Misused as error:
                raise self._wrong(end, str(error)) from None
        if len(ends) > 1:
            return pair(*ends)
        self.last = Qualifier(kind="conn", negative=place.negative)
        return self.last.of(ends[0], _start(ends[0]))

    # --- comparisons and values

    def _comparison(self, shape: Tree[Token]) -> Node:
        self.last = None
        left, *others = shape.children
        token = _first(left)
        if token.type == "STATE" and isinstance(left, Tree) and left.data == "named":
            return self._state(token, others)
        if isinstance(others[0], Tree):
            return self._member(left, others[0].children[1:])
        right = others[1]
        field = _named_field(left) or _named_field(right)
        one, other = self._value(left, field), self._value(right, field)
        return tree.Compare(relation=_relation(others[0]), left=one, right=other)

    def _member(self, left: Shape, items: list[Shape]) -> Node:
        field = _named_field(left)
        value = self._value(left, field)
        terms = []
        for item in items:
            if isinstance(item, Tree):
                low, high = (self._number(_token(item.children[end])) for end in (0, -1))
                terms.append(between(value, low, high))
            else:
                number = self._value(item, field)
                terms.append(tree.Compare(relation="==", left=value, right=number))
        return tree.any_of(terms)

    def _state(self, token: Token, others: list[Shape]) -> Node:
        words = others[1:]
        negative = False
        if isinstance(others[0], Tree):
            words = others[0].children[1:]
        else:
            relation = _relation(others[0])
            if relation not in ("==", "!="):
                raise self._wrong(
                    _token(others[0]), "states have no order: compare them with == or !="
                )
            negative = relation == "!="
        terms: list[Node] = []
        for word in words:
            try:
                if not isinstance(word, Token) or word.type != "WORD":
                    raise Misused(f"a state is one of {listed(names.STATES)}")
                terms.append(tree.InState(state=state(word), at=_start(token)))
            except Misused as error:
                raise self._wrong(_first(word), str(error)) from None
        return tree.negated(tree.any_of(terms)) if negative else tree.any_of(terms)

    def _value(self, shape: Shape, field: str, depth: int = 0) -> Value:
        """A value; names in it are those of header field ``field`` ("" if none is near)."""
        if isinstance(shape, Token):
            return self._atom(shape, field)
        children = shape.children
        match shape.data:
            case "named":
                token = _token(children[0])
                if token.type in ("FINDING", "STATE"):
                    raise self._wrong(token, f"{token} is not a number: write {_example(token)}")
                return tree.Header(name=str(token))
            case "raw":
                return self._raw(children, depth)
            case "group":
                place = self._deeper(shape, _Place(depth=depth))
                return self._value(children[0], field, place.depth)
            case "signed":
                value = self._value(children[-1], field, depth)
                if len(children) % 2:
                    return value
                zero = tree.Number(value=0)
                return tree.Binary(operator="-", left=zero, right=value, at=_start(_first(shape)))
        if shape.data != "calculation":
            raise self._wrong(_first(shape), "a condition stands where a number is needed")
        if len(children) > 2 * tree.MAX_DEPTH:
            reason = f"a calculation has {tree.MAX_DEPTH} steps at most"
            raise self._wrong(_first(shape), reason)
        values = [self._value(children[0], field, depth)]
        pending: list[Token] = []
        for joint, child in zip(children[1::2], children[2::2], strict=True):
            operator = _token(joint)
            while pending and tree.BINDING[pending[-1]] >= tree.BINDING[operator]:
                self._calculate(values, pending.pop())
            pending.append(operator)
            values.append(self._value(child, field, depth))
        while pending:
            self._calculate(values, pending.pop())
        return values[0]

    def _calculate(self, values: list[Value], operator: Token) -> None:
        """Put the operator in the place of the last two values."""
        right = values.pop()
        values.append(self._calculation(operator, values.pop(), right))

    def _calculation(self, operator: Token, left: Value, right: Value) -> Value:
        if isinstance(right, tree.Number):
            wide = tree.is_wide(left) or tree.is_wide(right)
            bits = tree.WIDE_BITS if wide else tree.NARROW_BITS
            if operator in "/%" and right.value == 0:
                raise self._wrong(operator, "this divides by zero")
            if operator in ("<<", ">>") and right.value >= bits:
                raise self._wrong(operator, f"{bits} bits are shifted by {bits - 1} at most")
        return tree.Binary(operator=str(operator), left=left, right=right, at=_start(operator))

    def _atom(self, token: Token, field: str) -> Value:
        if token.type == "NUMBER":
            return tree.Number(value=self._number(token))
        if token.type == "ENDPOINT":
            raise self._wrong(token, f"{quoted(token)} is not a number")
        word = str(token)
        if word in names.CONNECTION_ALIASES or word in tree.TRACKED_NUMBERS:
            name = tree.CONNECTION if word in names.CONNECTION_ALIASES else word
            return tree.Tracked(name=name, at=_start(token))
        if word == "caplen":
            return tree.Caplen()
        if word in names.HEADER_FIELDS:
            return tree.Header(name=word)
        if field:
            try:
                return tree.Number(value=named(field, word, also=names.NUMBERS))
            except Misused as error:
                raise self._wrong(token, str(error)) from None
        reason = f"{quoted(token)} is not a number or a field"
        raise self._wrong(
            token, reason + (_spaces(token) or in_lines(token) or perhaps(token, names.NUMBERS))
        )

    def _raw(self, children: list[Shape], depth: int) -> Value:
        base, offset, *size = children
        count = 1
        if size:
            token = _token(size[-1])
            count = self._number(token)
            if count not in _SIZES:
                raise self._wrong(
                    token, f"a size is {listed(map(str, _SIZES))}, not {quoted(token)}"
                )
        place = self._deeper(offset, _Place(depth=depth))
        start = self._value(offset, "", place.depth)
        if tree.tracking_in(start) is not None:
            raise self._wrong(_first(offset), "an offset cannot depend on tracking")
        if tree.is_wide(start):
            raise self._wrong(_first(offset), "an offset is a number of 32 bits")
        return tree.Raw(base=str(base), offset=start, size=count)

    # --- words and places

    def _number(self, token: Token) -> int:
        try:
            return number(token)
        except Misused as error:
            raise self._wrong(token, str(error)) from None

    def _deeper(self, shape: Shape, place: _Place) -> _Place:
        if place.depth >= tree.MAX_BRACKETS:
            raise self._wrong(
                _first(shape), f"brackets are nested more than {tree.MAX_BRACKETS} deep"
            )
        return place._replace(depth=place.depth + 1)

    def _wrong(self, token: Token, reason: str) -> FilterError:
        return complaint(self.text, _start(token), len(token), reason)


def _chained(children: list[Shape], build: Callable[[Shape, str], Node]) -> Node:
    """Terms with joints between them, from the left; ``build`` is told a term's joint."""
    terms = [build(children[0], "")]
    how = ""
    for joint, child in zip(children[1::2], children[2::2], strict=True):
        joined = _JOINTS[_token(joint).type]
        if how not in ("", joined):
            terms = [_join(how, terms)]
        how = joined
        terms.append(build(child, joined))
    return _join(how, terms)


def _join(how: str, terms: list[Node]) -> Node:
    return tree.any_of(terms) if how == "or" else tree.all_of(terms)


def _spaces(word: str) -> str:
    """A hint for a subtraction that reads like a name with a hyphen."""
    parts = word.split("-")
    if len(parts) > 1 and all(part in names.NUMBERS for part in parts):
        return f"; to subtract, put spaces around '-': {' - '.join(parts)}"
    return ""


def _token(shape: Shape) -> Token:
    assert isinstance(shape, Token)
    return shape


def _first(shape: Shape) -> Token:
    """The leftmost word of a shape."""
    while not isinstance(shape, Token):
        shape = shape.children[0]
    return shape


def _last(shape: Shape) -> Token:
    """The rightmost word of a shape."""
    while not isinstance(shape, Token):
        shape = shape.children[-1]
    return shape


def _start(token: Token) -> int:
    return token.start_pos or 0


def _relation(shape: Shape) -> str:
    relation = str(_token(shape))
    return "==" if relation == "=" else relation


def _example(token: Token) -> str:
    return {
        "FINDING": "finding, or finding CODE",
        "STATE": f"conn.state {next(iter(names.STATES))}",
        "OP": "op rw, or op == 5",
        "FLAGS": "flags eom, or flags & 1 != 0",
    }.get(token.type) or f"{token} {next(iter(names.NAMES[str(token)]))}"


def _named_field(shape: Shape) -> str:
    """The first header field in a shape whose numbers have names; "" if there is none."""
    stack = [shape]
    while stack:
        part = stack.pop()
        if isinstance(part, Tree):
            stack.extend(reversed(part.children))
        elif str(part) in names.NAMES:
            return str(part)
    return ""
