"""The training loop: steps, epochs, validation, checkpoints."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from engine.answers import Stopped, mean_loss, predict
from engine.checkpoint import Checkpoints, load_checkpoint, newest_checkpoint, remove_remains
from engine.config import Config
from engine.device import Placement
from engine.final_report import write_figures
from engine.memory import keep_freed_memory
from engine.metrics import scores
from engine.model import InceptionResNetV1
from engine.report import write_page
from engine.run import Run
from engine.scalars import Scalars, unless_full
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
        device = placement.device
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.model = InceptionResNetV1(len(dataset.labels), config.width, config.dropout, config.block8)
        weight = torch.from_numpy(positive_weights(self.plan.targets)) if config.class_weights else None
        odds = torch.from_numpy(label_odds(self.plan.targets))
        self.model.start_at(odds if weight is None else odds * weight)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.targets = torch.from_numpy(dataset.targets).to(device)
        self.step = Step(config, placement, self.model, None if weight is None else weight.to(device))
        self.progress = Progress()
        self.checkpoints = Checkpoints(run)
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl
        self.memory = None if device.type == "cuda" else picture_memory(config.picture_memory)

    def fit(self) -> None:
        """Trains to the end and writes thresholds.json, report.json and report.html of the best epoch.

        Raises:
            Stopped: after saving, when `stopped` says so.
            InputError: the loss is not a number.
        """
        at = self.progress
        scalars = Scalars(self.run.tensorboard, at.epoch + 1)
        began_at = at.epoch
        batches = self.stream().batches(at.epoch * self.steps + at.step)
        try:
            while at.epoch < self.config.epochs and not self._stale():
                began = time.perf_counter()
                with bar(f"epoch {at.epoch + 1}/{self.config.epochs}") as advance:
                    self._train_epoch(batches, advance, began)
                self._finish_epoch(began, scalars)
                if self.memory is not None and at.epoch == began_at + 1:
                    say(self.memory.summary(len(self.plan.rows)))
        except Stopped:
            self.save()
            raise
        finally:
            scalars.close()
            self.checkpoints.finish()
        self._final_report()  # stopped there, nothing is saved: last.pt is whole

    def stream(self) -> PictureStream:
        """The training pictures from the first step on."""
        spec = self.placement.spec(self.config.image_size)
        return training_stream(self.dataset.root, self.dataset.files, self.plan, spec, self.memory)

    def _stale(self) -> bool:
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _train_epoch(self, batches: Any, advance: Advance, began: float) -> None:
        at, config = self.progress, self.config
        self.model.train()
        while at.step < self.steps:
            if self.stopped():
                at.seconds += time.perf_counter() - began
                raise Stopped
            before = at.step
            # What an interruption must not split: the batches of one step of the optimizer.
            together = min(config.accumulate, self.steps - at.step)
            rate = self._learning_rate()
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
            if at.step // SHOW_EVERY > before // SHOW_EVERY:
                advance(at.step, self.steps, self._figures())
            if at.step // config.checkpoint_steps > before // config.checkpoint_steps and at.step < self.steps:
                self.save()

    def _learning_rate(self) -> float:
        at, config = self.progress, self.config
        step, steps = at.epoch * self.steps + at.step, config.epochs * self.steps
        return learning_rate(config.schedule, config.lr, step, steps)

    def add_gradient(self, batch: Batch, first: bool = True, together: int = 1) -> Tensor:
        """Adds a batch's gradient; see engine.step."""
        targets = self.targets[batch.rows.to(self.targets.device)]
        return self.step.add_gradient(batch.images, targets, first, together)

    def _figures(self) -> str:
        at = self.progress
        loss, rate = float(self.step.loss_sum) / at.step, at.step * self.config.batch_size / at.stepping
        return f"loss {loss:.4f}  {rate:.0f} images/s  waiting {at.waited / at.stepping:.0%}"

    def _finish_epoch(self, began: float, scalars: Scalars) -> None:
        at = self.progress
        train_loss = float(self.step.loss_sum) / self.steps
        try:
            with self._evaluated():
                logits, rows = self._predict("val")
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
        improved = line["val_loss"] < at.best_loss
        at.best_loss = min(at.best_loss, line["val_loss"])
        at.stale = 0 if improved else at.stale + 1
        at.epoch, at.step, at.waited, at.stepping = at.epoch + 1, 0, 0.0, 0.0
        self.step.loss_sum.zero_()
        self.lines.append(line)
        with unless_full(self.run.metrics):
            self.run.write_metrics(self.lines)
        scalars.add(line)
        if improved:
            with self._evaluated():
                self.checkpoints.save(self._network(), self.run.best)
        self.save()
        say(
            f"epoch {at.epoch}/{self.config.epochs}  train loss {train_loss:.4f}  val loss {line['val_loss']:.4f}  "
            f"micro-F1 {line['micro_f1']:.4f}  macro-F1 {line['macro_f1']:.4f}  mAP {line['map']:.4f}  "
            f"{line['images_per_s']:.0f} images/s  waiting {line['data_wait_fraction']:.0%}  {at.seconds:.0f} s"
        )

    def _evaluated(self) -> AbstractContextManager[None]:
        """The weights that validation sees and best.pt keeps are in the network while the context lasts."""
        return nullcontext() if self.step.average is None else self.step.average.in_place()

    def _predict(self, split: str) -> tuple[Tensor, Any]:
        spec = self.placement.spec(self.config.image_size)
        rows = self.dataset.splits[split]
        stream = evaluation_stream(self.dataset.root, self.dataset.files, rows, self.config.batch_size, spec)
        count = math.ceil(len(rows) / self.config.batch_size)
        with bar("validating") as advance:
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

    def save(self) -> None:
        """Leaves all state to the writer of last.pt."""
        cuda = self.placement.device.type == "cuda"
        state = {
            **self._network(),
            **self.step.state(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if cuda else None,
        }
        self.checkpoints.save(state, self.run.last)

    def _network(self) -> dict[str, Any]:
        """What best.pt holds."""
        return {
            "model": self.model.state_dict(),
            "labels": list(self.dataset.labels),
            "progress": asdict(self.progress),
        }

    def restore(self) -> None:
        """Goes on from the newest usable checkpoint; a run without one starts at the beginning.

        Raises:
            InputError: damaged checkpoints, or those of another run or other labels.
        """
        remove_remains(self.run)
        state = newest_checkpoint(self.run, self.placement.device)
        if state is None:
            self.run.write_metrics([])
            return
        try:
            self._take_over(state)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.run.last}: not a checkpoint of this run: {said}") from None
        if self.progress.epoch:
            self._require_best()  # better told now than after the last epoch
        self.lines = [line for line in self.run.metric_lines() if line["epoch"] <= self.progress.epoch]
        self.run.write_metrics(self.lines)

    def _take_over(self, state: dict[str, Any]) -> None:
        if tuple(state["labels"]) != self.dataset.labels:
            raise InputError(f"{self.run.last}: was trained for other labels than the data set has")
        self.model.load_state_dict(state["model"])
        self.step.restore(state)
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"].cpu())
        if state["rng_cuda"] is not None and self.placement.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"].cpu())

    def _require_best(self) -> None:
        """Looks whether best.pt is there and whole; if not, an epoch that is still to come is to be the best.

        Raises:
            InputError: it is not, and no epoch is to come; or it is another run's.
        """
        try:
            best = load_checkpoint(self.run.best)
        except InputError as error:
            if self.progress.epoch >= self.config.epochs or self._stale():
                raise
            say(f"{error}; the best of the epochs that follow takes its place")
            self.progress.best_loss, self.progress.stale = math.inf, 0
        else:
            self._weights_of(best)

    def _best(self) -> tuple[dict[str, Tensor], int]:
        """Weights and epoch that best.pt holds.

        Raises:
            InputError: it is missing, damaged, or another run's.
        """
        return self._weights_of(load_checkpoint(self.run.best, self.placement.device))

    def _weights_of(self, best: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
        own = self.model.state_dict()
        try:
            weights, epoch = best["model"], int(best["progress"]["epoch"])
            fits = {name: t.shape for name, t in weights.items()} == {name: t.shape for name, t in own.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise InputError(f"{self.run.best}: not a checkpoint of this run")
        return weights, epoch
