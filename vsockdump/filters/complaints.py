"""What is wrong with an expression, said under the expression itself.

Strategy: every complaint is one sentence, then the line of the expression it is about, then a caret
below the word. Invariants: the caret stands below the first character of the word, whatever the
expression holds (characters that do not print are shown as one ``?`` each); a complaint is never
longer than a few lines, however long the expression is; words of the user are quoted and cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vsockdump.errors import FilterError
from vsockdump.filters import names

WINDOW: Final = 72
"""Columns of the expression shown around the caret: a terminal's width, less the indent."""
_LONGEST_WORD: Final = 40
_INDENT: Final = "  "
_CUT: Final = "..."
_WORD: Final = re.compile(r"[\w.-]+")


def complaint(text: str, column: int, length: int, reason: str) -> FilterError:
    """The error that ``reason`` is, about ``length`` characters of ``text`` at ``column``."""
    column = min(column, len(text))
    before = text.rfind("\n", 0, column) + 1
    behind = text.find("\n", column)
    line = _printable(text[before : behind if behind >= 0 else len(text)])
    caret = column - before
    first = max(0, min(caret - WINDOW // 2, len(line) - WINDOW))
    shown = line[first : first + WINDOW]
    caret -= first
    if first:
        shown = _CUT + shown[len(_CUT) :]
    if first + WINDOW < len(line):
        shown = shown[: -len(_CUT)] + _CUT
    mark = "^" * max(1, min(length, len(shown) - caret))
    number = text.count("\n", 0, column) + 1
    where = f"line {number}: " if "\n" in text.rstrip("\n") else ""
    lines = [f"{where}{reason}"]
    if text.strip():
        lines += [f"{_INDENT}{shown}".rstrip(), f"{_INDENT}{' ' * caret}{mark}"]
    return FilterError("\n".join(lines), column=column)


def complaint_at(text: str, column: int, reason: str) -> FilterError:
    """The same about the word that starts at ``column``."""
    word = _WORD.match(text, column)
    return complaint(text, column, len(word[0]) if word else 1, reason)


def quoted(word: str) -> str:
    """A word of the user's as it may be printed inside a sentence."""
    if len(word) > _LONGEST_WORD:
        word = word[: _LONGEST_WORD - len(_CUT)] + _CUT
    return f"'{_printable(word)}'"


def listed(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def perhaps(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'port'?`` if a known word is near, else nothing."""
    near = names.nearest(word, known)
    return f"; did you mean '{near}'?" if near is not None else ""


def in_lines(word: str) -> str:
    """What a filter has for a word of the printed lines; nothing if it is none of theirs."""
    said = names.IN_LINES.get(names.plain(word))
    return f"; {said}" if said is not None else ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
