"""JPEG files to measure with: real photographs where they are there, else drawn ones of the same size."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2] / "shared" / "datasets"
DRAWN = 32  # different ones
# Where photographs are, and width and height of what is drawn in their place.
PLACES = {"study": ("study/data", 320, 240), "coco96": ("coco96/*", 640, 480)}
FOLDERS: list[TemporaryDirectory[str]] = []  # of what was drawn; referred to so that they stay


def photographs(place: str, count: int) -> tuple[str, list[str]]:
    """What the pictures are, "photographs" or "drawn", and paths, the same again where there are fewer than `count`."""
    pattern, width, height = PLACES[place]
    source, files = "photographs", sorted(map(str, ROOT.glob(f"{pattern}/*.jpg")))[:count]
    if not files:
        source, files = "drawn", drawn(width, height)
    return source, (files * (count // len(files) + 1))[:count]


def drawn(width: int, height: int) -> list[str]:
    """Paths of files, there until the process ends: coarse colours under a grain, as hard to decode as photographs."""
    FOLDERS.append(TemporaryDirectory(prefix="manylabel-bench-"))
    folder, rng = Path(FOLDERS[-1].name), np.random.default_rng(0)
    names = []
    for i in range(DRAWN):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((width, height))
        grain = rng.normal(0, 6, (height, width, 3))
        names.append(str(folder / f"{i}.jpg"))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(names[-1], quality=90)
    return names
