"""Tests of 32-bit words: what the kernel's filter machine can ask of a frame.

The machine loads big-endian words and the wire is little-endian. A load that must be calculated
with is wrapped in ``Swap``; most comparisons can do without. Equality compares with swapped
constants, and an order against a constant is decided from the most significant bytes down, which
loads one or two bytes at a time.

Invariants: ``related`` and ``calculated`` leave nothing to the machine that can be known here;
constants stand right; tests are pure, so that one may be left out where its result is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vsockdump.filters.fold import CALCULATE, RELATE

WORD_MAX: Final = (1 << 32) - 1
LENGTH_MAX: Final = (1 << 31) - 1
"""No frame is longer than this: the machine takes larger offsets for something else."""
_BOUNDED: Final = {
    **dict.fromkeys("/%", range(1, WORD_MAX + 1)),
    **dict.fromkeys(("<<", ">>"), range(32)),
}
"""The right operands for which these have a value."""

# --- expressions: what the accumulator can hold


@dataclass(frozen=True, slots=True)
class Const:
    """A number."""

    value: int


@dataclass(frozen=True, slots=True)
class Length:
    """The length of the frame, before it is cut to the snapshot length."""


@dataclass(frozen=True, slots=True)
class Load:
    """``size`` bytes, big-endian, at ``offset``, plus ``index`` if there is one."""

    offset: int
    size: int
    index: Expression | None = None


@dataclass(frozen=True, slots=True)
class Swap:
    """A big-endian load (or calculation with such) of ``size`` bytes, read little-endian."""

    size: int
    word: Expression


@dataclass(frozen=True, slots=True)
class Alu:
    """A calculation modulo 2^32; its guards keep divisors and shifts in bounds."""

    operator: str
    left: Expression
    right: Expression


Expression = Const | Length | Load | Swap | Alu

# --- conditions


@dataclass(frozen=True, slots=True)
class Check:
    """``left relation right``; the relations are the machine's: ``==``, ``>``, ``>=``, ``&``."""

    relation: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class No:
    """The complement."""

    term: Condition


@dataclass(frozen=True, slots=True)
class All:
    """Every one of these, asked in this order."""

    terms: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """One of these, asked in this order."""

    terms: tuple[Condition, ...]


Condition = Check | No | All | Some
TRUE: Final = All(())
FALSE: Final = Some(())


def all_of(terms: Iterable[Condition]) -> Condition:
    """The conjunction, flat and folded."""
    flat: list[Condition] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, All) else (term,))
    if FALSE in flat:
        return FALSE
    return flat[0] if len(flat) == 1 else All(tuple(flat))


def some_of(terms: Iterable[Condition]) -> Condition:
    """The disjunction, flat and folded."""
    flat: list[Condition] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Some) else (term,))
    if TRUE in flat:
        return TRUE
    return flat[0] if len(flat) == 1 else Some(tuple(flat))


def negated(term: Condition) -> Condition:
    """The complement, folded."""
    if term in (TRUE, FALSE):
        return FALSE if term == TRUE else TRUE
    return term.term if isinstance(term, No) else No(term)


def related(relation: str, left: Expression, right: Expression) -> Condition:
    """``left relation right`` for any of ``== != > >=``, as cheap as it can be asked."""
    if isinstance(left, Const) and isinstance(right, Const):
        return TRUE if RELATE[relation](left.value, right.value) else FALSE
    match relation:
        case "!=":
            return negated(related("==", left, right))
        case "==":
            return _equal(right, left) if isinstance(left, Const) else _equal(left, right)
    # Orders come down to "at least a constant" wherever there is a constant.
    more = int(relation == ">")
    if isinstance(right, Const):
        return at_least(left, right.value + more)
    if isinstance(left, Const):
        return negated(at_least(right, left.value + 1 - more))
    return Check(relation, left, right)


def at_least(word: Expression, least: int) -> Condition:
    """``word >= least``."""
    if least == 0:
        return TRUE
    if least > _most(word):
        return FALSE
    if least == 1:
        return negated(_equal(word, Const(0)))
    match word:
        case Swap(size, Load(offset, _, None)):
            return _bytes_at_least(offset, size, least)
    return Check(">=", word, Const(least))


def _bytes_at_least(offset: int, size: int, least: int) -> Condition:
    """The same of ``size`` little-endian bytes: their upper half decides unless it is equal."""
    if least == 0:
        return TRUE
    if least == 1:
        return negated(Check("==", Load(offset, size), Const(0)))
    if size == 1:
        return Check(">=", Load(offset, 1), Const(least)) if least < 1 << 8 else FALSE
    half = size // 2
    high, low = least >> 8 * half, least & (1 << 8 * half) - 1
    if high >= 1 << 8 * half:
        return FALSE
    upper = Load(offset + half, half)
    same = Check("==", upper, Const(_swapped(high, half)))
    above = negated(same) if high == 0 else _bytes_at_least(offset + half, half, high + 1)
    if low == 0:
        return _bytes_at_least(offset + half, half, high)
    return some_of([above, all_of([same, _bytes_at_least(offset, half, low)])])


def _equal(left: Expression, right: Expression) -> Condition:
    if isinstance(right, Const) and right.value > _most(left):
        return FALSE
    for size in (4, 2):
        one, other = _unswapped(left, size), _unswapped(right, size)
        if one is not None and other is not None:
            left, right = one, other
            break
    match left, right:
        case Alu("&", word, Const(mask)), Const(value) if (
            value == 0 or value == mask & -mask == mask
        ):
            bits = Check("&", word, Const(mask))
            return bits if value else negated(bits)
    return Check("==", left, right)


def _unswapped(word: Expression, size: int) -> Expression | None:
    """The word with its ``size`` bytes in the other order, where that costs nothing."""
    match word:
        case Const(value) if value < 1 << 8 * size:
            return Const(_swapped(value, size))
        case Swap(swapped, inner) if swapped == size:
            return inner
        case Alu("&" | "|" | "^" as operator, left, right):
            one, other = _unswapped(left, size), _unswapped(right, size)
            return one and other and Alu(operator, one, other)
    return None


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _most(word: Expression) -> int:
    match word:
        case Load(_, size, _) | Swap(size, _):
            return (1 << 8 * size) - 1
        case Length():
            return LENGTH_MAX
    return WORD_MAX


def calculated(operator: str, left: Expression, right: Expression) -> Expression:
    """``left operator right`` modulo 2^32, folded.

    A divisor or a shift that is out of bounds has a guard that is FALSE; what is returned for it is
    never asked for.
    """
    if isinstance(right, Const) and operator in _BOUNDED and right.value not in _BOUNDED[operator]:
        return Const(0)
    if isinstance(left, Const) and isinstance(right, Const):
        return Const(CALCULATE[operator](left.value, right.value) & WORD_MAX)
    if isinstance(left, Const) and operator in "&|^+*":
        left, right = right, left
    match operator, right:
        case "&", Const(0):
            return right
        case ("|" | "^" | "+" | "-" | "<<" | ">>", Const(0)) | ("&", Const(0xFFFF_FFFF)):
            return left
    return Alu(operator, left, right)
