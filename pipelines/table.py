"""Reader of the table layout: train.csv, optional val.csv and test.csv, pictures in a folder beside them.

The first column names the picture. Labels are either one column of names (separated by `|`, `;`, `,` or blanks, or a
list) or one 0/1 column a label. Any further columns, captions with commas, line breaks and stray quotes among them, are
ignored. A `labels.txt` (a name a line) fixes the labels and their order; without it they are those of train.csv.
"""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.dataset import SPLITS, Dataset, Rejected, label_order
from pipelines.delimited import Columns, read_csv
from pipelines.errors import InputError
from pipelines.fixed_labels import fixed_labels
from pipelines.label_cells import parted
from pipelines.pictures import PictureFolders
from pipelines.rows import Rows

LABEL_COLUMNS = ("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "keywords")
PICTURE_FOLDERS = ("images", "data", "train", ".")
NAMED = 10  # columns that a note lists
ODD = 0.1  # share of cells up to which a column that is 0/1 otherwise is taken for a label with mistakes in it
WORDS = {"false": False, "true": True, "": False}

Counts = dict[str, tuple[int, int]]  # of each column but the first: filled cells, and those of them that are not 0/1


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
    present = [name for name in SPLITS if (root / f"{name}.csv").is_file()]
    # A split's own folder first: names may repeat in others.
    folders = {split: PictureFolders(root, (split, *PICTURE_FOLDERS)) for split in present}
    tables: dict[str, Columns] = {}
    for split in present:
        pictures = tables["train"].header[0] if "train" in tables else None
        tables[split] = read_csv(root / f"{split}.csv", is_picture=folders[split].has, pictures=pictures)
    counts = _counts(tables["train"])
    fixed = fixed_labels(root)
    column = None if fixed and set(fixed) <= set(_zero_one_columns(counts)) else _label_column(tables["train"], counts)
    if column is not None:
        labels, names, notes = _labels_by_name(tables, column, fixed)
        notes += _passed_over(counts, column)
    else:
        labels, names = _labels_by_column(tables, counts, fixed)
        notes = _no_labels(counts, labels)

    rows = Rows()
    for split, table in tables.items():
        rows.notes += table.notes
        before = len(rows.rejected)
        rows.add(split, _found(table, names[split], folders[split], rows.rejected), f"{split}.csv")
        if split != "train" and len(rows.rejected) - before == len(table.pictures):
            rows.notes.append(f"{split}.csv: none of its pictures is there, so it is left out")
    rows.notes += notes
    return rows.dataset(root, "table", labels)


def _found(
    table: Columns, names: list[frozenset[str]], folders: PictureFolders, rejected: list[Rejected]
) -> Iterator[tuple[str, frozenset[str]]]:
    for name, row_labels in zip(table.pictures, names, strict=True):
        file = folders.find(name)
        if file is None:
            rejected.append(Rejected(name or "(empty name)", folders.why_not(name)))
        else:
            yield file, row_labels


def _no_labels(counts: Counts, labels: Iterable[str]) -> list[str]:
    """Notes on the columns beside the 0/1 columns that are labels."""
    others = set(counts).difference(labels)
    mostly = {name for name in others if 2 * counts[name][1] < counts[name][0]}
    found = {"no labels, since not 0/1": others - mostly, "mostly but not only 0/1, so no labels": mostly}
    in_order = {why: [repr(name) for name in counts if name in names] for why, names in found.items() if names}
    return [f"train.csv: {why}: {_first(names)}" for why, names in in_order.items()]


def _passed_over(counts: Counts, column: str) -> list[str]:
    """A note on other columns that might have been the labels."""
    flags = set(_zero_one_columns(counts, 0))
    others = [repr(name) for name in counts if name != column and (name in flags or name.lower() in LABEL_COLUMNS)]
    if not others:
        return []
    return [f"train.csv: labels are those of column {column!r}; passed over: {_first(others)}"]


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _label_column(table: Columns, counts: Counts) -> str | None:
    """The column of label names; None where there is one 0/1 column a label instead."""
    known = [column for column in table.header[1:] if column.lower() in LABEL_COLUMNS]
    zero_one = _zero_one_columns(counts, 0 if known else ODD)
    if known and set(zero_one) <= set(known[:1]):  # alone, a column of labels may hold labels called 0 and 1
        return known[0]
    if zero_one and not set(known) - set(zero_one):
        return None
    if known:
        return next(column for column in known if column not in zero_one)
    raise InputError(
        f"{table.path}: no column of labels among {', '.join(map(repr, table.header[1:]))}; "
        f"call it 'labels', or give one 0/1 column a label"
    )


def _zero_one(cell: str) -> bool | None:
    """What a cell of a 0/1 column says, 1.00 and true included; None if nothing of the kind."""
    if (word := cell.lower()) in WORDS:
        return WORDS[word]
    try:
        return {0.0: False, 1.0: True}.get(float(cell))
    except ValueError:
        return None


def _counts(table: Columns) -> Counts:
    found = {}
    for name in table.header[1:]:
        cells = Counter(table.cells[name])
        odd = sum(count for cell, count in cells.items() if cell and _zero_one(cell) is None)
        found[name] = (len(table.cells[name]) - cells[""], odd)
    return found


def _zero_one_columns(counts: Counts, tolerated: float = ODD) -> list[str]:
    """Columns that have 0 and 1 only, but for a share of the cells (and one cell at least, if any is tolerated)."""
    return [
        name
        for name, (filled, odd) in counts.items()
        if filled - odd > (1 if odd else 0) and odd <= (tolerated and max(1, tolerated * filled))
    ]


def _meaning(table: Columns, label: str) -> dict[str, bool]:
    """Of the cells of a 0/1 column.

    Raises:
        InputError: a cell is neither.
    """
    meaning = {cell: _zero_one(cell) for cell in set(table.cells[label])}
    if None in meaning.values():
        row = next(i for i, cell in enumerate(table.cells[label]) if meaning[cell] is None)
        raise InputError(
            f"{table.path}: column {label!r} is a label and may hold 0 and 1 only; "
            f"line {table.lines[row]} has {table.cells[label][row]!r}; correct it, or take the column out of the table"
        )
    return {cell: bool(said) for cell, said in meaning.items()}


def _labels_by_name(
    tables: dict[str, Columns], column: str, fixed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, list[frozenset[str]]], list[str]]:
    for table in tables.values():
        if column not in table.header:
            raise InputError(f"{table.path}: column {column!r} is missing; train.csv has its labels there")
    cells = {split: table.cells[column] for split, table in tables.items()}
    try:
        labels_of, notes = parted(set[str]().union(*cells.values()), frozenset(fixed or ()))
    except InputError as error:
        raise InputError(f"{tables['train'].path}: column {column!r}: {error}") from None
    names = {split: [labels_of[cell] for cell in values] for split, values in cells.items()}
    labels = label_order(name for row in set(names["train"]) for name in row) if fixed is None else fixed
    known = frozenset(labels)
    for split, rows in names.items():
        for picture, row in zip(tables[split].pictures, rows, strict=True):
            if not row <= known:
                unknown = sorted(row - known)[0]
                where = "train.csv" if fixed is None else "labels.txt"
                path = tables[split].path
                raise InputError(f"{path}: {picture} has the label {unknown!r}, which {where} does not have")
    return labels, names, [f"column {column!r}: {note}" for note in notes]


def _labels_by_column(
    tables: dict[str, Columns], counts: Counts, fixed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, list[frozenset[str]]]]:
    labels = tuple(_zero_one_columns(counts)) if fixed is None else fixed
    told = "train.csv" if fixed is None else "labels.txt"
    names: dict[str, list[frozenset[str]]] = {}
    for split, table in tables.items():
        missing = [label for label in labels if label not in table.header]
        if missing:
            raise InputError(f"{table.path}: column {missing[0]!r} is missing; it is a label in {told}")
        if split != "train" and fixed is None:
            unknown = [column for column in _zero_one_columns(_counts(table)) if column not in tables["train"].header]
            if unknown:
                raise InputError(f"{table.path}: column {unknown[0]!r} is unknown; train.csv does not have it")
        meanings = [_meaning(table, label) for label in labels]
        kinds: dict[tuple[str, ...], frozenset[str]] = {}  # far fewer than rows
        names[split] = []
        for row in zip(*(table.cells[label] for label in labels), strict=True):
            if row not in kinds:
                on = (label for label, meaning, cell in zip(labels, meanings, row, strict=True) if meaning[cell])
                kinds[row] = frozenset(on)
            names[split].append(kinds[row])
    return labels, names
