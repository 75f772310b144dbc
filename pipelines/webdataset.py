"""Reader of WebDataset shards: train-*.tar, optional val-*.tar and test-*.tar, as `pipelines.pack` writes them.

A sample is a picture and a .json beside it that has its labels: {"labels": ["cat", "dog"]}. A `labels.txt` (a name a
line) fixes the labels and their order.
"""

import json
from pathlib import Path

import numpy as np

from pipelines.accents import composed
from pipelines.dataset import SPLITS, Dataset, Rejected, label_order, multi_hot
from pipelines.errors import InputError
from pipelines.fixed_labels import fixed_labels
from pipelines.pictures import SUFFIXES
from pipelines.shards import Member, members, read, without_location


def read_webdataset(root: Path) -> Dataset:
    """Reads the shards of a folder: their indices and the labels, no picture.

    Raises:
        InputError: no training shards, a broken shard or index, or a label that labels.txt lacks.
    """
    files: list[str] = []
    names: list[frozenset[str]] = []
    rejected: list[Rejected] = []
    splits: dict[str, np.ndarray] = {}
    for split in SPLITS:
        first = len(files)
        for shard in sorted(root.glob(f"{split}-*.tar")):
            if not shard.resolve().is_relative_to(root.resolve()):
                raise InputError(f"{shard}: leads outside the data folder")
            for sample in members(shard):
                picture = next((m for m in sample if f".{m.ending}".lower().endswith(SUFFIXES)), None)
                label = next((m for m in sample if m.ending == "json"), None)
                if picture is None or label is None:
                    missing = "picture" if picture is None else "json"
                    rejected.append(Rejected(f"{shard.name}/{sample[0].key}", f"no {missing} in the sample"))
                    continue
                files.append(_name(shard.name, picture))
                names.append(_labels(root, _name(shard.name, label)))
        if split == "train" or len(files) > first:
            splits[split] = np.arange(first, len(files))
    fixed = fixed_labels(root)
    labels = label_order(name for row in set(names[: len(splits["train"])]) for name in row) if fixed is None else fixed
    known = frozenset(labels)
    for file, row in zip(files, names, strict=True):
        if not row <= known:
            where = "train-*.tar" if fixed is None else "labels.txt"
            raise InputError(
                f"{without_location(file)} has the label {min(row - known)!r}, which {where} does not have"
            )
    return Dataset(root, "webdataset", labels, tuple(files), multi_hot(names, labels), splits, tuple(rejected))


def _name(shard: str, member: Member) -> str:
    return f"{shard}/{member.key}.{member.ending}@{member.start}+{member.size}"


def _labels(root: Path, file: str) -> frozenset[str]:
    try:
        content = json.loads(read(f"{root}/{file}"))
        labels = content["labels"]
        if not isinstance(labels, list) or not all(type(label) in (str, int) for label in labels):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f'{without_location(file)}: not a sample\'s labels, as {{"labels": [...]}}') from None
    if len(set(labels)) < len(labels) and {0, 1}.issuperset(labels):  # numbers of labels would not repeat
        raise InputError(f"{without_location(file)}: its labels are a list of 0 and 1; give the labels' names")
    return frozenset(composed(name) for label in labels if (name := str(label).strip()))
