"""Instructions of the kernel's classic filter machine, and tcpdump's three ways to print them.

Opcodes are those of ``include/uapi/linux/bpf_common.h`` and ``filter.h``; the printed forms are
byte for byte those of ``tcpdump -d``, ``-dd`` and ``-ddd``. Nothing here knows about filters.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

LD: Final = 0x00
LDX: Final = 0x01
ST: Final = 0x02
STX: Final = 0x03
ALU: Final = 0x04
JMP: Final = 0x05
RET: Final = 0x06
MISC: Final = 0x07

W: Final = 0x00
H: Final = 0x08
B: Final = 0x10
SIZES: Final = {4: W, 2: H, 1: B}

IMM: Final = 0x00
ABS: Final = 0x20
IND: Final = 0x40
MEM: Final = 0x60
LEN: Final = 0x80

K: Final = 0x00
X: Final = 0x08

ALU_OPS: Final = {
    "+": 0x00,
    "-": 0x10,
    "*": 0x20,
    "/": 0x30,
    "|": 0x40,
    "&": 0x50,
    "<<": 0x60,
    ">>": 0x70,
    "%": 0x90,
    "^": 0xA0,
}

JA: Final = 0x00
JUMPS: Final = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40}

TAX: Final = 0x00
TXA: Final = 0x80

MAX_INSTRUCTIONS: Final = 4096
"""BPF_MAXINSNS: the longest program the kernel takes."""
MAX_JUMP: Final = 255
"""Conditional jumps count instructions in 8 bits, forward only."""
MEM_WORDS: Final = 16
"""BPF_MEMWORDS: scratch words."""

_LENGTHS: Final = {W: "", H: "h", B: "b"}
_MNEMONICS: Final = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "|": "or",
    "&": "and",
    "<<": "lsh",
    ">>": "rsh",
    "%": "mod",
    "^": "xor",
}
_JUMP_MNEMONICS: Final = {"==": "jeq", ">": "jgt", ">=": "jge", "&": "jset"}
_OF_ALU: Final = {code: sign for sign, code in ALU_OPS.items()}
_OF_JUMP: Final = {code: sign for sign, code in JUMPS.items()}
_HEXADECIMAL: Final = frozenset("|&^")


class Instruction(NamedTuple):
    """One ``struct sock_filter``."""

    code: int
    jt: int
    jf: int
    k: int


def pack(program: Sequence[Instruction]) -> bytes:
    """The program as an array of ``struct sock_filter``, in this machine's byte order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def dump(program: Sequence[Instruction], level: int = 1) -> str:
    """The program as tcpdump prints it: level 1 for ``-d``, 2 for ``-dd``, 3 for ``-ddd``.

    Ends without a newline.
    """
    if level == 1:
        return "\n".join(_image(at, instruction) for at, instruction in enumerate(program))
    if level == 2:
        return "\n".join(f"{{ {code:#x}, {jt}, {jf}, {k:#010x} }}," for code, jt, jf, k in program)
    rows = (f"{code} {jt} {jf} {k}" for code, jt, jf, k in program)
    return "\n".join([str(len(program)), *rows])


def _image(at: int, instruction: Instruction) -> str:
    code, jt, jf, k = instruction
    name, operand = _words(code, k, at)
    line = f"({at:03d}) {name:<8} {operand}"
    if code & 7 == JMP and code & 0xF0 != JA:
        return f"({at:03d}) {name:<8} {operand:<16} jt {at + 1 + jt}\tjf {at + 1 + jf}"
    return line


def _words(code: int, k: int, at: int) -> tuple[str, str]:
    """Mnemonic and operand of one instruction."""
    kind = code & 7
    signed = k - (1 << 32) if k >= 1 << 31 else k
    if kind in (LD, LDX):
        name = "ld" if kind == LD else "ldx"
        mode = code & 0xE0
        if mode == ABS:
            return name + _LENGTHS[code & 0x18], f"[{signed}]"
        if mode == IND:
            return name + _LENGTHS[code & 0x18], f"[x + {signed}]"
        return name, {IMM: f"#0x{k:x}", MEM: f"M[{signed}]", LEN: "#pktlen"}[mode]
    if kind in (ST, STX):
        return "st" if kind == ST else "stx", f"M[{signed}]"
    if kind == ALU:
        sign = _OF_ALU[code & 0xF0]
        constant = f"#0x{k:x}" if sign in _HEXADECIMAL else f"#{signed}"
        return _MNEMONICS[sign], "x" if code & X else constant
    if kind == JMP:
        if code & 0xF0 == JA:
            return "ja", str(at + 1 + signed)
        return _JUMP_MNEMONICS[_OF_JUMP[code & 0xF0]], "x" if code & X else f"#0x{k:x}"
    if kind == RET:
        return "ret", f"#{signed}"
    return ("txa" if code & 0xF8 == TXA else "tax"), ""
