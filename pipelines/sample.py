"""A small drawn data set to try the engine on: scenes of simple objects, several labels a picture, a long tail.

The set is drawn on first use into the user's cache folder, in the table layout (train.csv, val.csv, images/). Labels
depend on the seed alone and every picture on the seed and its number, so the set comes out the same however many
processes draw it and however often they are interrupted.
"""

import csv
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.cache import cache_dir, replace_file
from pipelines.sample_objects import SHAPES
from pipelines.sample_scene import draw_scene

VERSION = 1
SEED = 20_250
TRAIN_PICTURES = 2400
VAL_PICTURES = 600
PICTURES = TRAIN_PICTURES + VAL_PICTURES
SPLIT_PICTURES = {"val": range(TRAIN_PICTURES, PICTURES), "train": range(TRAIN_PICTURES)}

# Share of the pictures that show each label.
MOST_FREQUENT, RAREST = 0.43, 0.0155
LABELS = tuple(SHAPES)
# Pictures with 1, 2, ... labels.
LABEL_COUNTS = (0.345, 0.355, 0.185, 0.085, 0.03)
SCENES: dict[str, tuple[str, ...]] = {
    "sky": ("cloud", "bird", "sun", "balloon"),
    "sea": ("boat", "fish", "sun", "cloud", "umbrella"),
    "garden": ("tree", "flower", "bird", "mushroom", "cactus"),
    "street": ("house", "car", "tree", "clock", "umbrella"),
    "night": ("moon", "star", "house", "tree"),
}
# How much likelier a label is in its own scenes than elsewhere.
SCENE_BOOST = 7.0
# How often the backdrop is that of the scene the labels were drawn for, not of any.
SCENE_BACKDROP = 0.7

# Pictures a worker draws between two reports.
CHUNK = 24


class Rows(NamedTuple):
    """Labels of every picture (multi-hot) and the scene that each was drawn for."""

    scenes: NDArray[np.int64]
    labels: NDArray[np.bool_]


def sample_dir() -> Path:
    """Folder of the sample data set in the user's cache; the environment's MANYLABEL_CACHE overrides the cache."""
    return cache_dir() / f"sample-v{VERSION}"


def ensure_sample(root: Path | None = None, progress: Callable[[int, int], None] | None = None) -> Path:
    """Draws whatever the sample data set lacks.

    Args:
        root: where the set lies; by default `sample_dir()`.
        progress: told the number of pictures that are there and that there will be.

    Returns:
        The set's folder, complete.

    Raises:
        OSError: the folder cannot be written.
    """
    root = sample_dir() if root is None else root
    if sample_is_there(root):
        return root
    draw_pictures(root, range(PICTURES), progress)
    for split, indices in SPLIT_PICTURES.items():
        _write_table(root / f"{split}.csv", indices)
    return root


def sample_is_there(root: Path) -> bool:
    """Whether the set in the folder is complete: its tables are written last."""
    return all((root / f"{split}.csv").is_file() for split in SPLIT_PICTURES)


def draw_pictures(
    root: Path,
    indices: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[int]:
    """Draws those of the pictures that are not there yet, in `workers` processes (by default one a usable core).

    Returns:
        The numbers of the pictures drawn.
    """
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(folder))
    missing = [index for index in indices if picture_name(index) not in there]
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    workers = min(len(chunks), len(os.sched_getaffinity(0)) if workers is None else workers)
    done = len(indices) - len(missing)
    for drawn in _map(functools.partial(_draw_chunk, folder), chunks, workers):
        done += drawn
        if progress is not None:
            progress(done, len(indices))
    return missing


def picture_name(index: int) -> str:
    """File name of a picture."""
    return f"{index:05d}.jpg"


@functools.cache
def draw_rows() -> Rows:
    """Labels of all pictures, a function of the seed alone.

    A label's weight is what makes it as frequent as it is to be: the weights are corrected until they do, over the
    same random numbers each time.
    """
    rng = np.random.default_rng((SEED, PICTURES))
    scenes = rng.integers(len(SCENES), size=PICTURES)
    counts = 1 + rng.choice(len(LABEL_COUNTS), size=PICTURES, p=LABEL_COUNTS)
    member = np.array([[label in labels for label in LABELS] for labels in SCENES.values()])
    keys = rng.gumbel(size=(PICTURES, len(LABELS))) + np.log(np.where(member, SCENE_BOOST, 1.0))[scenes]
    wanted = np.geomspace(MOST_FREQUENT, RAREST, len(LABELS))
    weights = np.log(wanted)
    for _ in range(40):
        order = np.argsort(np.argsort(-(keys + weights), axis=1, kind="stable"), axis=1, kind="stable")
        labels = order < counts[:, None]
        weights += np.log(wanted / labels.mean(axis=0).clip(1 / PICTURES))
    return Rows(scenes, labels)


def row_labels(index: int) -> list[str]:
    """Labels of one picture."""
    return [LABELS[column] for column in np.flatnonzero(draw_rows().labels[index])]


def draw_picture(index: int) -> bytes:
    """One picture as a JPEG file."""
    rng = np.random.default_rng((SEED, index))
    rows = draw_rows()
    labels = [LABELS[column] for column in rng.permutation(np.flatnonzero(rows.labels[index]))]
    scene = rows.scenes[index] if rng.random() < SCENE_BACKDROP else rng.integers(len(SCENES))
    return draw_scene(rng, list(SCENES)[scene], labels)


def _draw_chunk(folder: Path, indices: Sequence[int]) -> int:
    """Draws pictures into a folder, each whole or not at all; how many."""
    for index in indices:
        path = folder / picture_name(index)
        temporary = folder / f".{path.name}.{os.getpid()}"
        temporary.write_bytes(draw_picture(index))
        temporary.replace(path)
    return len(indices)


def _map(draw: Callable[[Sequence[int]], int], chunks: Sequence[Sequence[int]], workers: int) -> Iterator[int]:
    """Results of the chunks as they come. Workers are started afresh: the caller may have threads of its own."""
    if workers <= 1:
        yield from map(draw, chunks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield from pool.map(draw, chunks)


def _write_table(path: Path, indices: Iterable[int]) -> None:
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        rows = ((picture_name(index), "|".join(row_labels(index))) for index in indices)
        csv.writer(file, lineterminator="\n").writerows([("image", "labels"), *rows])
