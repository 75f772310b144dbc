"""A data set in memory: file names, multi-hot labels, splits. Every reader gives one; everything later takes it."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from natsort import natsorted
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.shards import size_and_time

Layout = Literal["auto", "table", "coco", "voc", "webdataset"]

SPLITS = ("train", "val", "test")
NAMED = 10  # rejected pictures that the user is told by name


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is left out: its picture's name as the data set has it, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pictures with labels. Rows are numbered over all splits; a row number is how a picture is known everywhere.

    Attributes:
        root: folder that the file names start from.
        layout: "table", "coco", "voc" or "webdataset".
        labels: label names; their order is the order of the network's outputs.
        files: a path a row, relative to root; in a shard, as `shards` has it.
        targets: bool [rows, labels], True where the picture has the label.
        splits: row numbers (int64) of "train", and of "val" and "test" where there are any.
        rejected: rows that the reader or the check left out.
        notes: what a reader noticed and settled by itself, a line each.
        split_off: whether "val" was drawn from what was to train on, and not given.
    """

    root: Path
    layout: str
    labels: tuple[str, ...]
    files: tuple[str, ...]
    targets: NDArray[np.bool_]
    splits: dict[str, NDArray[np.int64]]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()
    split_off: bool = False

    def without(self, bad: Sequence[tuple[int, str]]) -> "Dataset":
        """The data set without the given (row, reason) pairs; later rows move up."""
        if not bad:
            return self
        reasons = dict(bad)
        keep = np.ones(len(self.files), bool)
        keep[list(reasons)] = False
        renumbered = np.cumsum(keep) - 1
        return replace(
            self,
            files=tuple(file for file, kept in zip(self.files, keep, strict=True) if kept),
            targets=self.targets[keep],
            splits={name: renumbered[rows[keep[rows]]] for name, rows in self.splits.items()},
            rejected=self.rejected + tuple(Rejected(self.files[row], why) for row, why in reasons.items()),
        )

    def left_out(self) -> list[str]:
        """Lines for the user: the first of the rejected rows by name, and how many there are."""
        lines = [f"left out: {rejected.file}: {rejected.reason}" for rejected in self.rejected[:NAMED]]
        more = len(self.rejected) > NAMED
        return [*lines, *[f"left out: {len(self.rejected):,} pictures in all"] * more]

    def told(self) -> list[str]:
        """Lines for the user: what a reader settled by itself, and what is left out."""
        return [*(f"note: {note}" for note in self.notes), *self.left_out()]

    def fingerprint(self) -> str:
        """SHA-256 over label names, file names, file sizes, targets and splits; changes when the data set does."""
        digest = hashlib.sha256()
        for text in ("\n".join(self.labels), "\n".join(self.files)):
            digest.update(text.encode("utf-8", "surrogateescape"))
            digest.update(b"\0")
        root = os.fspath(self.root)
        sizes = np.fromiter((size_and_time(f"{root}/{file}")[0] for file in self.files), np.int64, len(self.files))
        digest.update(sizes.tobytes())
        digest.update(np.packbits(self.targets).tobytes())
        for name in sorted(self.splits):
            digest.update(name.encode() + self.splits[name].tobytes())
        return digest.hexdigest()

    def summary(self) -> str:
        """One line: pictures, labels, labels a picture, rarest and most frequent training label, split sizes."""
        counts = self.targets[self.splits["train"]].sum(0)
        rarest, most = int(counts.argmin()), int(counts.argmax())
        sizes = ", ".join(f"{name} {len(self.splits[name]):,}" for name in SPLITS if name in self.splits)
        return (
            f"{self.layout}: {len(self.files):,} pictures, {len(self.labels)} labels, "
            f"{self.targets.sum() / max(1, len(self.files)):.2f} a picture; in train, rarest "
            f"{self.labels[rarest]!r} {counts[rarest]:,}, most frequent {self.labels[most]!r} {counts[most]:,}; {sizes}"
        )


def label_order(names: Iterable[str]) -> tuple[str, ...]:
    """Label names once each in natural order ("2" before "10")."""
    return tuple(natsorted(set(names)))


def multi_hot(rows: Sequence[Iterable[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Label names a row to a bool matrix [rows, labels].

    Raises:
        KeyError: a name that is not among the labels.
    """
    column = {name: i for i, name in enumerate(labels)}
    number: dict[frozenset[str], int] = {}  # far fewer kinds of rows than rows
    kinds = [number.setdefault(frozenset(names), len(number)) for names in rows]
    targets = np.zeros((len(number), len(labels)), bool)
    for names, kind in number.items():
        targets[kind, [column[name] for name in names]] = True
    return targets[np.array(kinds, np.int64)]


def require_rows(dataset: Dataset) -> Dataset:
    """The data set, if it has something to train on.

    Raises:
        InputError: no training picture, or no label at all.
    """
    if not len(dataset.splits.get("train", ())):
        raise InputError(f"{dataset.root}: no training pictures are left")
    if not dataset.labels:
        raise InputError(f"{dataset.root}: none of the pictures has a label")
    return dataset
