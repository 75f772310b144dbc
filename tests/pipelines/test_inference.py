"""Photographs that nobody has looked at: every file has its row, and the readable ones their pixels."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines import inference
from pipelines.augment import MEAN, STD, PictureSpec
from pipelines.inference import Letterbox, Photographs
from pipelines.loader import evaluation_stream
from tests.conftest import picture

SPEC = PictureSpec(size=48, threads=1)


def outcome(paths: list[str], batch_size: int) -> tuple[dict[int, NDArray[np.uint8]], dict[int, str]]:
    """Pixels, and errors, by number; every number is there once, in order."""
    pixels: dict[int, NDArray[np.uint8]] = {}
    errors: dict[int, str] = {}
    seen: list[int] = []
    for found in Photographs(paths, batch_size, SPEC):
        assert len(found.numbers) <= batch_size
        assert sorted([*found.readable, *found.errors]) == list(found.numbers)
        seen += found.numbers
        errors |= found.errors
        if found.readable:
            pixels.update(zip(found.readable, np.array(found.images.as_tensor()), strict=True))
    assert seen == list(range(len(paths)))
    return pixels, errors


def test_pixels_are_what_validation_normalises(tmp_path: Path) -> None:
    for i in range(5):
        picture(i, 20 + 17 * i, 50).save(tmp_path / f"{i}.jpg")
    names = [f"{i}.jpg" for i in range(5)]
    pixels, errors = outcome([str(tmp_path / name) for name in names], 2)
    assert not errors
    (batch,) = evaluation_stream(tmp_path, names, np.arange(5), 5, SPEC).batches()
    expected = batch.images.permute(0, 2, 3, 1).numpy()
    ours = (np.stack(list(pixels.values())).astype(np.float32) - MEAN) / STD
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_all_kinds_of_files(tmp_path: Path, save_kinds: Callable[[Path], tuple[list[str], list[str]]]) -> None:
    good, bad = save_kinds(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait without end
    names = ["missing.jpg", "pipe.jpg", os.fsdecode(b"no UTF-8 \xff and a nul \0.jpg"), "."]
    paths = [str(tmp_path / name) for name in [*good, *bad, *names]]
    pixels, errors = outcome(paths, 4)
    assert sorted(pixels) == list(range(len(good)))
    assert all(errors[i] for i in range(len(good), len(paths)))
    by_name = {Path(paths[i]).name: why for i, why in errors.items()}
    assert by_name["pipe.jpg"] == "not a file"
    assert by_name["missing.jpg"] == "no such file"
    assert by_name["empty.jpg"] == "empty file"
    assert by_name["text.jpg"] == "not a picture"


def test_tiffs_of_32_bit_numbers_are_refused_whatever_is_beside_them(tmp_path: Path) -> None:
    """The decoder makes garbage of them without a word; PNGs of 16 bits are none of them."""
    numbers = np.arange(40 * 60).reshape(40, 60)
    Image.fromarray(numbers.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(numbers.astype(np.int32)).save(tmp_path / "whole.tiff")
    Image.fromarray((numbers * 20).astype(np.uint16)).save(tmp_path / "16.png")
    picture(1).save(tmp_path / "plain.tif")
    names = ["float.tif", "whole.tiff", "16.png", "plain.tif"]
    pixels, errors = outcome([str(tmp_path / name) for name in names], 4)
    assert sorted(pixels) == [2, 3]
    assert set(errors.values()) == {"numbers of 32 bits are not supported"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    for name in ("a", "b"):
        picture(ord(name)).save(folder / f"{name}.jpg")
    (folder / "text.jpg").write_text("text")
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-60])
    return {name: str(folder / f"{name}.jpg") for name in ("a", "b", "text", "cut")}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "b", "text", "cut"]), max_size=12), st.integers(1, 4))
def test_any_mixture_in_any_batches(files: dict[str, str], names: list[str], batch_size: int) -> None:
    pixels, errors = outcome([files[name] for name in names], batch_size)
    assert {i for i, name in enumerate(names) if name in ("text", "cut")} == set(errors)
    alone = {name: outcome([files[name]], 1)[0][0] for name in set(names) & {"a", "b"}}
    for number, found in pixels.items():
        np.testing.assert_array_equal(found, alone[names[number]])


def test_large_photographs_come_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [100, 20, 20, 300, 20, 100, 100]
    for i, side in enumerate(sizes):
        picture(i, side, 100).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(inference, "BATCH_PIXELS", 100 * 200)
    found = [p.numbers for p in Photographs([str(tmp_path / f"{i}.png") for i in range(7)], 4, SPEC)]
    assert found == [range(3), range(3, 4), range(4, 6), range(6, 7)]


def test_a_very_large_picture(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000), 200).save(tmp_path / "large.jpg")
    pixels, errors = outcome([str(tmp_path / "large.jpg")], 8)
    assert not errors
    assert pixels[0][24, 24].tolist() == [200, 200, 200]
    assert pixels[0][0].max() == 0  # the border above


def test_pictures_in_memory_are_letterboxed_the_same(tmp_path: Path) -> None:
    images = [np.asarray(picture(i, 30 + 40 * i, 50)) for i in range(3)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    pixels, _ = outcome([str(tmp_path / f"{i}.png") for i in range(3)], 3)
    letterbox = Letterbox(SPEC.size, 3, 1)
    np.testing.assert_array_equal(letterbox(images), np.stack(list(pixels.values())))
    np.testing.assert_array_equal(letterbox(images[2:]), pixels[2][None])
