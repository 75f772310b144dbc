"""The sample data set has the statistics it promises, comes out the same always, and survives an interruption."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import sample
from pipelines.table import read_table


def test_label_statistics() -> None:
    labels = sample.draw_rows().labels
    assert labels.shape == (3000, 16)
    share = labels.mean(0)
    assert 0.012 < share.min() < 0.02
    assert share.max() > 0.4
    falling = np.sort(share)[::-1]
    assert (falling[1:] / falling[:-1] > 0.6).all()  # a smooth tail
    assert set(labels.sum(1)) == {1, 2, 3, 4, 5}
    assert labels[sample.TRAIN_PICTURES :].sum(0).min() >= 5
    lift = (labels.T.astype(float) @ labels / len(labels)) / np.outer(share, share)
    np.fill_diagonal(lift, 0)
    assert lift.max() > 1.5  # some labels come together


def test_pictures_are_photographs_of_many_sizes() -> None:
    sizes = [Image.open(io.BytesIO(sample.draw_picture(i))).size for i in range(0, 3000, 100)]
    assert all(min(size) >= 120 and max(size) <= 320 for size in sizes)
    assert len(set(sizes)) > 25
    assert any(w > 1.15 * h for w, h in sizes)
    assert any(h > 1.15 * w for w, h in sizes)


def test_an_interrupted_generation_goes_on(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sample.draw_pictures(whole, range(30)) == list(range(30))
    sample.draw_pictures(parts, range(7), workers=1)
    (parts / "images" / ".00008.jpg.123").write_bytes(b"half a pic")
    seen: list[tuple[int, int]] = []
    drawn = sample.draw_pictures(parts, range(30), progress=lambda done, total: seen.append((done, total)), workers=1)
    assert drawn == list(range(7, 30))
    assert seen[-1] == (30, 30)
    for i in range(30):
        name = sample.picture_name(i)
        assert (whole / "images" / name).read_bytes() == (parts / "images" / name).read_bytes()


def test_tables_come_last_and_mean_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "draw_picture", lambda index: b"drawn")
    monkeypatch.setattr(sample.os, "sched_getaffinity", lambda _: {0})
    assert sample.ensure_sample(tmp_path) == tmp_path
    dataset = read_table(tmp_path)
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 2400, "val": 600}
    order = [sample.LABELS.index(label) for label in dataset.labels]
    assert np.array_equal(dataset.targets[:2400], sample.draw_rows().labels[:2400, order])
    (tmp_path / "images" / "00000.jpg").unlink()
    sample.ensure_sample(tmp_path)  # complete: nothing is looked at again
    assert not (tmp_path / "images" / "00000.jpg").exists()


def test_it_lies_outside_the_repository() -> None:
    assert Path(__file__).parents[2] not in sample.sample_dir().parents
