"""Tests of words to a program: a graph of decisions, thinned out, then laid down from its end.

Strategy: every test becomes a block with two ways out, built from the last to the first, so that
equal blocks with equal ways out are one. Then each way out is led past the tests whose result is
known on that way (a frame that was long enough stays so). Blocks are emitted backwards: where a
way out is longer than a conditional jump can be, a jump of its own is laid beside the block, and
used again by the blocks before it.

Invariants:

- a block's number is higher than those its ways out lead to, so that numbers order the graph;
- all jumps go forward, the program ends in a ``ret``, and is no longer than the kernel takes;
- a block leaves its word in the accumulator, so a block all of whose ways in carry its word loads
  nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from vsockdump.errors import FilterError
from vsockdump.filters import bpf
from vsockdump.filters.bpf import Instruction
from vsockdump.filters.words import (
    WORD_MAX,
    All,
    Alu,
    Check,
    Condition,
    Const,
    Expression,
    Length,
    Load,
    No,
    Some,
    Swap,
)

ACCEPT: Final = 0
REJECT: Final = 1
_FIRST: Final = 2
_ROUNDS: Final = 3
"""Thinning out once lets more be thinned out; three rounds find what there is to find."""

_MAX_BLOCKS: Final = 4 * bpf.MAX_INSTRUCTIONS
"""More than this no thinning out makes short enough."""
_TRY_SHORTER: Final = (
    f"the kernel takes programs of {bpf.MAX_INSTRUCTIONS} instructions at most: filter for less"
    " (a range for many ports), or capture without it and filter the file"
)


@dataclass(slots=True)
class _Graph:
    """Blocks by number, from _FIRST; the two below are the ways the program can end."""

    tests: list[Check] = field(default_factory=list)
    ways: list[tuple[int, int]] = field(default_factory=list)
    known: dict[tuple[Check, int, int], int] = field(default_factory=dict)

    def block(self, test: Check, true: int, false: int) -> int:
        """The number of a block that asks ``test``, or of its way out if both are one."""
        if true == false:
            return true
        key = (test, true, false)
        number = self.known.get(key)
        if number is None:
            number = len(self.tests) + _FIRST
            if number > _MAX_BLOCKS:
                raise FilterError(f"this filter is too long; {_TRY_SHORTER}")
            self.known[key] = number
            self.tests.append(test)
            self.ways.append((true, false))
        return number

    def build(self, condition: Condition, true: int, false: int) -> int:
        """The number of the first block of ``condition``, which leads to one of two blocks."""
        match condition:
            case Check():
                return self.block(condition, true, false)
            case No():
                return self.build(condition.term, false, true)
            case All():
                for term in reversed(condition.terms):
                    true = self.build(term, true, false)
                return true
            case Some():
                for term in reversed(condition.terms):
                    false = self.build(term, true, false)
                return false


def assemble(condition: Condition, snaplen: int) -> list[Instruction]:
    """The program that returns ``snaplen`` for frames that fulfil ``condition``, else 0."""
    graph = _Graph()
    start = graph.build(condition, ACCEPT, REJECT)
    for _ in range(_ROUNDS):
        graph, start = _thinned(graph, start)
    program = _emit(graph, start, snaplen)
    if len(program) > bpf.MAX_INSTRUCTIONS:
        raise FilterError(f"this filter needs {len(program)} instructions; {_TRY_SHORTER}")
    return program


# --- thinning out


@dataclass(slots=True)
class _Facts:
    """What is known on one way through the graph: results of tests, and ranges of words."""

    results: dict[Check, bool] = field(default_factory=dict)
    ranges: dict[Expression, tuple[int, int]] = field(default_factory=dict)

    def learned(self, test: Check, result: bool, repeated: Counter[Check | Expression]) -> _Facts:
        """These facts and one more, if anything can come of it."""
        facts = _Facts(dict(self.results), dict(self.ranges))
        if repeated[test] > 1:
            facts.results[test] = result
        if isinstance(test.right, Const) and repeated[test.left] > 1:
            low, high = self.ranges.get(test.left, (0, WORD_MAX))
            match test.relation, result:
                case "==", True:
                    low = high = test.right.value
                case ">=", True:
                    low = max(low, test.right.value)
                case ">=", False:
                    high = min(high, test.right.value - 1)
                case _:
                    return facts
            facts.ranges[test.left] = low, high
        return facts

    def result(self, test: Check) -> bool | None:
        """The result of ``test``, if these facts decide it."""
        if test in self.results:
            return self.results[test]
        if not isinstance(test.right, Const) or test.left not in self.ranges:
            return None
        low, high = self.ranges[test.left]
        value = test.right.value
        match test.relation:
            case "==" if value < low or value > high:
                return False
            case "==" if low == high:
                return True
            case ">=" if value <= low:
                return True
            case ">=" if value > high:
                return False
        return None

    def common(self, other: _Facts) -> _Facts:
        """What is known on both ways."""
        shared = self.results.items() & other.results.items()
        ranges = {
            word: (min(low, other.ranges[word][0]), max(high, other.ranges[word][1]))
            for word, (low, high) in self.ranges.items()
            if word in other.ranges
        }
        return _Facts(dict(shared), ranges)


def _thinned(graph: _Graph, start: int) -> tuple[_Graph, int]:
    """The same decisions with every way out led past the tests that are decided on it."""
    repeated: Counter[Check | Expression] = Counter()
    for test in graph.tests:
        repeated[test] += 1
        repeated[test.left] += 1
    facts: dict[int, _Facts] = {start: _Facts()}
    ways = list(graph.ways)
    for number in range(start, _FIRST - 1, -1):
        here = facts.pop(number, None)
        if here is None:
            continue
        test = graph.tests[number - _FIRST]
        ends = []
        for end, result in zip(graph.ways[number - _FIRST], (True, False), strict=True):
            there = here.learned(test, result, repeated)
            while end >= _FIRST:
                decided = there.result(graph.tests[end - _FIRST])
                if decided is None:
                    break
                end = graph.ways[end - _FIRST][0 if decided else 1]
            ends.append(end)
            if end >= _FIRST:
                facts[end] = facts[end].common(there) if end in facts else there
        ways[number - _FIRST] = (ends[0], ends[1])
    return _rebuilt(graph.tests, ways, start)


def _rebuilt(tests: list[Check], ways: list[tuple[int, int]], start: int) -> tuple[_Graph, int]:
    """The blocks that can be reached, numbered anew."""
    reached = {start}
    for number in range(start, _FIRST - 1, -1):
        if number in reached:
            reached.update(ways[number - _FIRST])
    graph = _Graph()
    renamed = {ACCEPT: ACCEPT, REJECT: REJECT}
    for number in range(_FIRST, start + 1):
        if number in reached:
            true, false = ways[number - _FIRST]
            renamed[number] = graph.block(tests[number - _FIRST], renamed[true], renamed[false])
    return graph, renamed[start]


# --- emission


def _emit(graph: _Graph, start: int, snaplen: int) -> list[Instruction]:
    endings = {ACCEPT: Instruction(bpf.RET, 0, 0, snaplen), REJECT: Instruction(bpf.RET, 0, 0, 0)}
    if start < _FIRST:
        return [endings[start]]
    carried = _carried(graph, start)
    # Backwards: the last instruction comes first. Places count from the program's end.
    program = [endings[REJECT], endings[ACCEPT]]
    places = {REJECT: 0, ACCEPT: 1}
    nearest = dict(places)
    for number in range(_FIRST, start + 1):
        test = graph.tests[number - _FIRST]
        ends = graph.ways[number - _FIRST]
        far = True
        while far:
            jumps = [len(program) - nearest[end] - 1 for end in ends]
            far = max(jumps) > bpf.MAX_JUMP
            if far:
                end = ends[jumps.index(max(jumps))]
                hop = Instruction(bpf.JMP | bpf.JA, 0, 0, len(program) - places[end] - 1)
                nearest[end] = len(program)
                program.append(endings.get(end, hop))
        constant = isinstance(test.right, Const)
        source, k = (bpf.K, test.right.value) if isinstance(test.right, Const) else (bpf.X, 0)
        program.append(
            Instruction(bpf.JMP | bpf.JUMPS[test.relation] | source, jumps[0], jumps[1], k)
        )
        if not constant:
            program += reversed(_operands(test.left, test.right, 0))
        elif carried.get(number) != test.left:
            program += reversed(_load(test.left, 0))
        places[number] = nearest[number] = len(program) - 1
    program.reverse()
    return program


def _carried(graph: _Graph, start: int) -> dict[int, Expression | None]:
    """The word that is in the accumulator on every way into a block, if it is one word."""
    carried: dict[int, Expression | None] = {start: None}
    for number in range(start, _FIRST - 1, -1):
        word = graph.tests[number - _FIRST].left
        for end in graph.ways[number - _FIRST]:
            carried[end] = word if carried.setdefault(end, word) == word else None
    return carried


def _load(word: Expression, scratch: int) -> list[Instruction]:
    """Instructions that leave ``word`` in the accumulator, using scratch words from ``scratch``."""
    match word:
        case Const(value):
            return [_plain(bpf.LD | bpf.W | bpf.IMM, value)]
        case Length():
            return [_plain(bpf.LD | bpf.W | bpf.LEN)]
        case Load(offset, size, None):
            return [_plain(bpf.LD | bpf.SIZES[size] | bpf.ABS, offset)]
        case Load(offset, size, index):
            assert index is not None
            at = _plain(bpf.LD | bpf.SIZES[size] | bpf.IND, offset)
            return [*_load(index, scratch), _plain(bpf.MISC | bpf.TAX), at]
        case Swap(size, inner):
            return [*_load(inner, scratch), *_swap(size, _scratch(scratch))]
        case Alu(operator, left, Const(value)):
            return [*_load(left, scratch), _plain(bpf.ALU | bpf.ALU_OPS[operator] | bpf.K, value)]
        case Alu(operator, left, right):
            calculate = _plain(bpf.ALU | bpf.ALU_OPS[operator] | bpf.X)
            return [*_operands(left, right, scratch), calculate]
    raise AssertionError(word)


def _operands(left: Expression, right: Expression, scratch: int) -> list[Instruction]:
    """Instructions that leave ``left`` in the accumulator and ``right`` in the index register."""
    if isinstance(left, Const | Length) or (isinstance(left, Load) and left.index is None):
        return [*_load(right, scratch), _plain(bpf.MISC | bpf.TAX), *_load(left, scratch)]
    kept = _scratch(scratch)
    return [
        *_load(right, scratch),
        _plain(bpf.ST, kept),
        *_load(left, scratch + 1),
        _plain(bpf.LDX | bpf.W | bpf.MEM, kept),
    ]


def _swap(size: int, kept: int) -> list[Instruction]:
    """Exchange the bytes of the accumulator: neighbours first, then halves."""
    keep, again = _plain(bpf.ST, kept), _plain(bpf.LD | bpf.W | bpf.MEM, kept)
    tax, or_x = _plain(bpf.MISC | bpf.TAX), _plain(bpf.ALU | bpf.ALU_OPS["|"] | bpf.X)

    def alu(operator: str, value: int) -> Instruction:
        return _plain(bpf.ALU | bpf.ALU_OPS[operator] | bpf.K, value)

    even, odd = (0x00FF_00FF, 0xFF00_FF00) if size == 4 else (0x00FF, 0xFF00)
    code = [keep, alu("<<", 8), alu("&", odd), tax, again, alu(">>", 8), alu("&", even), or_x]
    if size == 4:
        code += [keep, alu("<<", 16), tax, again, alu(">>", 16), or_x]
    return code


def _scratch(number: int) -> int:
    if number >= bpf.MEM_WORDS:
        raise FilterError(
            "this calculation needs more scratch memory than the kernel's filter machine has:"
            " capture without it and filter the file"
        )
    return number


def _plain(code: int, k: int = 0) -> Instruction:
    return Instruction(code, 0, 0, k)
