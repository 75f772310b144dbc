"""Reads a data set of any known layout, and checks it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipelines.check import TOLERATED, undecodable
from pipelines.coco import read_coco
from pipelines.dataset import Dataset, Layout, Rejected, require_rows
from pipelines.errors import InputError, reading
from pipelines.split import with_validation
from pipelines.table import read_table
from pipelines.voc import read_voc
from pipelines.webdataset import read_webdataset

READERS = {"table": read_table, "coco": read_coco, "voc": read_voc, "webdataset": read_webdataset}


def read_dataset(
    root: Path,
    layout: Layout = "auto",
    val_fraction: float = 0.1,
    seed: int = 0,
    allow_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    known_bad: Mapping[str, str] | None = None,
) -> Dataset:
    """The data set in a folder: read, checked, split.

    Rows whose picture is missing or is known not to decode are left out and listed in `rejected`. `progress` is called
    with (done, total) while pictures are checked. `known_bad`, files and reasons as a run has them, stands in place of
    the check: what was found out since changes nothing.

    Raises:
        InputError: no such folder, no known layout, a broken table, or more than 5 % bad rows without `allow_bad`.
    """
    dataset = read_layout(root, layout)
    if len(dataset.splits.get("train", ())) > 1 and dataset.labels:
        # Before the check, so that what is found out later moves no picture between the splits.
        dataset = with_validation(dataset, val_fraction, seed)
    known = known_bad or {}
    if known_bad is None:
        dataset = dataset.without(undecodable(dataset.root, dataset.files, progress))
    else:
        dataset = dataset.without([(i, known[file]) for i, file in enumerate(dataset.files) if file in known])
    if not allow_bad:
        require_pictures(dataset, [row for row in dataset.rejected if row.file not in known])
    return with_validation(require_rows(dataset), val_fraction, seed)


def require_pictures(dataset: Dataset, bad: Sequence[Rejected]) -> None:
    """Raises InputError if more than 5 % of the rows are bad."""
    rows = len(dataset.files) + len(dataset.rejected)
    if len(bad) > TOLERATED * rows:
        first = "; ".join(f"{row.file}: {row.reason}" for row in bad[:3])
        raise InputError(
            f"{dataset.root}: {len(bad):,} of {rows:,} rows have no usable picture ({first}"
            f"{'; ...' if len(bad) > 3 else ''}){'; --allow-bad goes on with the rest' if len(bad) < rows else ''}"
        )


def read_layout(root: Path, layout: Layout = "auto") -> Dataset:
    """The data set as its tables have it, pictures found but not opened.

    Raises:
        InputError: no such folder, no known layout, or a broken table.
    """
    with reading(root):
        if not root.exists():
            raise InputError(f"{root}: no such folder")
        if not root.is_dir():
            raise InputError(f"{root}: not a folder; give the folder that holds the table and the pictures")
        if layout == "auto":
            layout = _detect(root)
        if layout == "table" and not (root / "train.csv").is_file():
            raise InputError(f"{root}: no train.csv")
        if layout == "coco" and not (root / "annotations").is_dir():
            raise InputError(f"{root}: no folder annotations")
        if layout == "webdataset" and not any(root.glob("train-*.tar")):
            raise InputError(f"{root}: no train-*.tar")
        return READERS[layout](root)


def _detect(root: Path) -> Layout:
    layout = _layout(root)
    if layout is None:
        near = _near(root)
        raise InputError(
            f"{root}: neither train.csv nor annotations/*.json nor JPEGImages/ with Annotations/ nor train-*.tar is "
            f"there{f'; {near} looks like a data set' if near is not None else ''}"
        )
    return layout


def _layout(root: Path) -> Layout | None:
    if (root / "train.csv").is_file():
        return "table"
    if any((root / "annotations").glob("*.json")):
        return "coco"
    if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return "voc"
    if any(root.glob("train-*.tar")):
        return "webdataset"
    return None


def _near(root: Path) -> Path | None:
    """The data set that was meant: archives have folders around it (VOCdevkit/VOC2012), and it has some inside."""
    with contextlib.suppress(OSError):  # folders that are closed to us, and are not what was asked for
        inside = (folder for pattern in ("*/", "*/*/") for folder in sorted(root.glob(pattern)))
        return next((folder for folder in (*inside, root.parent) if folder.is_dir() and _layout(folder)), None)
    return None
