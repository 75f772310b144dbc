"""Splits a validation set off, with every label's share kept."""

import warnings
from dataclasses import replace

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

from pipelines.dataset import Dataset
from pipelines.errors import InputError


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a "val" split; one that is there already stays as it is.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", 2011).

    Raises:
        InputError: too few pictures for a training and a validation set.
    """
    if len(dataset.splits.get("val", ())):
        return dataset
    rows = dataset.splits["train"]
    if len(rows) < 2:
        raise InputError(f"{dataset.root}: {len(rows)} training pictures are too few to split a validation set off")
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=count, random_state=seed)
    targets = dataset.targets[rows]
    targets = np.column_stack([targets, ~targets.any(1)])  # rows without labels keep their share too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of labels with fewer rows than splits
        _, val = next(splitter.split(np.zeros(len(rows)), targets))
    val = np.sort(val)
    if not 0 < len(val) < len(rows):  # few rows without labels: shares cannot be kept, any rows will do
        val = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    train = np.setdiff1d(np.arange(len(rows)), val)
    return replace(dataset, splits={**dataset.splits, "train": rows[train], "val": rows[val]}, split_off=True)
