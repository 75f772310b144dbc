"""How long a run takes, from a few steps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import pace
from engine.config import resolve
from engine.device import decide
from engine.run import Run
from engine.trainer import Trainer
from pipelines.read import read_dataset


def test_each_size_counts_as_often_as_its_batches(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut short, as the second of a race, has its own stages."""
    dataset = read_dataset(table(), val_fraction=0.25)
    config = resolve("fast", {"image_size": 112, "width": 0.125, "batch_size": 2, "epochs": 10, "sampling": "uniform"})
    trainer = Trainer(config, dataset, decide("cpu", False, "off"), Run(tmp_path), lambda: False)
    seconds = {80: 1.0, 96: 2.0, 112: 4.0}
    monkeypatch.setattr(pace, "_median_step", lambda _, size, __: seconds[size])
    assert pace.seconds_a_step(trainer) == pytest.approx(0.5 * 1 + 0.3 * 2 + 0.2 * 4, abs=0.05)
    trainer.total = 10
    assert pace.seconds_a_step(trainer) == pytest.approx(0.5 * 1 + 0.3 * 2 + 0.2 * 4)
    trainer.total = 1
    assert pace.seconds_a_step(trainer) == 4
