"""The rows of a data set in the making: a picture stands once in a split, with all labels that it is given there."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines.dataset import Dataset, Rejected, multi_hot


class Rows:
    """Gathers what a reader finds, in its order.

    Attributes:
        rejected: rows without a usable picture.
        notes: what was settled on the way.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.names: list[frozenset[str]] = []
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self._splits: dict[str, dict[str, int]] = {}

    def add(self, split: str, pictures: Iterable[tuple[str, frozenset[str]]], source: str) -> None:
        """Adds (file, label names) to a split; `source` is the file that has them."""
        row_of = self._splits.setdefault(split, {})
        merged = 0
        for file, names in pictures:
            if file in row_of:
                merged += 1
                self.names[row_of[file]] |= names
            else:
                row_of[file] = len(self.files)
                self.files.append(file)
                self.names.append(names)
        if merged:
            rows = "row of a picture was" if merged == 1 else "rows of pictures were"
            self.notes.append(f"{source}: {merged:,} further {rows} merged with the first one")

    def dataset(self, root: Path, layout: str, labels: tuple[str, ...]) -> Dataset:
        """All rows; pictures of other splits that are in train too are noted."""
        train = self._splits.get("train", {})
        for split, row_of in self._splits.items():
            shared = 0 if split == "train" else sum(file in train for file in row_of)
            if shared:
                self.notes.append(f"{split}: {shared:,} {'picture is' if shared == 1 else 'pictures are'} in train too")
        splits = {split: np.array(list(row_of.values()), np.int64) for split, row_of in self._splits.items()}
        targets = multi_hot(self.names, labels)
        rejected, notes = tuple(self.rejected), tuple(self.notes)
        return Dataset(root, layout, labels, tuple(self.files), targets, splits, rejected, notes)
