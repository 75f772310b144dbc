"""Reader of the COCO layout: annotations/*.json, labels from the boxes' categories."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset import SPLITS, Dataset, Rejected, merged_rows, multi_hot, shared_between_splits
from pipelines.errors import InputError
from pipelines.pictures import PictureFolders


def read_coco(root: Path) -> Dataset:
    """Reads the COCO layout from its folder; a file is a split's by the word train, val or test in its name.

    Raises:
        InputError: an unreadable file, files that disagree about categories, or an annotation of an unknown category.
    """
    try:
        return _dataset(root, _load(root))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{root / 'annotations'}: not as COCO has it: {type(error).__name__} {error}") from None


def _dataset(root: Path, loaded: list[tuple[str, Path, dict[str, Any]]]) -> Dataset:
    categories = _categories(loaded)
    labels = tuple(dict.fromkeys(categories[i] for i in sorted(categories)))  # categories of one name are one label
    files: list[str] = []
    names: list[set[str]] = []
    row_of_file: dict[tuple[str, str], int] = {}
    rejected: list[Rejected] = []
    notes: list[str] = []
    for split, path, content in loaded:
        folders = PictureFolders(root, _picture_folders(root, split, path))
        row_of: dict[Any, int] = {}
        merged = 0
        for image in content["images"]:
            file, row = folders.find(str(image["file_name"])), -1
            if file is None:
                rejected.append(Rejected(str(image["file_name"]), folders.why_not(str(image["file_name"]))))
            elif (split, file) in row_of_file:
                row, merged = row_of_file[split, file], merged + 1
            else:
                row = row_of_file[split, file] = len(files)
                files.append(file)
                names.append(set())
            if row_of.setdefault(image["id"], row) != row:
                raise InputError(f"{path}: two pictures have the id {image['id']}")
        for annotation in content["annotations"]:
            category, of_row = annotation["category_id"], row_of.get(annotation["image_id"])
            if category not in categories:
                raise InputError(f"{path}: annotation {annotation.get('id')} has the unknown category {category}")
            if of_row is None:
                raise InputError(f"{path}: annotation {annotation.get('id')} belongs to no picture of the file")
            if of_row >= 0:
                names[of_row].add(categories[category])
        if merged:
            notes.append(merged_rows(split, merged))
    splits = {
        split: np.array([row for (own, _), row in row_of_file.items() if own == split], np.int64)
        for split in {split: None for split, _, _ in loaded}
    }
    notes += shared_between_splits(files, splits)
    return Dataset(root, "coco", labels, tuple(files), multi_hot(names, labels), splits, tuple(rejected), tuple(notes))


def _load(root: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """(split, path, content) of each annotation file; where both boxes and key points are there, boxes."""
    paths = sorted((root / "annotations").glob("*.json"))
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    loaded = []
    for path in paths:
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from None
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            split = next((name for name in SPLITS if name in path.stem.lower()), "train")
            loaded.append((split, path, content))
    if not any(split == "train" for split, _, _ in loaded):
        raise InputError(
            f"{root / 'annotations'}: no file of training pictures with images, annotations and categories"
        )
    return loaded


def _categories(loaded: list[tuple[str, Path, dict[str, Any]]]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for _, path, content in loaded:
        for category in content["categories"]:
            own = str(category["name"]).strip()
            if not own:
                raise InputError(f"{path}: category {category['id']} has no name")
            name = categories.setdefault(category["id"], own)
            if name != own:
                raise InputError(f"{path}: category {category['id']} is {own!r} here and {name!r} elsewhere")
    return categories


def _picture_folders(root: Path, split: str, path: Path) -> tuple[str, ...]:
    """COCO's own folder (instances_train2017.json → train2017) first, then the usual others."""
    own = path.stem.rpartition("_")[2]
    named = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.startswith(split))
    return (own, f"images/{own}", *named, f"images/{split}", "images", "data", ".")
