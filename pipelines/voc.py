"""Reader of the Pascal VOC layout: JPEGImages/, Annotations/*.xml, ImageSets/Main/{train,val,trainval,test}.txt."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from pipelines.dataset import Dataset, Rejected, label_order, multi_hot
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
    for split, path in lists.items():
        if not path.is_file():
            continue
        first = len(files)
        for identifier in (line.split()[0] for line in path.read_text().splitlines() if line.strip()):
            file = folders.find(identifier)
            annotation = root / "Annotations" / f"{identifier}.xml"
            if file is None:
                rejected.append(Rejected(identifier, folders.why_not(identifier)))
            elif not annotation.is_file():
                rejected.append(Rejected(identifier, "no annotation"))
            else:
                files.append(file)
                names.append(_objects(annotation))
        splits[split] = np.arange(first, len(files))
    labels = label_order(name for row in names for name in row)
    return Dataset(root, "voc", labels, tuple(files), multi_hot(names, labels), splits, tuple(rejected))


def _objects(path: Path) -> set[str]:
    try:
        return {(item.text or "").strip() for item in ElementTree.parse(path).iterfind("object/name")}
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not XML: {error}") from None
