"""Text to syntax tree.

Strategy: lark cuts the text and finds its shape after ``grammar.lark``; ``build`` then gives words
their meaning. Invariants:

- any text gives a tree or a FilterError, in time and memory linear in its length;
- lark is loaded, and the grammar compiled, when the first filter is parsed, and once;
- the tree is no deeper than ``tree.MAX_DEPTH``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockdump.errors import FilterError
from vsockdump.filters import names, tree
from vsockdump.filters.complaints import complaint, listed, quoted

if TYPE_CHECKING:
    from lark import Lark
    from lark.exceptions import UnexpectedToken

_GRAMMAR: Final = Path(__file__).with_name("grammar.lark")

_CONDITION: Final = "a condition such as port 1024, cid host, op rw or len > 0"
_NUMBER: Final = "a number or a field"
_EXPECTED_AFTER: Final = {
    "SRC": "cid, port, portrange, a CID or a name such as host or guest",
    "CID": f"a CID, one of {listed((*names.SIDES, names.ANY_NAME))}, or several in brackets",
    "PORT": "a port number, a range such as 1-99, or several in brackets",
    "LESS": "a number of bytes",
    "CONN": "two endpoints such as 3.1024 host.5000, or the number of a connection",
    "AND": _CONDITION,
    "LPAR": _CONDITION,
    "RELATION": f"{_NUMBER}, or a name",
    "LSQB": "an offset in bytes",
    "COLON": "a size: 1, 2 or 4",
    "IN": "a set in braces such as {rw, rst}",
    "LBRACE": "a number or a name",
    "MINUS": _NUMBER,
    "FINDING": "the code of a finding",
    "STATE": f"a state: {listed(names.STATES)}",
    **{
        name.upper(): f"{name} by number or name: {listed(names.NAMES[name])}"
        for name in ("op", "mon_op", "type", "transport")
    },
    "FLAGS": f"a flag: {listed(names.FLAGS)}",
}
_SAME: Final = {
    "DST": "SRC",
    "PORTRANGE": "PORT",
    "GREATER": "LESS",
    "COMMA": "LBRACE",
    **dict.fromkeys(("AMPAMP", "OR", "BARBAR", "NOT", "BANG"), "AND"),
    "OPERATOR": "MINUS",
}
_PUNCTUATION: Final = {
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COLON": "':'",
    "RBRACE": "'}'",
    "COMMA": "','",
}


@functools.cache
def _parser() -> Lark:
    from lark import Lark

    return Lark(_GRAMMAR.read_text(encoding="utf-8"), parser="lalr", lexer="basic")


def parse(text: str) -> tree.Node:
    """The tree of a filter expression, ALWAYS for an empty one; FilterError if it is not one."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    from vsockdump.filters.build import Builder  # loads lark as well

    try:
        shape = _parser().parse(text)
    except UnexpectedCharacters as error:
        at = error.pos_in_stream or 0
        reason = f"{quoted(text[at])} has no meaning in a filter"
        raise complaint(text, at, 1, reason) from None
    except UnexpectedToken as error:
        raise _unexpected(text, error) from None
    if not shape.children:
        return tree.ALWAYS
    node = Builder(text).condition(shape.children[0])
    if tree.depth(node) > tree.MAX_DEPTH:
        raise too_deep(text)
    return node


def too_deep(text: str) -> FilterError:
    """An expression nested beyond MAX_DEPTH."""
    reason = (
        f"the expression is nested more than {tree.MAX_DEPTH} levels deep"
        " (and, or each open a level when they follow one another: bracket what belongs together)"
    )
    return complaint(text, 0, 1, reason)


def _unexpected(text: str, error: UnexpectedToken) -> FilterError:
    token = error.token
    expected = _expected(error)
    if token.type == "$END":
        reason = f"the expression ends where {expected} should follow"
        return complaint(text, len(text.rstrip()), 1, reason)
    if token.type == "RPAR" and not text.count("(", 0, token.start_pos):
        return complaint(text, token.start_pos or 0, 1, "no '(' belongs to this ')'")
    if token.type == "LSQB":
        reason = (
            "bytes of the frame are written vsock[offset:size], of the payload payload[offset:size]"
        )
        return complaint(text, token.start_pos or 0, 1, reason)
    reason = f"{quoted(token)} cannot stand here; what can is {expected}"
    return complaint(text, token.start_pos or 0, len(token), reason)


def _expected(error: UnexpectedToken) -> str:
    """What could stand where the parser stopped, in a user's words."""
    from lark import Token

    stack = error.interactive_parser.parser_state.value_stack
    if not stack:
        return _CONDITION
    last = stack[-1]
    # Words that begin something are told by themselves; only these two are whole without more.
    while not isinstance(last, Token) and last.data in ("direction", "named"):
        last = last.children[0]
    if isinstance(last, Token):
        after = _EXPECTED_AFTER.get(_SAME.get(last.type, last.type))
        if after is not None:
            return after
    accepted = error.accepts or error.expected
    closing = [sign for name, sign in _PUNCTUATION.items() if name in accepted]
    if {"RPAR", "AND"} & accepted and error.token.type != "$END":
        closing[:0] = ["'and'", "'or'"]
    if "RELATION" in accepted:
        return listed(["a comparison such as == 0", *closing])
    return listed(closing or ["'and'", "'or'", "another condition"])
