"""Reader of the Pascal VOC layout: JPEGImages/, Annotations/*.xml, ImageSets/Main/{train,val,trainval,test}.txt."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from pipelines.dataset import Dataset, Rejected, label_order, merged_rows, multi_hot, shared_between_splits
from pipelines.errors import InputError
from pipelines.pictures import PictureFolders


def read_voc(root: Path) -> Dataset:
    """Reads the VOC layout from its folder. Objects marked difficult count: they are in the picture.

    Raises:
        InputError: no list of training pictures, or an annotation that is not XML.
    """
    lists = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test")}
    if not lists["train"].is_file():
        lists = {"train": root / "ImageSets" / "Main" / "trainval.txt", "test": lists["test"]}
    if not lists["train"].is_file():
        raise InputError(f"{root / 'ImageSets' / 'Main'}: neither train.txt nor trainval.txt is there")
    folders = PictureFolders(root, ("JPEGImages",))
    files: list[str] = []
    names: list[set[str]] = []
    splits: dict[str, np.ndarray] = {}
    rejected: list[Rejected] = []
    notes: list[str] = []
    for split, path in lists.items():
        if not path.is_file():
            continue
        row_of: dict[str, int] = {}
        merged = 0
        for identifier in (line.split()[0] for line in path.read_text("utf-8-sig").splitlines() if line.strip()):
            file = folders.find(identifier)
            annotation = root / "Annotations" / f"{identifier}.xml"
            if file is None:
                rejected.append(Rejected(identifier, folders.why_not(identifier)))
            elif not annotation.is_file():
                rejected.append(Rejected(identifier, "no annotation"))
            elif file in row_of:
                merged += 1
            else:
                row_of[file] = len(files)
                files.append(file)
                names.append(_objects(annotation))
        splits[split] = np.array(list(row_of.values()), np.int64)
        if merged:
            notes.append(merged_rows(split, merged))
    labels = label_order(name for row in names for name in row)
    notes += shared_between_splits(files, splits)
    return Dataset(root, "voc", labels, tuple(files), multi_hot(names, labels), splits, tuple(rejected), tuple(notes))


def _objects(path: Path) -> set[str]:
    try:
        names = {(item.text or "").strip() for item in ElementTree.parse(path).iterfind("object/name")}
    except (ElementTree.ParseError, LookupError) as error:  # the latter for an encoding that nobody knows
        raise InputError(f"{path}: not XML: {error}") from None
    if "" in names:
        raise InputError(f"{path}: has an object without a name")
    return names
