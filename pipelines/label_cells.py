"""Cells of several labels: what stands between them, and lists as programs write them into a table."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable

from pipelines.accents import composed
from pipelines.errors import InputError

MARKS = "|;,"
EMPTY = ("[]", "()", "{}", "set()")
NOTHING = ("nan", "None", "null")
_LIST = re.compile(r"\[.*\]|\(.*\)|\{.*\}|set\(\)", re.DOTALL)
_QUOTED = re.compile(r"""[\[({,\s]\s*["']""")
_NUMPY = re.compile(r"""np\.str_\(((["']).*?\2)\)""")
_FLAGS = re.compile(r"\s*[01](?:[\s,]+[01]){2,}[\s,]*")
_ITEM = re.compile(r"""(["'])(.*?)\1(?=[\s,]|$)|[^\s,]+""", re.DOTALL)


def parted(cells: Collection[str], known: frozenset[str]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """The labels in each of the cells, and notes on what is guessed.

    Args:
        cells: as they stand in the table.
        known: labels that are fixed beforehand: a cell that is one of them as a whole is not parted, and nothing is
            noted, since a label that is none of them is an error anyway.

    Raises:
        InputError: lists that do not name labels.
    """
    whole = {cell: frozenset((name,)) for cell in cells if (name := composed(cell)) in known}
    texts = {cell: cell for cell in cells if cell not in whole}
    quoted = {cell for cell in texts if _LIST.fullmatch(cell) and (_QUOTED.search(cell) or cell in EMPTY)}
    filled = [cell for cell in texts if cell and cell not in NOTHING]
    if 2 * len(quoted) > len(filled):  # lists, but for some that are written otherwise
        lists = {cell: _items(cell) for cell in quoted}
        rest, notes = parted([cell for cell in filled if cell not in quoted], known)
        return whole | dict.fromkeys(texts, frozenset[str]()) | lists | rest, notes
    if _are_lists(texts):
        texts = {cell: cell[1:-1] for cell in texts}
        if any(map(_FLAGS.fullmatch, texts.values())):
            raise InputError("its cells are lists of 0 and 1; give the labels' names, or a column of 0 and 1 a label")
    marks = [mark for mark in MARKS if any(mark in text for text in texts.values())]
    separator = marks[0] if marks else None
    labels = {cell: _names(text.split(separator)) for cell, text in texts.items()}
    return whole | labels, [] if known else _notes(marks, texts.values())


def _are_lists(cells: Collection[str]) -> bool:
    """Whether all are lists without quotes, not names that have brackets themselves."""
    if not any(cells) or not all(cell[0] == "[" and cell[-1] == "]" for cell in cells if cell):
        return False
    return not any(mark in cell[1:-1] for cell in cells for mark in "[]")


def _items(cell: str) -> frozenset[str]:
    """Of a list as Python, JSON or numpy writes it."""
    if cell in EMPTY:
        return frozenset()
    plain = _NUMPY.sub(r"\1", cell[1:-1])
    return _names(_unescaped(item[2]) if item[1] else item[0] for item in _ITEM.finditer(plain))


def _unescaped(text: str) -> str:
    with contextlib.suppress(ValueError):  # no text of JSON, whose letters may be numbers
        return str(json.loads(f'"{text}"'))
    return text


def _names(parts: Iterable[str]) -> frozenset[str]:
    return frozenset(composed(name) for part in parts if (name := part.strip()))


def _more_blanks(mark: str, texts: Iterable[str]) -> bool:
    """Whether more cells have blanks and no mark than have the mark: a remark may have brought it in."""
    counts = Counter(mark in text for text in texts if mark in text or " " in text)
    return counts[False] > counts[True]


def _notes(marks: list[str], texts: Collection[str]) -> list[str]:
    if marks and _more_blanks(marks[0], texts):
        return [f"labels are separated by {marks[0]!r}, which few cells have; blanks in the others stay part of labels"]
    if len(marks) > 1:
        others = f"{' and '.join(map(repr, marks[1:]))} {'stay' if marks[2:] else 'stays'}"
        return [f"labels are separated by {marks[0]!r}; {others} part of them"]
    if not marks and any(len(text.split()) > 1 and not text.replace(" ", "").isdecimal() for text in texts):
        return ["labels are separated by blanks; for names with blanks put | between labels or list them in labels.txt"]
    return []
