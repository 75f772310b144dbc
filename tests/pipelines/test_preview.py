"""The sheet shows pictures with labels, both ways to draw, and the histogram; bad input is told in a line."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InputError
from pipelines.pack import Arguments as Pack
from pipelines.pack import pack
from pipelines.preview import Arguments, drawn, preview
from pipelines.read import read_dataset

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


def test_labels_that_no_font_has(table: Make, tmp_path: Path) -> None:
    """And with marks that a formula would have."""
    root = table("image,labels\n" + "".join(f"{i}.jpg,日本 $x_{i % 2}$ <b>&\n" for i in range(24)))
    with warnings.catch_warnings(action="error"):
        text = preview(Arguments(data=root, out=tmp_path / "s.svg", pictures=1, draws=1, image_size=96)).read_text()
        preview(Arguments(data=root, out=tmp_path / "s.png", pictures=1, draws=1, image_size=96))
    assert "日本" in text
    assert "$x_0$" in text


def test_both_ways_draw_the_same(table: Make) -> None:
    root = table()
    (boxed, one_pass), (_, several) = (
        drawn(root, ["images/0.jpg", "images/1.jpg"], 3, 96, 0, at_once) for at_once in (True, False)
    )
    assert boxed.shape == (2, 96, 96, 3)
    assert one_pass.shape == several.shape == (2, 3, 96, 96, 3)
    assert np.abs(one_pass.astype(int) - several).mean() < 0.5
    assert np.abs(one_pass[:, 0].astype(int) - one_pass[:, 1]).mean() > 3


def test_shards_are_shown_too(table: Make, tmp_path: Path) -> None:
    pack(Pack(data=table(), shards=tmp_path / "shards"))
    sheet = tmp_path / "sheet.png"
    preview(Arguments(data=tmp_path / "shards", out=sheet, pictures=2, draws=2, image_size=96))
    files = [read_dataset(tmp_path / name).files[3] for name in ("data", "shards")]
    there, packed = (
        drawn(tmp_path / name, [file], 2, 96, 0) for name, file in zip(("data", "shards"), files, strict=True)
    )
    assert all(np.array_equal(a, b) for a, b in zip(there, packed, strict=True))


def test_pictures_that_nobody_has_opened_may_be_bad(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large data set a start opens a few; the sheet shows the next good ones, or says that there are none."""
    root = table()
    monkeypatch.setattr("pipelines.read.undecodable", lambda *_: [])
    for i in range(23):
        (root / "images" / f"{i}.jpg").write_text("no picture")
    arguments = Arguments(data=root, out=tmp_path / "sheet.svg", pictures=4, draws=1, image_size=96, seed=2)
    train = read_dataset(root, seed=2).splits["train"]
    assert 23 in train
    assert preview(arguments).is_file()
    (root / "images" / "23.jpg").write_text("no picture")
    with pytest.raises(InputError, match="none of the training pictures can be decoded"):
        preview(arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": Path("/nowhere")}, "no such folder"),
        ({"pictures": 0}, "--pictures 0: must be above 0"),
        ({"oversample_target": -5}, "--oversample-target -5: must be above 0"),
        ({"out": Path("sheet")}, "must end in .png"),
        ({"out": Path("/nowhere/x.png")}, "/nowhere/x.png: cannot be written"),
        ({"out": Path("x.unknown")}, "x.unknown: cannot be written"),
    ],
    ids=["data", "pictures", "target", "ending", "out", "form"],
)
def test_bad_input(table: Make, changes: dict[str, object], words: str) -> None:
    values: dict[str, object] = {"data": table(), "pictures": 1, "draws": 1, "image_size": 96, **changes}
    with pytest.raises(InputError, match=words):
        preview(Arguments(**values))  # type: ignore[arg-type]


def test_sheet_of_packed_pictures(table: Make, tmp_path: Path) -> None:
    pack(Pack(data=table(), shards=tmp_path / "shards"))
    arguments = Arguments(data=tmp_path / "shards", out=tmp_path / "sheet.png", pictures=3, draws=2, image_size=96)
    assert np.asarray(Image.open(preview(arguments)).convert("RGB")).std() > 20
