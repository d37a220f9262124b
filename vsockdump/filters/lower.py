"""A syntax tree as tests of words: where fields lie, and what must hold before they are read.

Strategy: each comparison becomes a test and its guards, the tests that show that the bytes it loads
are there. Guards that conditions share are asked once. 64-bit CIDs are two words, and the captured
length is two cases, because the snapshot length cuts the frame only after the filter has run.

Invariants:

- guards come before what they guard in every ``All``, so that no load ever leaves the frame (the
  machine would end the program, whatever a ``not`` says about it);
- what decode calls present is present here, byte for byte (``packets.decode``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vsockdump import wire
from vsockdump.errors import FilterError
from vsockdump.filters import tree
from vsockdump.filters.fold import MIRRORED, fold
from vsockdump.filters.tree import Node, Number, Value
from vsockdump.filters.words import (
    FALSE,
    WORD_MAX,
    Check,
    Condition,
    Const,
    Expression,
    Length,
    Load,
    Some,
    Swap,
    all_of,
    at_least,
    calculated,
    negated,
    related,
    some_of,
)


class _Guarded(NamedTuple):
    """A condition that may be asked once all of its guards have been found to hold."""

    guards: tuple[Condition, ...]
    condition: Condition


class _Wide(NamedTuple):
    """A 64-bit value as two words."""

    high: Expression
    low: Expression


def lower(node: Node, *, snaplen: int, linktype: int) -> Condition:
    """The tests a filter without tracking comes down to, on frames of ``linktype``.

    ``snaplen`` is the longest a captured frame will be. FilterError if the machine cannot do it.
    """
    return _joined(_Lowering(snaplen, linktype).node(fold(node)))


def _joined(guarded: _Guarded) -> Condition:
    return all_of([*guarded.guards, guarded.condition])


def _merged(guards: Iterable[Condition]) -> tuple[Condition, ...]:
    """Guards that must all hold, each once; the one on the frame's length is the strictest."""
    kept: dict[Condition, None] = {}
    longest = 0
    for guard in guards:
        match guard:
            case Check(">=", Length(), Const(least)):
                longest = max(longest, least)
            case _:
                kept[guard] = None
    if FALSE in kept:
        return (FALSE,)
    return (at_least(Length(), longest), *kept) if longest else tuple(kept)


class _Lowering:
    """Lowers one tree for one link type.

    Guards on the frame's length come first in every tuple of guards, so merging them keeps order.
    """

    def __init__(self, snaplen: int, linktype: int) -> None:
        self.snaplen = snaplen
        self.caplen: Expression = Length()
        self.base, hatype = {
            wire.LINKTYPE_VSOCK: (0, None),
            wire.LINKTYPE_LINUX_SLL: (wire.SLL_LEN, wire.SLL_HATYPE),
            wire.LINKTYPE_LINUX_SLL2: (wire.SLL2_LEN, wire.SLL2_HATYPE),
        }[linktype]
        self.link: tuple[Condition, ...] = ()
        if hatype is not None:
            self.link = (related("==", Load(hatype, 2), Const(wire.ARPHRD_VSOCKMON)),)
        self.mon = self._long(wire.MON_HDR_LEN)
        self.virtio = (
            *self._long(wire.HEADERS_LEN),
            related("==", self._field("transport"), Const(wire.Transport.VIRTIO)),
            at_least(self._field("transport_len"), wire.VIRTIO_HDR_LEN),
        )

    def _long(self, size: int) -> tuple[Condition, ...]:
        """The frame is vsockmon's and has ``size`` bytes from its header on."""
        return (at_least(Length(), self.base + size), *self.link)

    # --- conditions

    def node(self, node: Node) -> _Guarded:
        match node:
            case tree.And():
                parts = [self.node(term) for term in node.terms]
                guards = _merged(guard for part in parts for guard in part.guards)
                return _Guarded(guards, all_of(part.condition for part in parts))
            case tree.Or():
                return self._some([self.node(term) for term in node.terms])
            case tree.Not():
                return _Guarded((), negated(_joined(self.node(node.term))))
            case tree.Compare():
                return self._compare(node)
        raise AssertionError(node)

    def _some(self, parts: list[_Guarded]) -> _Guarded:
        """A disjunction: what has the same guards is asked together, what loads the same too."""
        groups: dict[tuple[Condition, ...], list[Condition]] = {}
        for part in parts:
            group = groups.setdefault(part.guards, [])
            more = part.condition.terms if isinstance(part.condition, Some) else (part.condition,)
            group.extend(more)
        lowered = []
        for guards, terms in groups.items():
            by_load: dict[Condition | Expression, list[Condition]] = {}
            for term in terms:
                by_load.setdefault(term.left if isinstance(term, Check) else term, []).append(term)
            condition = some_of(term for same in by_load.values() for term in same)
            lowered.append(_Guarded(guards, condition))
        if len(lowered) == 1:
            return lowered[0]
        return _Guarded((), some_of(map(_joined, lowered)))

    def _compare(self, node: tree.Compare) -> _Guarded:
        if not any(isinstance(part, tree.Caplen) for part in tree.walk(node)):
            return self._compare_plain(node)
        cut = at_least(Length(), self.snaplen)
        self.caplen = Const(self.snaplen)
        snapped = _joined(self._compare_plain(node))
        self.caplen = Length()
        whole = _joined(self._compare_plain(node))
        cases = [all_of([cut, snapped]), all_of([negated(cut), whole])]
        return _Guarded((), some_of(cases))

    def _compare_plain(self, node: tree.Compare) -> _Guarded:
        guards = _merged((*self._guards(node.left), *self._guards(node.right)))
        if FALSE in guards:
            # What is never there is not loaded either: the kernel refuses some such loads unseen.
            return _Guarded((), FALSE)
        relation, left, right = node.relation, node.left, node.right
        if relation in ("<", "<="):
            relation, left, right = MIRRORED[relation], right, left
        if tree.is_wide(left) or tree.is_wide(right):
            return _Guarded(guards, self._related_wide(relation, left, right))
        return _Guarded(guards, related(relation, self._word(left), self._word(right)))

    def _related_wide(self, relation: str, left: Value, right: Value) -> Condition:
        one, other = self._wide(left), self._wide(right)
        same_high = related("==", one.high, other.high)
        if relation in ("==", "!="):
            # The low words differ more often than the high ones, which are 0 in any real CID.
            same = all_of([related("==", one.low, other.low), same_high])
            return same if relation == "==" else negated(same)
        above = related(">", one.high, other.high)
        return some_of([above, all_of([same_high, related(relation, one.low, other.low)])])

    # --- what must hold before a value is looked at

    def _guards(self, value: Value) -> tuple[Condition, ...]:
        match value:
            case tree.Header():
                return self.mon if value.name in wire.MON_FIELDS else self.virtio
            case tree.Raw():
                within = self._within_frame if value.base == "vsock" else self._within_payload
                return (*self._guards(value.offset), *within(self._word(value.offset), value.size))
            case tree.Binary():
                guards = (*self._guards(value.left), *self._guards(value.right))
                if tree.is_wide(value):
                    return guards
                if value.operator in "/%":
                    return (*guards, related("!=", self._word(value.right), Const(0)))
                if value.operator in ("<<", ">>"):
                    most = Const(tree.NARROW_BITS - 1)
                    return (*guards, related(">=", most, self._word(value.right)))
                return guards
        return ()

    def _within_frame(self, offset: Expression, size: int) -> tuple[Condition, ...]:
        """``size`` bytes at ``offset`` from the vsockmon header are there."""
        if isinstance(offset, Const):
            return self._long(offset.value + size)
        behind = calculated("-", Length(), Const(self.base + size))
        return (*self._long(size), related(">=", behind, offset))

    def _within_payload(self, offset: Expression, size: int) -> tuple[Condition, ...]:
        """``size`` bytes at ``offset`` of the payload are there, and within ``virtio.len``."""
        transport_len = self._field("transport_len")
        needed = wire.MON_HDR_LEN + size
        if isinstance(offset, Const):
            needed += offset.value
            guards: tuple[Condition, ...] = ()
            place: Expression = transport_len
        else:
            # The offset by itself first: what is smaller than the frame overflows no sum.
            guards = (related(">=", calculated("-", Length(), Const(self.base + needed)), offset),)
            place = calculated("+", transport_len, offset)
        behind = calculated("-", Length(), Const(self.base + needed))
        end = calculated("+", offset, Const(size))
        declared = related(">=", self._field("len"), end)
        virtio = all_of(self.virtio)
        return (
            *self._long(needed),
            *guards,
            related(">=", behind, place),
            some_of([all_of([virtio, declared]), negated(virtio)]),
        )

    # --- values

    def _field(self, name: str) -> Swap:
        size = tree.field_bits(name) // 8
        return Swap(size, Load(self.base + tree.field_offset(name), size))

    def _word(self, value: Value) -> Expression:
        """A narrow value."""
        match value:
            case Number():
                return Const(value.value)
            case tree.Header():
                return self._field(value.name)
            case tree.Caplen():
                return self.caplen
            case tree.Raw():
                return self._raw(value)
            case tree.Binary():
                return calculated(value.operator, self._word(value.left), self._word(value.right))
        raise AssertionError(value)

    def _raw(self, value: tree.Raw) -> Expression:
        offset = self._word(value.offset)
        base = self.base
        if value.base == "payload":
            base += wire.MON_HDR_LEN
            transport_len = self._field("transport_len")
            if isinstance(offset, Const):
                base += offset.value
                offset = Const(0)
            offset = calculated("+", transport_len, offset)
        if isinstance(offset, Const):
            load = Load(base + offset.value, value.size)
        else:
            load = Load(base, value.size, offset)
        return Swap(value.size, load) if value.size > 1 else load

    def _wide(self, value: Value) -> _Wide:
        """Any value as two words."""
        if isinstance(value, Number):
            return _Wide(Const(value.value >> tree.NARROW_BITS), Const(value.value & WORD_MAX))
        if not tree.is_wide(value):
            return _Wide(Const(0), self._word(value))
        if isinstance(value, tree.Header):
            offset = self.base + tree.field_offset(value.name)
            return _Wide(Swap(4, Load(offset + 4, 4)), Swap(4, Load(offset, 4)))
        assert isinstance(value, tree.Binary)
        if value.operator not in tree.BITWISE:
            raise FilterError(
                f"the kernel calculates in 32 bits: it cannot do '{value.operator}' on a CID"
                " or a number past 2^32 (a filter on a file can)",
                column=value.at,
            )
        left, right = self._wide(value.left), self._wide(value.right)
        high, low = (
            calculated(value.operator, one, other)
            for one, other in ((left.high, right.high), (left.low, right.low))
        )
        return _Wide(high, low)
