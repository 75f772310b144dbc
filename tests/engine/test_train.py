"""Training as a user starts it: the run's folder, resuming to the bit, bad input in a line."""

import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from engine.answers import Stopped
from engine.checkpoint import load_checkpoint
from engine.command import Interrupt, main
from engine.config import Config, resolve
from engine.device import decide
from engine.run import Run, write_json
from engine.train import Arguments, train
from engine.train import main as training
from engine.trainer import Trainer
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.loader import Batch, training_stream
from pipelines.read import read_dataset
from tests.conftest import make_table

Make = Callable[..., Path]
TINY = {"image_size": 75, "width": 0.125, "batch_size": 4, "epochs": 2, "device": "cpu"}
SMALL = {"batch_size": 4, "image_size": 75, "width": 0.125}
TIMES = {"seconds", "images_per_s", "data_wait_fraction"}


def trainer_of(dataset: Dataset, folder: Path, stop_at: int | None = None, **changes: object) -> Trainer:
    """A trainer that stops when asked for the n-th time whether it shall."""
    config = resolve("demo", {**TINY, "sampling": "oversample", "oversample_target": 12, **changes})
    run = Run(folder)
    run.last.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.config, config.values())
    asked = iter(range(10**6))
    return Trainer(config, dataset, decide("cpu", False, "off"), run, lambda: next(asked) == stop_at)


def train_step(trainer: Trainer, batch: Batch) -> float:
    """One step of the optimizer on one batch, and its loss."""
    loss = trainer.add_gradient(batch)
    trainer.step.update(trainer.config.lr)
    return loss.item()


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], object]:
    """Weights, metrics without times, and report of a finished run."""
    run = Run(folder)
    state = load_checkpoint(run.last)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in run.metric_lines()]
    return state["model"], lines, json.loads(run.report.read_text())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """18 pictures to train on, 6 to validate on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYLABEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return read_dataset(make_table(tmp_path_factory.mktemp("data")), val_fraction=0.25)


@pytest.fixture(autouse=True)
def page() -> Iterator[Callable[[], None]]:
    """No run draws its page, which takes seconds, before this is called."""
    patch = pytest.MonkeyPatch()
    patch.setattr("engine.trainer.write_page", lambda *_: None)
    yield patch.undo
    patch.undo()


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run with an optimizer that nothing happened to, trained when it is first asked for."""

    @cache
    def of(optimizer: str) -> Path:
        folder = tmp_path_factory.mktemp("whole") / optimizer
        trainer_of(dataset, folder, optimizer=optimizer).fit()
        return folder

    return of


@pytest.mark.parametrize(("stop_at", "optimizer"), [(0, "adam"), (3, "muon"), (7, "adam")])
def test_resuming_ends_bit_identical(
    dataset: Dataset, whole: Callable[[str], Path], tmp_path: Path, stop_at: int, optimizer: str
) -> None:
    """Stopped before the first step, inside the first epoch, and in its validation or after it."""
    stopped = trainer_of(dataset, tmp_path / "parts", stop_at, optimizer=optimizer)
    with pytest.raises(Stopped):
        stopped.fit()
    again = trainer_of(dataset, tmp_path / "parts", optimizer=optimizer)
    again.restore()
    assert asdict(again.progress) == asdict(stopped.progress)
    again.fit()
    (weights, lines, report), (weights_2, lines_2, report_2) = outcome(whole(optimizer)), outcome(tmp_path / "parts")
    assert weights.keys() == weights_2.keys()
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert lines == lines_2
    assert len(lines) == 2
    assert report == report_2


def test_stopped_in_the_final_report_the_last_epoch_stays(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network holds the best epoch then, which must not get into last.pt."""
    losses = iter([0.5, 0.6])
    monkeypatch.setattr("engine.trainer.mean_loss", lambda *_: next(losses))
    trainer = trainer_of(dataset, tmp_path)
    report, at_the_end = trainer._final_report, []

    def stopped_report() -> None:
        at_the_end.append(Run(tmp_path).last.read_bytes())
        trainer.stopped = lambda: True
        report()

    monkeypatch.setattr(trainer, "_final_report", stopped_report)
    with pytest.raises(Stopped):
        trainer.fit()
    assert [Run(tmp_path).last.read_bytes()] == at_the_end


def test_a_stop_counts_the_steps_that_were_skipped_before_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = Trainer.add_gradient

    def poisoned(self: Trainer, batch: Batch, *rest: Any) -> Any:
        if (self.progress.epoch, self.progress.step) == (0, 1):
            batch = replace(batch, images=batch.images * float("nan"))
        return add(self, batch, *rest)

    monkeypatch.setattr(Trainer, "add_gradient", poisoned)
    trainer_of(dataset, tmp_path / "whole").fit()
    capsys.readouterr()
    stopped = trainer_of(dataset, tmp_path / "parts", 3)
    with pytest.raises(Stopped):
        stopped.fit()
    assert stopped.progress.skipped == 1
    assert "step 2 of epoch 1 was skipped: its loss is not a number" in capsys.readouterr().out
    again = trainer_of(dataset, tmp_path / "parts")
    again.restore()
    again.fit()
    assert outcome(tmp_path / "parts")[1:] == outcome(tmp_path / "whole")[1:]


STEADY = {"accumulate": 3, "clip_grad_norm": 0.5, "ema_decay": 0.7, "schedule": "cosine"}


def test_resuming_with_average_and_accumulation(dataset: Dataset, tmp_path: Path) -> None:
    """The batches of one step of the optimizer are not split, and the average goes on where it was."""
    trainer_of(dataset, tmp_path / "whole", **STEADY).fit()
    stopped = trainer_of(dataset, tmp_path / "parts", 2, **STEADY)
    with pytest.raises(Stopped):
        stopped.fit()
    assert stopped.progress.step in (3, 6)
    again = trainer_of(dataset, tmp_path / "parts", **STEADY)
    again.restore()
    again.fit()
    (weights, lines, report), (weights_2, lines_2, report_2) = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert (lines, report) == (lines_2, report_2)
    assert [line["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("changes", [{}, {"augment": False, "accumulate": 2}], ids=["augmented", "as-they-are"])
def test_pictures_grow_and_resuming_ends_bit_identical(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Stages change in the midst of epochs; what is kept in memory is the first part's only."""
    sides: list[int] = []
    add = Trainer.add_gradient

    def watched(self: Trainer, batch: Batch, *rest: Any) -> Any:
        sides.append(batch.images.shape[-1])
        return add(self, batch, *rest)

    monkeypatch.setattr(Trainer, "add_gradient", watched)
    growing = {"picture_sizes": "growing", "image_size": 112, **changes}
    whole = trainer_of(dataset, tmp_path / "whole", **growing)
    whole.fit()
    assert sides == sorted(sides)
    assert {side: sides.count(side) for side in sides} == {
        80: whole.stages()[1].first,
        96: whole.stages()[2].first - whole.stages()[1].first,
        112: whole.total - whole.stages()[2].first,
    }
    seen = sides.copy()
    sides.clear()
    for stop_at in (4, 5, None):
        part = trainer_of(dataset, tmp_path / "parts", stop_at, **growing)
        part.restore()
        if stop_at is None:
            part.fit()
        else:
            with pytest.raises(Stopped):
                part.fit()
    assert sides == seen
    (weights, lines, report), (weights_2, lines_2, report_2) = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert (lines, report) == (lines_2, report_2)


def test_gradients_of_batches_add_up_to_their_mean(dataset: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(dataset, tmp_path, dropout=0.0)
    trainer.model.train()
    batches = training_stream(dataset.root, dataset.files, trainer.plan, trainer.placement.spec(75)).batches()
    pair = [next(batches), next(batches)]
    singles = []
    for batch in pair:
        trainer.add_gradient(batch)
        singles.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
    for number, batch in enumerate(pair):
        trainer.add_gradient(batch, number == 0, together=2)
    for p, a, b in zip(trainer.model.parameters(), *singles, strict=True):
        torch.testing.assert_close(p.grad, (a + b) / 2)


def test_long_gradients_are_shortened(dataset: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(dataset, tmp_path, clip_grad_norm=1e-3)
    batches = training_stream(dataset.root, dataset.files, trainer.plan, trainer.placement.spec(75)).batches()
    trainer.add_gradient(next(batches))
    seen = []
    trainer.step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()]).item())
    )
    trainer.step.update(0.001)
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


def test_the_average_is_what_is_validated_and_kept(dataset: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(dataset, tmp_path, ema_decay=0.9, epochs=1)
    trainer.fit()
    kept = load_checkpoint(Run(tmp_path).best)["model"]
    last = load_checkpoint(Run(tmp_path).last)
    followed = [name for name, t in last["model"].items() if t.is_floating_point()]
    assert all(torch.equal(kept[name], t) for name, t in zip(followed, last["average"]["average"], strict=True))
    assert not torch.equal(kept["logits.weight"], last["model"]["logits.weight"])


def test_a_checkpoint_inside_an_epoch_is_written_and_resumed(
    dataset: Dataset, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    """As after a power cut: what is on the disk is the periodic checkpoint, not one made on leaving."""
    cut = trainer_of(dataset, tmp_path / "cut", checkpoint_steps=3)
    steps = []
    original = cut.step.update

    def step(rate: float) -> None:
        steps.append(1)
        if len(steps) == 5:
            raise MemoryError
        original(rate)

    cut.step.update = step  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        cut.fit()
    again = trainer_of(dataset, tmp_path / "cut")
    again.restore()
    assert again.progress.step == 3
    again.fit()
    weights, weights_2 = outcome(whole("adam"))[0], outcome(tmp_path / "cut")[0]
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)


def test_early_stopping(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([0.5, 0.6, 0.7, 0.8, 0.1, 0.9, 0.9])
    monkeypatch.setattr("engine.trainer.mean_loss", lambda *_: next(losses))
    trainer_of(dataset, tmp_path, epochs=6, patience=2).fit()
    assert [line["val_loss"] for line in Run(tmp_path).metric_lines()] == [0.5, 0.6, 0.7]
    again = trainer_of(dataset, tmp_path, epochs=9, patience=2)
    again.restore()
    again.fit()  # more epochs change nothing, and it says why
    assert len(Run(tmp_path).metric_lines()) == 3
    assert "training stopped early, 2 epochs after its best" in capsys.readouterr().out
    assert json.loads(Run(tmp_path).report.read_text())["epoch"] == 1


def test_early_stopping_begins_at_the_full_size(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stopped or kept for what validation says while pictures are smaller than it shows them."""
    losses = iter([0.1, 0.2, 0.3, 0.4, 0.9, 0.95])
    monkeypatch.setattr("engine.trainer.mean_loss", lambda *_: next(losses))
    changes = {"picture_sizes": "growing", "image_size": 96, "epochs": 6, "patience": 2}
    trainer = trainer_of(dataset, tmp_path, **changes)
    assert 4 * trainer.steps < trainer.stages()[-1].first < 5 * trainer.steps
    trainer.fit()
    assert trainer.progress.epoch == 6
    assert json.loads(Run(tmp_path).report.read_text())["epoch"] == 5


def test_without_early_stopping_the_last_epoch_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the learning rate's course ends is where the network is to be taken from."""
    losses = iter([0.5, 0.6])
    monkeypatch.setattr("engine.trainer.mean_loss", lambda *_: next(losses))
    trainer_of(dataset, tmp_path, epochs=2, patience=None).fit()
    assert json.loads(Run(tmp_path).report.read_text())["epoch"] == 2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("more", [1.0, 2.5])
def test_training_starts_at_what_the_labels_frequencies_say(
    dataset: Dataset, tmp_path: Path, weighted: bool, more: float
) -> None:
    """The best that an answer without a look at the picture can do: no step of the bias would lower the loss."""
    trainer = trainer_of(dataset, tmp_path, class_weights=weighted, positive_weight=more)
    bias, targets = trainer.model.logits.bias, dataset.targets[dataset.splits["train"]]
    logits = bias.expand(len(targets), -1)
    loss = binary_cross_entropy_with_logits(
        logits, torch.from_numpy(targets).float(), pos_weight=trainer.step.pos_weight
    )
    (slope,) = torch.autograd.grad(loss, bias)
    assert slope.abs().max().item() < 0.03
    assert bias.any()


def test_two_steps_of_the_study_s_configuration(dataset: Dataset, tmp_path: Path) -> None:
    """320×320, width 1, all of `paper` but its batch."""
    run = Run(tmp_path)
    run.last.parent.mkdir(parents=True)
    config = resolve("paper", {"batch_size": 2, "device": "cpu"})
    trainer = Trainer(config, dataset, decide("cpu", False, "off"), run, lambda: False)
    before = trainer.model.logits.weight.detach().clone()
    batches = training_stream(dataset.root, dataset.files, trainer.plan, trainer.placement.spec(320)).batches()
    losses = [train_step(trainer, next(batches)) for _ in range(2)]
    assert all(0 < loss < 5 for loss in losses)
    assert (trainer.model.logits.weight - before).abs().max().item() == pytest.approx(0.002, rel=0.2)  # Adam, 2 · lr


@pytest.mark.parametrize(("kind", "scaled"), [(torch.bfloat16, False), (torch.float16, True)], ids=str)
def test_mixed_precision_steps(dataset: Dataset, tmp_path: Path, kind: torch.dtype, scaled: bool) -> None:
    """Both kinds of mixed precision, with the scaler where it belongs, follow float32."""
    placements = (decide("cpu", False, "off"), replace(decide("cpu", False, "off"), amp=kind, scaled=scaled))
    losses = []
    for number, placement in enumerate(placements):
        trainer = trainer_of(dataset, tmp_path / str(number), dropout=0.0)
        trainer = Trainer(trainer.config, dataset, placement, trainer.run, lambda: False)
        spec = placement.spec(75)
        batches = training_stream(dataset.root, dataset.files, trainer.plan, spec).batches()
        losses.append([train_step(trainer, next(batches)) for _ in range(3)])
        assert trainer.model.logits.weight.any()
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_loss_falls_on_a_set_that_can_be_learnt_by_heart(table: Make, tmp_path: Path) -> None:
    """9 pictures, all in each of 8 steps."""
    dataset, run = read_dataset(table(pictures=12), val_fraction=0.25), tmp_path / "run"
    trainer_of(dataset, run, epochs=8, batch_size=9, augment=False, dropout=0.0, lr=0.005, sampling="uniform").fit()
    losses = [line["train_loss"] for line in Run(run).metric_lines()]
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_s_folder(table: Make, tmp_path: Path, page: Callable[[], None]) -> None:
    page()
    root, out = table(), tmp_path / "run"
    arguments = Arguments(data=root, out=out, preset="demo", epochs=1, batch_size=4, image_size=75, width=0.125)
    assert train(arguments) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["labels"] == ["bird", "cat", "dog"]
    assert (config["epochs"], config["data"]) == (1, str(root))
    assert len(config["fingerprint"]) == 64
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    line = json.loads((out / "metrics.jsonl").read_text())
    names = "epoch train_loss val_loss micro_f1 macro_f1 map lr images_per_s data_wait_fraction seconds"
    assert list(line) == names.split()
    assert set(json.loads((out / "thresholds.json").read_text())) == {"bird", "cat", "dog"}
    report = json.loads((out / "report.json").read_text())
    assert set(report["labels"][0]) == {"label", "precision", "recall", "f1", "ap", "support", "intervals"}
    assert {"micro_f1", "macro_f1", "map"} <= report.keys()
    assert "bird" in (out / "report.html").read_text()
    assert list((out / "tensorboard").iterdir())
    for name in ("last.pt", "best.pt"):
        assert load_checkpoint(out / "checkpoints" / name)["labels"] == ["bird", "cat", "dog"]

    with pytest.raises(InputError, match="there is a run in it"):
        train(arguments)
    with pytest.raises(InputError, match="--lr cannot be given with --resume"):
        train(Arguments(resume=out, lr=0.1))
    assert train(Arguments(resume=out, epochs=2)) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "config.json").read_text()) == {**config, "epochs": 2}

    small = replace(arguments, init=out / "checkpoints" / "best.pt")
    assert train(replace(small, out=tmp_path / "other")) == 0
    with pytest.raises(InputError, match="is --width the same"):
        train(replace(small, out=tmp_path / "wide", width=0.25))

    (root / "train.csv").write_text((root / "train.csv").read_text().replace("1.jpg,cat", "1.jpg,dog", 1))
    with pytest.raises(InputError, match="the data set has changed"):
        train(Arguments(resume=out, epochs=3))


@pytest.mark.parametrize("name", ["corel5k", "coco96", "voc20"])
def test_real_photographs_train(
    photographs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, page: Callable[[], None]
) -> None:
    """Two steps of each layout; whole epochs are for people."""
    page()
    monkeypatch.setattr("pipelines.loader.TrainingPlan.steps", lambda self: 2)
    arguments = Arguments(data=photographs / name, out=tmp_path, preset="demo", epochs=1, batch_size=4, width=0.125)
    if name == "corel5k":
        monkeypatch.setattr("pipelines.read.undecodable", lambda *_: [])
    assert train(arguments) == 0
    assert (tmp_path / "report.json").exists()


def test_unusable_checkpoints(tmp_path: Path) -> None:
    import pickle

    for name, content in {"empty": b"", "pickle": pickle.dumps(print), "text": b"no checkpoint"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a usable checkpoint"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def of_one_epoch(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch by the command."""
    out = tmp_path_factory.mktemp("of one epoch") / "run"
    assert train(Arguments(data=dataset.root, out=out, preset="demo", epochs=1, **SMALL)) == 0  # type: ignore[arg-type]
    return out


@pytest.fixture
def finished(of_one_epoch: Path, tmp_path: Path) -> Path:
    """A copy of it, to do something to."""
    return shutil.copytree(of_one_epoch, tmp_path / "run")


def test_a_damaged_run_is_told(finished: Path) -> None:
    """Whatever lies in a file's place, it is told in a line or does no harm."""

    def told(name: str, content: object, words: str) -> None:
        path = finished / name
        before = path.read_bytes()
        if isinstance(content, str):
            path.write_text(content)
        else:
            torch.save(content, path)
        with pytest.raises(InputError, match=words) as error:
            train(Arguments(resume=finished, epochs=2))
        assert "\n" not in str(error.value)
        path.write_bytes(before)

    config = json.loads((finished / "config.json").read_text())
    told(
        "config.json", json.dumps({**config, "epochs": "many"}), "config.json: epochs is 'many', .*not a configuration"
    )
    told("config.json", json.dumps({**config, "fingerprint": None}), "the data set has changed")
    for content in ("[]", "null", "3"):
        told("config.json", content, "not a configuration")
    told("metrics.jsonl", '{"epoch"', "not an epoch's figures")
    told("metrics.jsonl", '{"epoch": 1}\n', "not an epoch's figures")
    last = load_checkpoint(Run(finished).last)
    narrow = {**last, "model": {name: tensor[:1] for name, tensor in last["model"].items() if tensor.dim()}}
    told("checkpoints/last.pt", "half", "not a usable checkpoint")
    for other in ([1], torch.zeros(3)):
        told("checkpoints/last.pt", other, "last.pt: not a usable checkpoint .it holds a")
    for state in (last["model"], {**last, "model": 5}, {**last, "progress": []}, {**last, "rng": None}, narrow):
        told("checkpoints/last.pt", state, "last.pt: not a checkpoint of this run")
    for state in ({"labels": []}, {"model": 5}, narrow):
        told("checkpoints/best.pt", state, "best.pt: not a checkpoint of this run")


def test_a_run_whose_folders_are_lost_goes_on_and_what_is_in_their_place_is_told(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "metrics.jsonl").unlink()
    assert train(Arguments(resume=finished)) == 0
    assert "epochs trained already: 1 of 1; the report is made anew" in capsys.readouterr().out
    shutil.rmtree(finished / "checkpoints")
    shutil.rmtree(finished / "tensorboard")
    assert train(Arguments(resume=finished)) == 0
    shutil.rmtree(finished / "tensorboard")
    (finished / "tensorboard").touch()
    with pytest.raises(InputError, match="tensorboard: cannot be written: File exists"):
        train(Arguments(resume=finished))
    (finished / "config.json").unlink()
    (finished / "config.json").mkdir()
    for run, words in ((finished, "Is a directory"), (finished / "report.json", "Not a directory|no run in it")):
        with pytest.raises(InputError, match=words):
            train(Arguments(resume=run))


def test_a_run_without_checkpoint_leaves_nothing_in_the_way(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command with a smaller --lr must work; what was in the folder before is kept."""
    out = tmp_path / "run"
    arguments = Arguments(data=table(), out=out, preset="demo", epochs=1, batch_size=4, image_size=75, width=0.125)
    with monkeypatch.context() as patch:
        patch.setattr("engine.trainer.mean_loss", lambda *_: float("nan"))
        with pytest.raises(InputError, match="a new run with a smaller --lr"):
            train(arguments)
        assert not out.exists()
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="not a number"):
            train(arguments)
        assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert train(arguments) == 0
    with pytest.raises(InputError, match="File name too long"):
        train(replace(arguments, out=tmp_path / ("n" * 300)))


def test_a_run_killed_before_its_first_checkpoint_begins_with_its_weights_again(
    finished: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out, killed = tmp_path / "whole", tmp_path / "killed"
    start = Arguments(data=dataset.root, out=out, preset="demo", epochs=1, init=Run(finished).best, **SMALL)  # type: ignore[arg-type]
    assert train(start) == 0
    killed.mkdir()
    shutil.copy(out / "config.json", killed)
    assert train(Arguments(resume=killed)) == 0
    (weights, lines, _), (weights_2, lines_2, _) = outcome(out), outcome(killed)
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert lines == lines_2


def test_two_processes_do_not_train_in_one_folder(finished: Path) -> None:
    with Run(finished).locked(), pytest.raises(InputError, match="another process is training in it"):
        train(Arguments(resume=finished))
    assert train(Arguments(resume=finished)) == 0


def test_who_comes_second_to_a_new_folder_leaves_it_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    """Both found it empty when they began, and read the data for minutes."""
    run = Run(tmp_path / "run")
    with run.created():
        write_json(run.config, {})
        with pytest.raises(InputError, match="another process is training in it"), Run(run.folder).created():
            pass
    assert run.config.exists()
    with pytest.raises(InputError, match="there is a run in it"), Run(run.folder).created():
        pass
    assert run.config.exists()


def test_a_run_goes_on_where_mixed_precision_needs_a_scaler(dataset: Dataset, tmp_path: Path) -> None:
    """As on an older GPU, after a start on one that computes in bfloat16."""
    begun = trainer_of(dataset, tmp_path)
    placement = replace(begun.placement, amp=torch.float16, scaled=True)
    scaled = Trainer(begun.config, dataset, placement, begun.run, lambda: False)
    before = scaled.step.scaler.state_dict()
    scaled.step.restore(begun.step.state())
    assert before
    assert scaled.step.scaler.state_dict() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "muon", "ema_decay": 0.9}, {"picture_sizes": "growing", "image_size": 112}],
    ids=["adam", "muon", "growing"],
)
def test_training_on_a_gpu(dataset: Dataset, tmp_path: Path, changes: dict[str, Any]) -> None:
    """From end to end: recorded steps, checkpoints between them, validation beside them, and going on, which gives
    pictures that grow other sizes."""
    out = tmp_path / "run"
    arguments = Arguments(data=dataset.root, out=out, preset="demo", device="cuda", epochs=3, amp=True, **SMALL)  # type: ignore[arg-type]
    assert train(replace(arguments, checkpoint_steps=2, **changes)) == 0
    assert train(Arguments(resume=out, epochs=4)) == 0
    lines = Run(out).metric_lines()
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    weights = load_checkpoint(Run(out).best)["model"]
    assert all(torch.isfinite(t).all() for t in weights.values())


def test_large_batches_are_validated_in_small_ones(dataset: Dataset, tmp_path: Path) -> None:
    """What a recorded step takes stays taken meanwhile."""
    trainer, seen = trainer_of(dataset, tmp_path, batch_size=18), []
    trainer.share = 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.trainer.predict_part", lambda *given: seen.append(given[3]))
        trainer.predict("val")
    assert seen == [64]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["GPU", "CPU"])
def test_memory_that_runs_out_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise error

    with pytest.raises(SystemExit) as leaving:
        main(full)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory; ")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(lambda: (_ for _ in ()).throw(RuntimeError("a fault of ours")))


def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(dataset, tmp_path, epochs=1)
    trainer.fit()
    before = trainer.run.last.read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("torch.save", full)
    trainer.saved.save(trainer.progress)
    with pytest.raises(InputError, match=r"last.pt: cannot be written: is the disk full\?"):
        trainer.saved.finish()
    assert trainer.run.last.read_bytes() == before
    assert not [path for path in trainer.run.last.parent.iterdir() if path.name.startswith(".")]


def test_a_damaged_best_network_is_made_anew(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as an epoch is to come; after the last it is told."""
    trainer_of(dataset, tmp_path, epochs=1).fit()
    best = Run(tmp_path).best
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"best.pt: not a usable checkpoint"):
        trainer_of(dataset, tmp_path, epochs=1).restore()
    again = trainer_of(dataset, tmp_path, epochs=2)
    again.restore()
    assert "the best of the epochs that follow takes its place" in capsys.readouterr().out
    again.fit()
    assert load_checkpoint(best)["progress"]["epoch"] == 2


def test_a_full_disk_does_not_stop_training(
    dataset: Dataset,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full for the whole first epoch; what could not be written then is written after the second."""
    trainer = trainer_of(dataset, tmp_path / "full")
    finish = trainer._finish_epoch

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish_first(*given: Any) -> None:
        with monkeypatch.context() as patch:
            if trainer.progress.epoch == 0:
                for name in ("torch.save", "engine.run.Run.write_metrics", "engine.scalars.Scalars._open"):
                    patch.setattr(name, full)
            finish(*given)
            for write in trainer.saved.checkpoints._writes.values():
                write.result()

    monkeypatch.setattr(trainer, "_finish_epoch", finish_first)
    trainer.fit()
    said = capsys.readouterr().out
    for name in ("metrics.jsonl", "tensorboard", "best.pt"):
        assert f"{name}: cannot be written: No space left on device; training goes on" in said
    (weights, lines, report), (weights_2, lines_2, report_2) = outcome(whole("adam")), outcome(tmp_path / "full")
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert (lines, report) == (lines_2, report_2)


@pytest.mark.parametrize("redirection", ["| true", "> /dev/full"], ids=["closed", "full"])
def test_an_output_that_nobody_reads_is_one_line(table: Make, tmp_path: Path, redirection: str) -> None:
    line = f"{sys.executable} -u -m engine.train --data {table()} --preset demo --out {tmp_path / 'run'} --width 0.125"
    line += " --image-size 75 --epochs 1 --batch-size 4"
    answer = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {redirection}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1


def test_bad_input_leaves_no_folder_behind(table: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        train(Arguments(data=table(), out=tmp_path / "run", preset="demo", init=tmp_path / "nowhere.pt"))
    assert not (tmp_path / "run").exists()


def test_a_place_for_the_run_that_cannot_be_one_is_told_before_any_work(tmp_path: Path) -> None:
    """The data set, which is not there, is not asked for yet."""
    file = tmp_path / "file"
    file.touch()
    for out, words in ((file, f"{file}: is a file"), (file / "run", f"{file} is a file")):
        with pytest.raises(InputError, match=words):
            train(Arguments(data=tmp_path / "nowhere", out=out, preset="demo"))


def test_a_configuration_from_elsewhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        Run(tmp_path).read_config()
    assert Config.load({"epochs": 3}).epochs == 3


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.train", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nope", "3"], "--nope"),
        (["--epochs", "many"], "--epochs"),
        (["--preset", "big"], "--preset"),
        (["--data", "/no/such/folder", "--preset", "demo"], "/no/such/folder: no such folder"),
        (["--resume", "/no/such/run"], "no run in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_command_lines(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine.train", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main(training)
    assert leaving.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert words in errors
    assert errors.count("\n") == 1


def test_a_process_ends_with_one_line() -> None:
    """Nothing that is loaded on the way says anything."""
    answer = command("--data", "/no/such/folder", "--preset", "demo")
    assert answer.returncode == 2
    assert answer.stderr.splitlines() == ["error: /no/such/folder: no such folder"]


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; import engine.train as t\ntry: t.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'nvidia', 'sklearn', 'polars'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "--oversample-target" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_in_the_first_moments_is_no_traceback() -> None:
    """While a command is still loading its modules, and once it runs."""
    early = "import os, sys, time; sys.argv = ['-m']; import engine; os.kill(os.getpid(), 2); time.sleep(9)"
    late = early.replace("import engine;", "import engine; from engine.command import main; main(lambda:")
    for code in (early, late.replace("; time.sleep(9)", ")")):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=60,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what runs behind a shell
        )
        assert (answer.returncode, answer.stderr) == (130, "")


def test_a_run_s_folder_taken_away_meanwhile_is_one_line(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(dataset, tmp_path / "run")
    validate = trainer.predict

    def without_folder(split: str) -> object:
        shutil.rmtree(tmp_path / "run")
        return validate(split)

    trainer.predict = without_folder  # type: ignore[method-assign, assignment]
    with pytest.raises(SystemExit) as leaving:
        main(lambda: trainer.fit() or 0)  # type: ignore[func-returns-value]
    assert leaving.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"error: {tmp_path / 'run'}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signals_ask_to_stop(number: signal.Signals, status: int) -> None:
    """Each has its own exit status; a second Ctrl-C alone does not wait."""
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt()
        os.kill(os.getpid(), number)
        assert interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupt.status == status
    assert signal.getsignal(number) is before


def test_ctrl_c_saves_and_leaves_with_130(table: Make, tmp_path: Path) -> None:
    arguments = ["--data", str(table()), "--out", str(tmp_path / "run"), "--preset", "demo", "--epochs", "2000"]
    arguments += ["--width", "0.125", "--image-size", "75", "--batch-size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "engine.train", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert f"--resume {tmp_path / 'run'}" in rest
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["epoch"] >= 1


def test_a_terminal_that_is_closed_does_not_keep_a_run_from_being_saved(tmp_path: Path) -> None:
    """Writing to it fails from then on; under nohup nothing is to be stopped."""
    code = f"""
import contextlib, os, pathlib
from engine.command import Interrupt
from pipelines.progress import bar, say
with Interrupt() as interrupt, bar("training") as advance:
    say("begun")
    while not interrupt():
        with contextlib.suppress(OSError):
            os.read(0, 1)  # waits for the terminal's end, whether the signal comes before it or after
    advance(1, 2, "")
say("stopped")
pathlib.Path({str(tmp_path / "saved")!r}).write_text(str(interrupt.status))
"""
    terminal, ours = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=ours,
        stdout=ours,
        stderr=ours,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: (
            signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whatever these tests were started from
            os.setsid(),
            fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ),
    )
    os.close(ours)
    said = b""
    while b"begun" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert child.wait(timeout=60) == 0
    assert (tmp_path / "saved").read_text() == "129"


def test_nohup_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
