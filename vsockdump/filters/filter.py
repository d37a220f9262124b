"""A compiled filter: one expression, one tree, and what can be made of it.

Invariants: ``Filter.mask`` of frames that were not cut and the kernel running ``Filter.bpf`` on the
same frames choose the same packets; both are false for what is not there, as ``tree`` says. A
filter that needs tracking has a mask and no program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from vsockdump import wire
from vsockdump.errors import FilterError
from vsockdump.filters import mask, tree
from vsockdump.filters.bpf import Instruction
from vsockdump.filters.complaints import complaint_at
from vsockdump.filters.parser import parse
from vsockdump.frames import Bools
from vsockdump.packets import PacketBatch
from vsockdump.tracking.columns import TrackedBatch

WHOLE_FRAME: Final = 1 << 18
"""The snapshot length that stands for none, tcpdump's too; more than any frame has."""

_MIRROR: Final = {
    f"{side}_{kind}": f"{other}_{kind}"
    for side, other in (("src", "dst"), ("dst", "src"))
    for kind in ("cid", "port")
}
_STRUCTURE: Final = (tree.And, tree.Or, tree.Not, tree.Compare, tree.Binary, tree.Number)
"""Parts of a tree that look at nothing themselves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filter:
    """A filter expression, ready to be run; ``compile`` makes one.

    ``text`` is the expression as it was written, ``node`` its syntax tree.
    """

    text: str
    node: tree.Node
    _mask: Callable[[PacketBatch, TrackedBatch | None], Bools] = field(repr=False)

    @property
    def needs_tracking(self) -> bool:
        """Whether the filter asks for what only tracking knows (connections, credit, findings)."""
        return tree.tracking_in(self.node) is not None

    @property
    def keeps_connections(self) -> bool:
        """Whether the filter passes all of a connection or nothing, both directions.

        What is tracked behind such a filter is exact for every connection that passes. True of
        filters that look at endpoints alone and treat source and destination alike.
        """
        return _keeps_connections(self.node)

    def mask(self, batch: PacketBatch, tracked: TrackedBatch | None = None) -> Bools:
        """Which packets of the batch the filter passes: bool, shape (n,), the caller's own.

        ``tracked`` are the tracker's columns of the same rows. FilterError if the filter needs
        them and there are none.
        """
        wanted = tree.tracking_in(self.node)
        if wanted is not None and tracked is None:
            reason = f"{_word(wanted)} is known only where connections are tracked"
            raise complaint_at(self.text, wanted.at, reason)
        return self._mask(batch, tracked)

    def bpf(self, snaplen: int = 0, *, linktype: int = wire.LINKTYPE_VSOCK) -> list[Instruction]:
        """The filter as a program for the kernel: returns ``snaplen``, or 0 for what is dropped.

        A ``snaplen`` of 0 is WHOLE_FRAME. Frames are those of ``linktype``: vsockmon's own, or
        cooked ones. FilterError if the kernel cannot do it: the filter needs tracking, or
        calculates in 64 bits, or the program would be too long.
        """
        wanted = tree.tracking_in(self.node)
        if wanted is not None:
            reason = (
                f"the kernel does not know {_word(wanted)}: use it where packets are shown, on a"
                " file or behind the capture, and leave it out of the capture filter"
            )
            raise complaint_at(self.text, wanted.at, reason)
        # A filter on a file has no program.
        from vsockdump.filters.assemble import assemble
        from vsockdump.filters.lower import lower

        try:
            condition = lower(self.node, snaplen=snaplen or WHOLE_FRAME, linktype=linktype)
            return assemble(condition, snaplen or WHOLE_FRAME)
        except FilterError as error:
            raise complaint_at(self.text, error.column or 0, str(error)) from None

    def kernel_part(self) -> tuple[Filter | None, Filter | None]:
        """A display filter in two: what the kernel may do before tracking, and the rest.

        The first passes whole connections alone (``keeps_connections``), so that what is tracked
        behind it stays exact; both together pass what the filter passes. None is a part that
        would pass everything.
        """
        terms = self.node.terms if isinstance(self.node, tree.And) else (self.node,)
        kept = [term for term in terms if _keeps_connections(term)]
        rest = [term for term in terms if not _keeps_connections(term)]
        return _part(kept), _part(rest)


def _part(terms: list[tree.Node]) -> Filter | None:
    # Written anew, so that a part's text is its own.
    return compile(tree.show(tree.all_of(terms))) if terms else None


def compile(text: str) -> Filter:
    """The filter that an expression is; FilterError if it is none. Empty, it passes everything."""
    node = parse(text)
    return Filter(text=text, node=node, _mask=mask.plan(node))


def _word(part: tree.NeedsTracking) -> str:
    """The word that asked for tracking."""
    match part:
        case tree.Tracked():
            return part.name
        case tree.InState():
            return tree.STATE
        case tree.Stalled():
            return "stalled"
    return "finding"


def _keeps_connections(node: tree.Node) -> bool:
    leaves = [part for part in tree.walk(node) if not isinstance(part, _STRUCTURE)]
    of_endpoints = all(isinstance(leaf, tree.Header) and leaf.name in _MIRROR for leaf in leaves)
    return of_endpoints and _ordered(_mirrored(node)) == _ordered(node)


def _mirrored(node: tree.Node) -> tree.Node:
    """The filter of the opposite direction, for filters of endpoints."""
    match node:
        case tree.And() | tree.Or():
            return replace(node, terms=tuple(map(_mirrored, node.terms)))
        case tree.Not():
            return replace(node, term=_mirrored(node.term))
        case tree.Compare():
            return replace(node, left=_mirrored_value(node.left), right=_mirrored_value(node.right))
    return node


def _mirrored_value(value: tree.Value) -> tree.Value:
    match value:
        case tree.Header():
            return tree.Header(name=_MIRROR[value.name])
        case tree.Binary():
            return replace(
                value, left=_mirrored_value(value.left), right=_mirrored_value(value.right)
            )
    return value


def _ordered(node: tree.Node) -> str:
    """The filter written so that two that differ in the order of terms alone read the same."""
    match node:
        case tree.And() | tree.Or():
            return f"{type(node).__name__}({', '.join(sorted(map(_ordered, node.terms)))})"
        case tree.Not():
            return f"Not({_ordered(node.term)})"
    return tree.show(node)
