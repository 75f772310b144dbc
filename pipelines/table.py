"""Reader of the table layout: train.csv, optional val.csv and test.csv, pictures in a folder beside them.

The first column names the picture. Labels are either one column of names (separated by `|`, `;`, `,` or blanks) or
one 0/1 column a label. Any further columns, captions with commas, line breaks and stray quotes among them, are ignored.
A `labels.txt` (a name a line) fixes the labels and their order; without it they are those of train.csv.
"""

import csv
import gc
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset import SPLITS, Dataset, Rejected, label_order, merged_rows, multi_hot, shared_between_splits
from pipelines.errors import InputError
from pipelines.pictures import SUFFIXES, PictureFolders

LABEL_COLUMNS = ("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "keywords")
PICTURE_FOLDERS = ("images", "data", "train", ".")
ZERO_ONE = {"0": False, "0.0": False, "0.00": False, "false": False, "": False}
ZERO_ONE |= {"1": True, "1.0": True, "1.00": True, "true": True}
ODD = 0.1  # share of other values up to which a column of 0 and 1 has mistakes in it
LONGEST_CELL = 1 << 27  # characters


def read_table(root: Path) -> Dataset:
    """Reads the table layout from its folder.

    Raises:
        InputError: an unreadable or empty table, no column of labels, or a label or column that train.csv lacks.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of cells and no circles among them: looking for some takes half of the time
    try:
        return _read_table(root)
    finally:
        if collecting:
            gc.enable()


def _read_table(root: Path) -> Dataset:
    tables = {name: read_csv(root / f"{name}.csv") for name in SPLITS if (root / f"{name}.csv").is_file()}
    column = _label_column(tables["train"])
    if column is not None:
        labels, names = _labels_by_name(root, tables, column)
    else:
        labels, names = _labels_by_column(tables)

    files: list[str] = []
    rows_labels: list[frozenset[str]] = []
    splits: dict[str, np.ndarray] = {}
    rejected: list[Rejected] = []
    notes: list[str] = []
    for split, table in tables.items():
        folders = PictureFolders(root, (split, *PICTURE_FOLDERS))  # its own folder first: names may repeat in others
        row_of: dict[str, int] = {}
        merged = 0
        for name, row_labels in zip(table.pictures, names[split], strict=True):
            file = folders.find(name)
            if file is None:
                rejected.append(Rejected(name or "(empty name)", folders.why_not(name)))
            elif file in row_of:
                merged += 1
                rows_labels[row_of[file]] |= row_labels
            else:
                row_of[file] = len(files)
                files.append(file)
                rows_labels.append(row_labels)
        splits[split] = np.array(list(row_of.values()), np.int64)
        if merged:
            notes.append(merged_rows(split, merged))
    notes += shared_between_splits(files, splits)
    return Dataset(
        root, "table", labels, tuple(files), multi_hot(rows_labels, labels), splits, tuple(rejected), tuple(notes)
    )


@dataclass(frozen=True, slots=True)
class Columns:
    """A table of text: cells a column, short rows filled up with empty cells."""

    header: tuple[str, ...]
    cells: dict[str, list[str]]

    @property
    def pictures(self) -> list[str]:
        return self.cells[self.header[0]]


def read_csv(path: Path, columns: int = 2) -> Columns:
    """The table in a file, of so many columns at least.

    Raises:
        InputError: it cannot be read, is empty, or has too few columns or one twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    lines = list(io.StringIO(text, newline=""))
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        header, *rows = _records(lines, separator) or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from None
    names = [name.strip() for name in header]
    if not any(names):
        raise InputError(f"{path}: the table is empty")
    if not rows:
        raise InputError(f"{path}: the table has a header and no rows")
    if sum(map(bool, names[1:])) + 1 < columns:
        raise InputError(f"{path}: the table has one column only; a picture's name and its labels are needed")
    named = [i for i, name in enumerate(names) if name or i == 0]  # spreadsheets leave columns without a name
    twice = next((names[i] for i in named if names.count(names[i]) > 1 and names[i]), None)
    if twice is not None:
        raise InputError(f"{path}: the column {twice!r} is there twice")
    for row in rows:
        if len(row) < len(names):
            row += [""] * (len(names) - len(row))
    return Columns(tuple(names[i] for i in named), {names[i]: [row[i].strip() for row in rows] for i in named})


def _records(lines: list[str], separator: str) -> list[list[str]]:
    """Rows of cells. A stray quote must not swallow the rows after it: such a row is read again, line by line."""
    begins_row = _row_start(lines, separator)
    csv.field_size_limit(LONGEST_CELL)
    rows: list[list[str]] = []
    reader, first = csv.reader(lines, delimiter=separator), 0
    while (row := _next_record(reader)) is not None:
        swallowed = [i for i in range(first + 1, reader.line_num) if begins_row.match(lines[i])]
        starts = [first, *swallowed]
        if swallowed:
            rows += [_record(lines[i], separator, len(rows[0]) if rows else 0) for i in starts]
        elif any(row):
            rows.append(row)
        first = reader.line_num
    return rows


def _row_start(lines: list[str], separator: str) -> re.Pattern[str]:
    """What a row of this table begins with: a picture's file name, or a number where most lines begin with one."""
    number = re.compile(rf"\s*\d+\s*{separator}")
    if sum(number.match(line) is not None for line in lines) > len(lines) / 2:
        return number
    suffix = "|".join(map(re.escape, SUFFIXES))
    return re.compile(rf"[^{separator}\"\n]+({suffix})\"?\s*{separator}", re.IGNORECASE)


def _record(line: str, separator: str, columns: int) -> list[str]:
    """The cells of a line with a stray quote, which is no more than a character where the cells come out right so."""
    row = next(csv.reader([line], delimiter=separator))
    if len(row) < columns:
        plain = next(csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE))
        return plain if len(plain) == columns else row
    return row


def _next_record(reader: Any) -> list[str] | None:
    row: list[str] | None = next(reader, None)
    return row


def _label_column(table: Columns) -> str | None:
    """The column of label names; None where there is one 0/1 column a label instead."""
    known = [column for column in table.header[1:] if column.lower() in LABEL_COLUMNS]
    zero_one = _zero_one_columns(table)
    if known and set(zero_one) <= set(known[:1]):  # alone, a column of labels may hold labels called 0 and 1
        return known[0]
    if zero_one and not set(known) - set(zero_one):
        return None
    if known:
        return next(column for column in known if column not in zero_one)
    raise InputError(
        f"train.csv: no column of labels among {', '.join(map(repr, table.header[1:]))}; "
        f"call it 'labels', or give one 0/1 column a label"
    )


def _is_zero_one(values: Sequence[str]) -> bool:
    return all(value.lower() in ZERO_ONE for value in set(values))


def _zero_one_columns(table: Columns) -> list[str]:
    return [name for name in table.header[1:] if any(table.cells[name]) and _is_zero_one(table.cells[name])]


def _labels_by_name(
    root: Path, tables: dict[str, Columns], column: str
) -> tuple[tuple[str, ...], dict[str, list[frozenset[str]]]]:
    for split, table in tables.items():
        if column not in table.header:
            raise InputError(f"{split}.csv: column {column!r} is missing; train.csv has its labels there")
    cells = {split: table.cells[column] for split, table in tables.items()}
    everything = [cell for values in cells.values() for cell in values]
    separator = next((mark for mark in "|;," if any(mark in cell for cell in everything)), None)
    cache: dict[str, frozenset[str]] = {}

    def split_cell(cell: str) -> frozenset[str]:
        if cell not in cache:
            cache[cell] = frozenset(part.strip() for part in cell.split(separator) if part.strip())
        return cache[cell]

    names = {split: [split_cell(cell) for cell in values] for split, values in cells.items()}
    fixed = root / "labels.txt"
    if fixed.is_file():
        lines = fixed.read_text(encoding="utf-8-sig").splitlines()
        labels = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    else:
        labels = label_order(name for row in set(names["train"]) for name in row)
    known = frozenset(labels)
    for split, rows in names.items():
        for picture, row in zip(tables[split].pictures, rows, strict=True):
            if not row <= known:
                unknown = sorted(row - known)[0]
                where = "labels.txt" if fixed.is_file() else "train.csv"
                raise InputError(f"{split}.csv: {picture} has the label {unknown!r}, which {where} does not have")
    return labels, names


def _refuse_odd_cells(table: Columns, labels: tuple[str, ...]) -> None:
    """A column of 0 and 1 with a few other values in it is a label with mistakes, not a column to ignore.

    Raises:
        InputError: names the first of them.
    """
    for name in table.header[1:]:
        counts = {} if name in labels else Counter(table.cells[name])
        odd = {value for value in counts if value.lower() not in ZERO_ONE}
        if odd and sum(counts[value] for value in odd) <= ODD * len(table.cells[name]):
            row = next(i for i, value in enumerate(table.cells[name]) if value in odd)
            raise InputError(
                f"train.csv: column {name!r} holds 0 and 1, but for {table.cells[name][row]!r} "
                f"at {table.pictures[row]}; a label takes 0 and 1 only"
            )


def _labels_by_column(
    tables: dict[str, Columns],
) -> tuple[tuple[str, ...], dict[str, list[frozenset[str]]]]:
    labels = tuple(_zero_one_columns(tables["train"]))
    _refuse_odd_cells(tables["train"], labels)
    names: dict[str, list[frozenset[str]]] = {}
    for split, table in tables.items():
        missing = [label for label in labels if label not in table.header]
        if missing:
            raise InputError(f"{split}.csv: column {missing[0]!r} is missing; it is a label in train.csv")
        for label in labels:
            if not _is_zero_one(table.cells[label]):
                raise InputError(f"{split}.csv: column {label!r} is a label and may hold 0 and 1 only")
        if split != "train":
            unknown = [column for column in _zero_one_columns(table) if column not in tables["train"].header]
            if unknown:
                raise InputError(f"{split}.csv: column {unknown[0]!r} is unknown; train.csv does not have it")
        kinds: dict[tuple[str, ...], frozenset[str]] = {}  # far fewer than rows
        names[split] = []
        for row in zip(*(table.cells[label] for label in labels), strict=True):
            if row not in kinds:
                kinds[row] = frozenset(n for n, cell in zip(labels, row, strict=True) if ZERO_ONE[cell.lower()])
            names[split].append(kinds[row])
    return labels, names
