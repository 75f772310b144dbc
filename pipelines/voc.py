"""Reader of the Pascal VOC layout: JPEGImages/, Annotations/*.xml, ImageSets/Main/{train,val,trainval,test}.txt."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from pipelines.accents import composed
from pipelines.dataset import Dataset, Rejected, label_order
from pipelines.errors import InputError, reading
from pipelines.pictures import SUFFIXES, PictureFolders
from pipelines.rows import Rows


def read_voc(root: Path) -> Dataset:
    """Reads the VOC layout from its folder. Objects marked difficult count: they are in the picture.

    Raises:
        InputError: no list of training pictures, or an annotation that is not XML or has an object without a name.
    """
    lists = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test")}
    if not lists["train"].is_file():
        lists = {"train": root / "ImageSets" / "Main" / "trainval.txt", "test": lists["test"]}
    if not lists["train"].is_file():
        raise InputError(f"{root / 'ImageSets' / 'Main'}: neither train.txt nor trainval.txt is there")
    folders = PictureFolders(root, ("JPEGImages",))
    rows = Rows()
    for split, path in lists.items():
        if path.is_file():
            rows.add(split, _listed(root, path, folders, rows.rejected), path.name)
    return rows.dataset(root, "voc", label_order(name for names in rows.names for name in names))


_FLAGGED = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # VOC's own lists of a class say after the name whether it is there


def _listed(
    root: Path, path: Path, folders: PictureFolders, rejected: list[Rejected]
) -> Iterator[tuple[str, frozenset[str]]]:
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    for line in filter(None, map(str.strip, lines)):
        flagged = _FLAGGED.fullmatch(line)
        identifier = line if flagged is None or folders.has(line) else flagged[1]
        file = folders.find(identifier)
        annotation = root / "Annotations" / f"{_without_ending(identifier)}.xml"
        if file is None:
            rejected.append(Rejected(identifier, folders.why_not(identifier)))
        elif not annotation.is_file():
            rejected.append(Rejected(identifier, "no annotation"))
        else:
            yield file, _objects(annotation)


def _without_ending(identifier: str) -> str:
    stem, ending = os.path.splitext(identifier)
    return stem if ending.lower() in SUFFIXES else identifier


def _objects(path: Path) -> frozenset[str]:
    with reading(path):
        try:
            found = [(item.text or "").strip() for item in ElementTree.parse(path).iterfind("object/name")]
        except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
            raise InputError(f"{path}: not XML: {error}") from None
    if "" in found:
        raise InputError(f"{path}: has an object whose name is empty")
    return frozenset(map(composed, found))
