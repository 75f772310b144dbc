"""The sheet shows pictures with labels, both ways to draw, and the histogram; bad input is told in a line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InputError
from pipelines.pack import Arguments as PackArguments
from pipelines.pack import pack
from pipelines.preview import Arguments, drawn, preview

Make = Callable[..., Path]


@pytest.mark.parametrize("separate", [False, True])
def test_sheet(table: Make, tmp_path: Path, separate: bool) -> None:
    root = table()
    arguments = Arguments(data=root, out=tmp_path / "sheet.png", pictures=3, draws=2, image_size=96, separate=separate)
    image = np.asarray(Image.open(preview(arguments)).convert("RGB"))
    assert image.shape[0] > 400
    assert image.std() > 20


def test_sheet_names_labels_and_counts(table: Make, tmp_path: Path) -> None:
    sheet = preview(Arguments(data=table(), out=tmp_path / "sheet.svg", pictures=24, draws=1, image_size=96))
    text = sheet.read_text()
    assert all(words in text for words in ("cat", "dog", "bird", "an epoch, oversample"))


def test_both_ways_draw_the_same(table: Make) -> None:
    root = table()
    (boxed, one_pass), (_, several) = (
        drawn(root, ["images/0.jpg", "images/1.jpg"], 3, 96, 0, at_once) for at_once in (True, False)
    )
    assert boxed.shape == (2, 96, 96, 3)
    assert one_pass.shape == several.shape == (2, 3, 96, 96, 3)
    assert np.abs(one_pass.astype(int) - several).mean() < 0.5
    assert np.abs(one_pass[:, 0].astype(int) - one_pass[:, 1]).mean() > 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": Path("/nowhere")}, "no such folder"),
        ({"pictures": 0}, "--pictures 0: must be above 0"),
        ({"out": Path("/nowhere/x.png")}, "/nowhere/x.png: cannot be written"),
        ({"out": Path("x.unknown")}, "x.unknown: cannot be written"),
    ],
    ids=["data", "pictures", "out", "form"],
)
def test_bad_input(table: Make, changes: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"data": table(), "pictures": 1, "draws": 1, "image_size": 96, **changes}
    with pytest.raises(InputError, match=words):
        preview(Arguments(**values))  # type: ignore[arg-type]


def test_sheet_of_packed_pictures(table: Make, tmp_path: Path) -> None:
    pack(PackArguments(data=table(), shards=tmp_path / "shards"))
    arguments = Arguments(data=tmp_path / "shards", out=tmp_path / "sheet.png", pictures=3, draws=2, image_size=96)
    assert np.asarray(Image.open(preview(arguments)).convert("RGB")).std() > 20
