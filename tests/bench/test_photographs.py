"""What the benchmarks load: photographs where they are, else pictures drawn in their size; as many as are asked for."""

from pathlib import Path

import pytest
from PIL import Image

from bench import photographs as module
from bench.photographs import photographs


def test_drawn_in_place_of_photographs_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path / "missing")
    monkeypatch.setattr(module, "FOLDERS", [])
    monkeypatch.setattr(module, "DRAWN", 2)
    source, files = photographs("coco96", 5)
    assert source == "drawn"
    assert [Path(file).name for file in files] == ["0.jpg", "1.jpg", "0.jpg", "1.jpg", "0.jpg"]
    assert Image.open(files[0]).size == (640, 480)
    for folder in module.FOLDERS:  # as they go with the process
        folder.cleanup()
    assert not Path(files[0]).exists()


def test_photographs_again_where_there_are_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    folder = tmp_path / "study" / "data"
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / f"{name}.jpg").touch()
    expected = [str(folder / f"{name}.jpg") for name in "aba"]
    assert photographs("study", 3) == ("photographs", expected)
    assert photographs("study", 1) == ("photographs", expected[:1])
