"""Constant folding: what can be known of a filter before it sees a packet.

Both back ends start from the folded tree, so that numbers are calculated in one place, modulo 2^32
or 2^64 as ``tree.is_wide`` says. Invariants: the folded tree is true of the same packets; a number
stands right of a comparison unless both sides are numbers, and then the comparison is gone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from vsockdump.filters import tree
from vsockdump.filters.tree import Binary, Compare, Node, Number, Raw, Value

MIRRORED: Final = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""The relation that says the same with its sides exchanged."""

# Python's numbers and numpy's columns alike.
RELATE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

CALCULATE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "|": operator.or_,
    "^": operator.xor,
    "&": operator.and_,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
}


def fold(node: Node) -> Node:
    """The same filter with everything calculated that no packet can change."""
    match node:
        case tree.And():
            return tree.all_of([fold(term) for term in node.terms])
        case tree.Or():
            return tree.any_of([fold(term) for term in node.terms])
        case tree.Not():
            return tree.negated(fold(node.term))
        case Compare():
            return _compare(node)
    return node


def _compare(node: Compare) -> Node:
    left, right = fold_value(node.left), fold_value(node.right)
    if left is None or right is None:
        return tree.NEVER
    relation = node.relation
    if isinstance(left, Number):
        if isinstance(right, Number):
            true: bool = RELATE[relation](left.value, right.value)
            return tree.ALWAYS if true else tree.NEVER
        left, right, relation = right, left, MIRRORED[relation]
    return Compare(relation=relation, left=left, right=right)


def fold_value(value: Value) -> Value | None:
    """The value with its constant parts calculated; None if it has no value in any packet."""
    match value:
        case Raw():
            offset = fold_value(value.offset)
            return offset and Raw(base=value.base, offset=offset, size=value.size)
        case Binary():
            left, right = fold_value(value.left), fold_value(value.right)
            if left is None or right is None:
                return None
            bits = tree.WIDE_BITS if tree.is_wide(value) else tree.NARROW_BITS
            if isinstance(right, Number):
                if value.operator in "/%" and right.value == 0:
                    return None
                if value.operator in ("<<", ">>") and right.value >= bits:
                    return None
                if isinstance(left, Number):
                    result = CALCULATE[value.operator](left.value, right.value)
                    return Number(value=result % (1 << bits))
            return Binary(operator=value.operator, left=left, right=right, at=value.at)
    return value
