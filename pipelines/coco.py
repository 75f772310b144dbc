"""Reader of the COCO layout: annotations/*.json, labels from the boxes' categories."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.accents import composed
from pipelines.dataset import SPLITS, Dataset, Rejected
from pipelines.errors import InputError, reading
from pipelines.pictures import PictureFolders
from pipelines.rows import Rows


def read_coco(root: Path) -> Dataset:
    """Reads the COCO layout from its folder; a file is a split's by the word train, val or test in its name.

    Categories of the same name are one label.

    Raises:
        InputError: an unreadable file, files that disagree about categories, a category without a name, an identifier
            of two pictures, or an annotation of an unknown category or picture.
    """
    try:
        return _dataset(root, _load(root))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{root / 'annotations'}: not as COCO has it: {type(error).__name__} {error}") from None


def _dataset(root: Path, loaded: list[tuple[str, Path, dict[str, Any]]]) -> Dataset:
    categories = _categories(loaded)
    rows = Rows()
    for split, path, content in loaded:
        folders = PictureFolders(root, _picture_folders(root, split, path))
        rows.add(split, _pictures(path, content, categories, folders, rows.rejected), path.name)
    return rows.dataset(root, "coco", tuple(dict.fromkeys(categories[i] for i in sorted(categories))))


def _pictures(
    path: Path,
    content: dict[str, Any],
    categories: dict[int, str],
    folders: PictureFolders,
    rejected: list[Rejected],
) -> Iterator[tuple[str, frozenset[str]]]:
    """File and label names of each entry of an annotation file whose picture is there."""
    file_of: dict[Any, str] = {}
    for image in content["images"]:
        name = _text(path, image["file_name"], "file name")
        if file_of.setdefault(image["id"], name) != name:
            raise InputError(f"{path}: {file_of[image['id']]} and {name} have the same id {image['id']}")
    names: dict[Any, set[str]] = {identifier: set() for identifier in file_of}
    for annotation in content["annotations"]:
        category, picture = annotation["category_id"], annotation["image_id"]
        if category not in categories:
            raise InputError(f"{path}: annotation {annotation.get('id')} has the unknown category {category}")
        if picture not in names:
            raise InputError(f"{path}: annotation {annotation.get('id')} belongs to no picture of the file")
        names[picture].add(categories[category])
    for identifier, name in file_of.items():
        file = folders.find(name)
        if file is None:
            rejected.append(Rejected(name, folders.why_not(name)))
        else:
            yield file, frozenset(names[identifier])


def _load(root: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """(split, path, content) of each annotation file; where both boxes and key points are there, boxes."""
    paths = sorted(path for path in (root / "annotations").glob("*.json") if path.is_file())
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    loaded = []
    for path in paths:
        with reading(path):
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
            own = composed(_text(path, category["name"], "category"))
            name = categories.setdefault(category["id"], own)
            if name != own:
                raise InputError(f"{path}: category {category['id']} is {own!r} here and {name!r} elsewhere")
    return categories


def _text(path: Path, value: Any, what: str) -> str:
    """A name as text that can be written down; JSON allows numbers, empty ones and halves of letters."""
    text = str(value).strip() if isinstance(value, str | int) else ""
    if not text:
        raise InputError(f"{path}: {value!r} is no name of a {what}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the {what} {text!a} is not Unicode text") from None
    return text


def _picture_folders(root: Path, split: str, path: Path) -> tuple[str, ...]:
    """COCO's own folder (instances_train2017.json → train2017) first, then the usual others."""
    own = path.stem.rpartition("_")[2]
    named = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.startswith(split))
    return (own, f"images/{own}", *named, f"images/{split}", "images", "data", ".")
