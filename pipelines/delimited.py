"""Tables of text as people have them: quotes that are never closed, other separators, short and long rows."""

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.accents import composed
from pipelines.errors import InputError, reading
from pipelines.pictures import SUFFIXES

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SAMPLE = 1000  # rows that tell whether the first column only numbers them
PICTURE_COLUMN = re.compile(r"image|img|file|photo|pic|path|(^|[^a-z])ids?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Columns:
    """A table of text: cells a column, short rows filled up with empty cells, what is too much kept in the last one.

    Attributes:
        path: the file.
        header: names of the columns; those after the first that have no name are left out.
        cells: a list a column.
        lines: number of the line, counted from 1, in which each row begins.
        notes: what was odd and how it was read.
    """

    path: Path
    header: tuple[str, ...]
    cells: dict[str, list[str]]
    lines: list[int]
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[str]:
        return self.cells[self.header[0]]


def read_csv(
    path: Path,
    columns: int = 2,
    is_picture: Callable[[str], bool] = lambda name: False,
    pictures: str | None = None,
    header: bool = True,
) -> Columns:
    """The table in a file, of so many columns at least.

    Args:
        path: the file.
        columns: the fewest.
        is_picture: whether a first cell is the name or id of a picture: then a row begins there, whatever quote was
            left open before.
        pictures: the column that names pictures in another table of the data set, and here too, wherever it stands.
        header: whether there must be one; else a first line that begins with the file name of a picture is a row.

    Raises:
        InputError: it cannot be read, is empty, or has too few columns or one twice.
    """
    with reading(path):
        content = path.read_bytes()
    if content.startswith(UTF_16):
        raise InputError(f"{path}: the table is UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", errors="replace")
    lines = list(io.StringIO(text, newline=""))
    separator = max(",;\t", key=lines[0].count) if lines else ","
    records = Records(lines, separator, is_picture)
    try:
        first_row, *rows = list(records) or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from None
    first_lines = records.lines[1:]
    if not header and first_row and first_row[0].strip().lower().endswith(SUFFIXES):
        rows, first_lines = [first_row, *rows], records.lines
        first_row = ["picture", *map(str, range(2, len(first_row) + 1))]
    names = [composed(name.strip()) for name in first_row]
    if not any(names):
        raise InputError(f"{path}: the table is empty")
    if not rows:
        raise InputError(f"{path}: the table has a header and no rows")
    kept = [i for i, name in enumerate(names) if name or not i]
    if len(kept) < columns:
        raise InputError(f"{path}: the table has one column only; a picture's name and its labels are needed")
    notes = [*_encoding(content), *records.notes(), *_even(rows, names, separator, first_lines)]
    first = next((i for i in kept if not _is_nameless(names[i])), kept[0])
    if pictures is not None and pictures in names:
        kept = [names.index(pictures), *(i for i in kept if names[i] not in ("", pictures))]
    elif (
        first != kept[0]
        and len(kept) - kept.index(first) >= columns
        and _numbers_rows(names, rows, kept[0], first, is_picture)
    ):
        kept = kept[kept.index(first) :]
        notes.append(f": the first column numbers the rows; pictures are named by {names[first]!r}")
    named = [names[i] for i in kept]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: the column {twice!r} is there twice")
    cells = {names[i]: [row[i].strip() for row in rows] for i in kept}
    return Columns(path, tuple(named), cells, first_lines, tuple(f"{path.name}{note}" for note in notes))


def _even(rows: list[list[str]], names: list[str], separator: str, lines: list[int]) -> list[str]:
    """Gives each row as many cells as the header has; notes on cells that are put together or left out."""
    width, longer, nameless = len(names), list[int](), list[int]()
    unnamed = [i for i, name in enumerate(names) if i and not name]
    for line, row in zip(lines, rows, strict=True):
        if len(row) < width:
            row += [""] * (width - len(row))
        elif len(row) > width and any(map(str.strip, row[width:])):
            if names[-1]:
                row[width - 1 :] = [separator.join(row[width - 1 :]).rstrip(f"{separator} ")]
                longer.append(line)
            else:
                nameless.append(line)
                continue
        if unnamed and any(row[i].strip() for i in unnamed):
            nameless.append(line)
    notes = {
        "more cells than the header has; they are read as part of the last": longer,
        "cells in columns without a name are left out": nameless,
    }
    return [f", line {found[0]}: {note}{_more(found)}" for note, found in notes.items() if found]


def _is_nameless(column: str) -> bool:
    return not column or column.startswith("Unnamed:")


def _numbers_rows(
    names: list[str], rows: list[list[str]], first: int, second: int, is_picture: Callable[[str], bool]
) -> bool:
    """Whether the first column only numbers the rows, as pandas writes it: it is the second that names the pictures."""
    numbers, pictures = ([row[i].strip() for row in rows[:SAMPLE]] for i in (first, second))
    if not all(map(str.isdecimal, filter(None, numbers))):
        return False
    told = PICTURE_COLUMN.search(names[second]) is not None
    if not told and all(map(str.isdecimal, pictures)) and len({*pictures}) < max(3, len({*numbers})):
        return False  # 0 and 1, or counts, which are ids of pictures by chance
    return sum(map(is_picture, pictures)) >= max(1, sum(map(is_picture, numbers)))


def _encoding(content: bytes) -> list[str]:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [f", line {line}: not UTF-8 (Latin-1?); letters are replaced there: save the table as UTF-8"]
    return []


class Records:
    """Rows of cells. A quote that is never closed must not swallow the rows after it, nor cells of its own row.

    A record that goes over lines which look like rows is left whole if it is written as it should be, with quotes
    closed and as many cells as the header; otherwise it ends where the next row begins.

    Attributes:
        lines: number of the first line of each record, counted from 1.
        short: lines whose cells could not be told apart.
        whole: lines of records that were left whole though they look like several.
    """

    def __init__(self, text: list[str], separator: str, is_picture: Callable[[str], bool]) -> None:
        self.text, self.separator, self.is_picture = text, separator, is_picture
        suffix = "|".join(map(re.escape, SUFFIXES))
        self._begins_row = re.compile(rf"[^{separator}\"\n]+({suffix})\"?\s*{separator}", re.IGNORECASE)
        self.lines: list[int] = []
        self.short: list[int] = []
        self.whole: list[int] = []
        csv.field_size_limit(sys.maxsize)

    def __iter__(self) -> Iterator[list[str]]:
        first = base = width = 0
        reader = csv.reader(self.text, delimiter=self.separator, skipinitialspace=True)
        while (row := next(reader, None)) is not None:
            end = base + reader.line_num
            width = width or len(row)
            follows = self._swallowed(first, end, width) if end - first > 1 else None
            if follows is not None:
                row = self._alone(first, width)
                end = base = follows
                rest = (self.text[i] for i in range(base, len(self.text)))
                reader = csv.reader(rest, delimiter=self.separator, skipinitialspace=True)
            elif len(row) < width and end - first == 1 and '"' in self.text[first]:
                row = self._alone(first, width)
            if any(row):
                self.lines.append(first + 1)
                yield row
            first = end

    def _swallowed(self, first: int, end: int, width: int) -> int | None:
        """The line at which the next row begins inside a record that is not as it should be."""
        inside = next((i for i in range(first + 1, end) if self._begins(self.text[i])), None)
        if inside is None:
            return None
        try:
            (row,) = csv.reader(self.text[first:end], delimiter=self.separator, strict=True, skipinitialspace=True)
        except (csv.Error, ValueError):
            return inside
        if len(row) != width:
            return inside
        self.whole.append(first + 1)
        return None

    def _begins(self, line: str) -> bool:
        if self._begins_row.match(line):
            return True
        cell, separator, _ = line.partition(self.separator)
        return bool(separator) and self.is_picture(cell.strip().strip('"'))

    def _alone(self, line: int, width: int) -> list[str]:
        """A line read for itself; if a quote hides cells, all quotes in it are passed over."""
        (row,) = csv.reader([self.text[line]], delimiter=self.separator, skipinitialspace=True)
        if len(row) < width:
            bare = [cell.strip().strip('"') for cell in self.text[line].split(self.separator)]
            if len(bare) == width:
                return bare
            self.short.append(line + 1)
        return row

    def notes(self) -> Iterator[str]:
        """What was odd, each kind with its first line."""
        if self.short:
            yield f", line {self.short[0]}: cells are missing after a quote that is not closed{_more(self.short)}"
        if self.whole:
            yield f", line {self.whole[0]}: a quoted cell has lines in it that look like rows{_more(self.whole)}"


def _more(lines: list[int]) -> str:
    return f" ({len(lines) - 1:,} more rows are like it)" if len(lines) > 1 else ""
