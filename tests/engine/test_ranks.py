"""Several processes train as one does: the same batches, the same losses, each validation picture once."""

import json
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.ranks import Ranks
from engine.run import Run
from pipelines.dataset import Dataset
from pipelines.read import read_dataset
from pipelines.sampling import rank_slice
from tests.runs import finish

Make = Callable[..., Path]


@pytest.fixture
def dataset(table: Make) -> Dataset:
    return read_dataset(table(pictures=56), val_fraction=0.25)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_are_the_whole(ranks: int) -> None:
    """Of a batch, and of a split; even where nothing divides evenly."""
    for step, batch in ((0, 7), (3, 16)):
        own = [np.arange(1000)[rank_slice(step, batch, rank, ranks)] for rank in range(ranks)]
        assert np.concatenate(own).tolist() == list(range(step * batch, (step + 1) * batch))
        assert max(map(len, own)) - min(map(len, own)) <= 1
    parts = [np.arange(11)[Ranks(rank, ranks).part(11)] for rank in range(ranks)]
    assert np.concatenate(parts).tolist() == list(range(11))


def test_two_processes_follow_the_losses_of_one(children: ForkServerContext, dataset: Dataset, tmp_path: Path) -> None:
    """20 steps in float32, without dropout, with the norms' statistics of all. The batch is large enough for no channel
    to be of rounding errors alone, which Adam would make steps of."""
    import training_child

    changes = {"epochs": 10, "image_size": 107, "batch_size": 16, "dropout": 0.0, "sync_norm": True, "lr": 0.0002}
    changes |= {"sampling": "uniform"}
    curves, states = {}, {}
    for name, ranks in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        finish(children, training_child.Task(dataset, folder, changes, ranks, losses=True))
        losses = [np.load(folder / f"losses-{rank}.npy") for rank in range(ranks)]
        curves[name] = np.mean(losses, 0)
        states[name] = load_checkpoint(Run(folder).last)
    assert len(curves["one"]) == 20
    assert np.abs(curves["one"] - curves["two"]).max() < 1e-4
    one, two = (Run(tmp_path / name).metric_lines() for name in ("one", "two"))
    for figure in ("train_loss", "val_loss"):
        assert [line[figure] for line in one] == pytest.approx([line[figure] for line in two], abs=1e-4)
    assert len(states["two"]["rng"]) == 2
    with np.load(tmp_path / "two" / "validation.npz") as found:
        assert len(set(found["files"].tolist())) == len(found["files"]) == len(dataset.splits["val"])
    assert json.loads(Run(tmp_path / "two").report.read_text())["rows"] == len(dataset.splits["val"])


@pytest.mark.slow
def test_the_state_of_two_goes_on_with_three_and_one(
    children: ForkServerContext, dataset: Dataset, tmp_path: Path
) -> None:
    """A checkpoint of N processes resumes on M, the batch no longer dividing evenly; losses go on as those of one."""
    import training_child

    common = {"dropout": 0.0, "sync_norm": True, "sampling": "uniform", "batch_size": 8, "lr": 0.0002, "accumulate": 2}
    common |= {"clip_grad_norm": 1.0, "ema_decay": 0.9}
    lines = {}
    for name, order in (("one", (1, 1, 1)), ("changing", (2, 3, 1))):
        for epochs, ranks in enumerate(order, 1):
            folder = tmp_path / name
            changes = {**common, "epochs": epochs, "schedule": "constant"}
            finish(children, training_child.Task(dataset, folder, changes, ranks))
        lines[name] = Run(tmp_path / name).metric_lines()
    assert [line["epoch"] for line in lines["changing"]] == [1, 2, 3]
    for figure in ("train_loss", "val_loss"):
        one, other = ([line[figure] for line in lines[name]] for name in ("one", "changing"))
        assert one == pytest.approx(other, abs=1e-4)
    model = load_checkpoint(Run(tmp_path / "changing").last)["model"]
    assert all(torch.isfinite(t).all() for t in model.values())
