"""The training loop: steps, epochs, validation, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.answers import Stopped, mean_loss, predict
from engine.config import Config
from engine.device import Placement
from engine.final_report import write_figures
from engine.memory import keep_freed_memory
from engine.metrics import scores
from engine.model import InceptionResNetV1
from engine.report import write_page
from engine.run import Run, load_checkpoint, save_checkpoint
from engine.schedule import learning_rate
from engine.step import Step
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.loader import Batch, PictureStream, TrainingPlan, evaluation_stream, training_stream
from pipelines.memory import picture_memory
from pipelines.progress import Advance, bar, say
from pipelines.sampling import label_odds, positive_weights

SHOW_EVERY = 10  # steps between looks at the loss, which wait for the device


@dataclass(slots=True)
class Progress:
    """How far a run is; with the tensors of the checkpoint, all its state.

    Attributes:
        epoch, step: the next step, `step` counted in the epoch.
        best_loss: lowest validation loss.
        stale: epochs since then.
        seconds: training and validation so far.
        waited: seconds of this epoch's steps so far spent waiting for pictures.
        stepping: seconds of this epoch's steps so far, waiting included.
    """

    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    stepping: float = 0.0


class Trainer:
    """A network in training on a data set, in a run's folder.

    Args:
        config: every choice.
        dataset: read, checked and split.
        placement: device and arithmetic.
        run: an existing folder.
        stopped: asked between steps; when it says yes, the state is saved and `Stopped` raised.

    Attributes:
        steps: batches an epoch.
        total: batches from beginning to end of the learning rate's course; all epochs' unless changed.
    """

    def __init__(
        self, config: Config, dataset: Dataset, placement: Placement, run: Run, stopped: Callable[[], bool]
    ) -> None:
        self.config, self.dataset, self.placement, self.run, self.stopped = config, dataset, placement, run, stopped
        rows = dataset.splits["train"]
        self.plan = TrainingPlan(
            rows,
            dataset.targets[rows],
            config.sampling,
            config.oversample_target,
            config.seed,
            config.batch_size,
            config.image_size,
            config.augment,
        )
        self.steps = self.plan.steps()
        self.total = config.epochs * self.steps
        device = placement.device
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.model = InceptionResNetV1(len(dataset.labels), config.width, config.dropout, config.block8)
        if config.branch_init == "zero":
            self.model.start_without_branches()
        weight = torch.full((len(dataset.labels),), config.positive_weight)
        if config.class_weights:
            weight *= torch.from_numpy(positive_weights(self.plan.targets))
        self.model.start_at(torch.from_numpy(label_odds(self.plan.targets)) * weight)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.targets = torch.from_numpy(dataset.targets).to(device)
        self.step = Step(config, placement, self.model, weight.to(device) if (weight != 1).any() else None)
        self.progress = Progress()
        self.memory = None if device.type == "cuda" else picture_memory(config.picture_memory)

    def fit(self) -> None:
        """Trains to the end and writes thresholds.json, report.json and report.html of the best epoch.

        Raises:
            Stopped: after saving, when `stopped` says so.
            InputError: the loss is not a number.
        """
        from torch.utils.tensorboard import SummaryWriter

        at = self.progress
        writer = SummaryWriter(str(self.run.tensorboard), purge_step=at.epoch + 1)
        began_at = at.epoch
        batches = self.stream().batches(at.epoch * self.steps + at.step)
        try:
            while at.epoch < self.config.epochs and not self.stale():
                began = time.perf_counter()
                with bar(f"epoch {at.epoch + 1}/{self.config.epochs}") as advance:
                    self._train_epoch(batches, advance, began)
                self._finish_epoch(began, writer)
                if self.memory is not None and at.epoch == began_at + 1:
                    say(self.memory.summary(len(self.plan.rows)))
        except Stopped:
            self.save()
            raise
        finally:
            writer.close()
        self._final_report()  # stopped there, nothing is saved: last.pt is whole

    def stream(self) -> PictureStream:
        """The training pictures from the first step on."""
        spec = self.placement.spec(self.config.image_size)
        return training_stream(self.dataset.root, self.dataset.files, self.plan, spec, self.memory)

    def stale(self) -> bool:
        """Whether early stopping ends the run."""
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _train_epoch(self, batches: Iterator[Batch], advance: Advance, began: float) -> None:
        at, every = self.progress, self.config.checkpoint_steps
        self.model.train()
        while at.step < self.steps:
            if self.stopped():
                at.seconds += time.perf_counter() - began
                raise Stopped
            before = at.step
            self.take_step(batches)
            if at.step // SHOW_EVERY > before // SHOW_EVERY:
                advance(at.step, self.steps, self._figures())
            if at.step // every > before // every and at.step < self.steps:
                self.save()

    def take_step(self, batches: Iterator[Batch]) -> None:
        """One step of the optimizer, with the batches that it takes."""
        at, config = self.progress, self.config
        # What an interruption must not split: the batches of one step of the optimizer.
        together = min(config.accumulate, self.steps - at.step)
        rate = learning_rate(config.schedule, config.lr, at.epoch * self.steps + at.step, self.total)
        for number in range(together):
            asked = time.perf_counter()
            batch = next(batches)
            received = time.perf_counter()
            self.add_gradient(batch, number == 0, together)
            at.step += 1
            at.waited += received - asked
            at.stepping += time.perf_counter() - asked
        asked = time.perf_counter()
        self.step.update(rate)
        at.stepping += time.perf_counter() - asked

    def add_gradient(self, batch: Batch, first: bool = True, together: int = 1) -> Tensor:
        """Adds a batch's gradient; see engine.step."""
        targets = self.targets[batch.rows.to(self.targets.device)]
        return self.step.add_gradient(batch.images, targets, first, together)

    def _figures(self) -> str:
        at = self.progress
        loss, rate = float(self.step.loss_sum) / at.step, at.step * self.config.batch_size / at.stepping
        return f"loss {loss:.4f}  {rate:.0f} images/s  waiting {at.waited / at.stepping:.0%}"

    def _finish_epoch(self, began: float, writer: Any) -> None:
        at = self.progress
        train_loss = float(self.step.loss_sum) / self.steps
        try:
            logits, rows = self.predict("val")
        except Stopped:
            at.seconds += time.perf_counter() - began
            raise
        targets = self.dataset.targets[rows]
        line: dict[str, Any] = {"epoch": at.epoch + 1, "train_loss": train_loss, "val_loss": mean_loss(logits, targets)}
        if not (math.isfinite(train_loss) and math.isfinite(line["val_loss"])):
            raise InputError(
                f"the loss is not a number after epoch {at.epoch + 1}; a new run with a smaller --lr helps"
            )
        line |= asdict(scores(torch.sigmoid(logits).numpy(), targets))
        at.seconds += time.perf_counter() - began
        line |= {
            "lr": float(self.step.optimizer.param_groups[0]["lr"]),
            "images_per_s": self.steps * self.config.batch_size / max(at.stepping, 1e-9),
            "data_wait_fraction": at.waited / max(at.stepping, 1e-9),
            "seconds": at.seconds,
        }
        best = self.end_epoch(line["val_loss"])
        self.run.write_metrics([*self.run.metric_lines(), line])
        for name, value in line.items():
            if name != "epoch":
                writer.add_scalar(name, value, at.epoch)
        if best:
            with self.evaluated():
                self.save(best=True)
        self.save()
        say(
            f"epoch {at.epoch}/{self.config.epochs}  train loss {train_loss:.4f}  val loss {line['val_loss']:.4f}  "
            f"micro-F1 {line['micro_f1']:.4f}  macro-F1 {line['macro_f1']:.4f}  mAP {line['map']:.4f}  "
            f"{line['images_per_s']:.0f} images/s  waiting {line['data_wait_fraction']:.0%}  {at.seconds:.0f} s"
        )

    def end_epoch(self, val_loss: float) -> bool:
        """Progress goes on to the next epoch; whether its network is the best so far, for best.pt.

        By the validation loss where early stopping goes by it; without, the last, at the end of the rate's course.
        """
        at = self.progress
        improved = val_loss < at.best_loss
        at.best_loss = min(at.best_loss, val_loss)
        at.stale = 0 if improved else at.stale + 1
        at.epoch, at.step, at.waited, at.stepping = at.epoch + 1, 0, 0.0, 0.0
        self.step.loss_sum.zero_()
        return improved or self.config.patience is None

    def evaluated(self) -> AbstractContextManager[None]:
        """The weights that validation sees and best.pt keeps are in the network while the context lasts."""
        return nullcontext() if self.step.average is None else self.step.average.in_place()

    def predict(self, split: str) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits and row numbers of a split, by the weights that validation sees.

        Raises:
            Stopped: `stopped` became true.
        """
        spec = self.placement.spec(self.config.image_size)
        rows = self.dataset.splits[split]
        stream = evaluation_stream(self.dataset.root, self.dataset.files, rows, self.config.batch_size, spec)
        count = math.ceil(len(rows) / self.config.batch_size)
        with bar("validating") as advance, self.evaluated():
            return predict(
                self.model,
                stream,
                self.placement,
                len(self.dataset.labels),
                self.stopped,
                lambda done: advance(done, count, ""),
            )

    def _final_report(self) -> None:
        """Figures, thresholds and page of the best epoch on validation."""
        weights, epoch = self._best()
        config, labels = self.config, self.dataset.labels
        network = InceptionResNetV1(len(labels), config.width, config.dropout, config.block8)
        network.load_state_dict(weights)
        with bar("evaluating the best epoch") as advance:
            write_figures(
                self.run, network, epoch, self.dataset, config, self.stopped, lambda n, of: advance(n, of, "")
            )
        try:
            write_page(self.run, self.dataset)
        except Exception as error:  # the run is whole without its page, whatever kept it from being drawn
            say(f"report.html could not be made: {error}; python -m engine.report {self.run.folder} tries again")

    def save(self, best: bool = False) -> None:
        """Writes all state to last.pt or best.pt."""
        cuda = self.placement.device.type == "cuda"
        state = {
            "model": self.model.state_dict(),
            **self.step.state(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if cuda else None,
            "labels": list(self.dataset.labels),
        }
        save_checkpoint(self.run.best if best else self.run.last, state)

    def restore(self) -> None:
        """Goes on from last.pt; a run without one starts at the beginning.

        Raises:
            InputError: a damaged checkpoint, or one of other labels.
        """
        if not self.run.last.exists():
            self.run.write_metrics([])
            return
        state = load_checkpoint(self.run.last, self.placement.device)
        try:
            self._take_over(state)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.run.last}: not a checkpoint of this run: {said}") from None
        if self.progress.epoch:
            self._best()  # better told now than after the last epoch
        done = [line for line in self.run.metric_lines() if line["epoch"] <= self.progress.epoch]
        self.run.write_metrics(done)

    def _take_over(self, state: dict[str, Any]) -> None:
        if tuple(state["labels"]) != self.dataset.labels:
            raise InputError(f"{self.run.last}: was trained for other labels than the data set has")
        self.model.load_state_dict(state["model"])
        self.step.restore(state)
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"].cpu())
        if state["rng_cuda"] is not None and self.placement.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"].cpu())

    def _best(self) -> tuple[dict[str, Tensor], int]:
        """Weights and epoch that best.pt holds.

        Raises:
            InputError: it is missing, damaged, or another network's.
        """
        best = load_checkpoint(self.run.best, self.placement.device)
        own = self.model.state_dict()
        try:
            weights, epoch = best["model"], int(best["progress"]["epoch"])
            fits = {name: t.shape for name, t in weights.items()} == {name: t.shape for name, t in own.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise InputError(f"{self.run.best}: not a checkpoint of this run")
        return weights, epoch
