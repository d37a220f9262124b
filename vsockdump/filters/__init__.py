"""One filter language, compiled for columns and for the kernel.

``compile`` turns an expression into a ``Filter``; ``Filter.mask`` chooses rows of a batch,
``Filter.bpf`` is a classic BPF program for a packet socket, and ``dump`` prints one as tcpdump
does. ``docs/filters.md`` describes the language.
"""

from __future__ import annotations

from vsockdump.filters.bpf import Instruction, dump, pack
from vsockdump.filters.filter import Filter, compile

__all__ = ["Filter", "Instruction", "compile", "dump", "pack"]
