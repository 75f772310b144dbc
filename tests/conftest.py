"""Folders that tests share: pictures of many kinds, small data sets, real photographs where they are there."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "datasets"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another, or the user, has cached."""
    monkeypatch.setenv("MANYLABEL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def photographs() -> Path:
    """The folder of real photographs."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"real photographs are needed and {PHOTOGRAPHS} is missing")
    return PHOTOGRAPHS


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """A picture of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_table(root: Path, train: str | None = None, pictures: int = 24, **tables: str) -> Path:
    """A folder in the table layout: train.csv of the given text, or of three labels, and the pictures it names."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        picture(i).save(root / "images" / f"{i}.jpg")
    rows = "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}{' bird' if i % 3 == 0 else ''}\n" for i in range(pictures))
    (root / "train.csv").write_text("image,labels\n" + rows if train is None else train)
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """`make_table` in the test's own folder."""
    return partial(make_table, tmp_path / "data")


@pytest.fixture
def save_kinds() -> Callable[[Path], tuple[list[str], list[str]]]:
    """Saves pictures of every kind to a folder; names of those that a viewer shows, and of those that none does."""

    def save(folder: Path) -> tuple[list[str], list[str]]:
        image = picture(1, 64, 48)
        turned = Image.Exif()
        turned[0x0112] = 6  # the camera was held upright
        image.save(folder / "plain.jpg")
        image.save(folder / "progressive.jpg", progressive=True)
        image.save(folder / "exif.jpg", exif=turned)
        image.convert("L").save(folder / "grey.jpg")
        image.convert("CMYK").save(folder / "cmyk.jpg")
        image.convert("RGBA").save(folder / "alpha.png")
        image.convert("LA").save(folder / "grey alpha.png")
        image.convert("P").save(folder / "palette.png")
        image.save(folder / "größe.webp")
        image.save(folder / "x.bmp")
        image.save(folder / "x.tiff")
        Image.new("RGB", (1, 1), (9, 200, 30)).save(folder / "one pixel.png")
        Image.new("RGB", (10_000, 20), (9, 200, 30)).save(folder / "long.jpg")
        good = sorted(path.name for path in folder.iterdir() if not path.stem.isdigit())
        whole = (folder / "plain.jpg").read_bytes()
        (folder / "empty.jpg").touch()
        (folder / "text.jpg").write_text("no picture at all " * 40)
        (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
        (folder / "half.png").write_bytes((folder / "alpha.png").read_bytes()[:300])
        image.save(folder / "moving.gif")
        image.convert("F").save(folder / "numbers.tiff")
        return good, ["empty.jpg", "half.png", "moving.gif", "numbers.tiff", "text.jpg", "truncated.jpg"]

    return save


@pytest.fixture(scope="session")
def children() -> ForkServerContext:
    """Starts processes that have imported what tests/children/ needs, in no time: a server did it once and forks."""
    own = [str(Path(__file__).parent / "children"), str(Path(__file__).parents[1])]
    sys.path.append(own[0])
    # The server takes its path from here, not from sys.path, and leaves out without a word what it cannot import.
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_child"])
    ready = context.Process(target=int)  # what the server imports first takes longer than what tests do after it
    ready.start()
    ready.join()
    return context
