"""The training loop: steps, epochs, validation, and when state is saved (engine.saved)."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.answers import MOST, Stopped, mean_loss, predict_part
from engine.config import Config
from engine.device import Placement
from engine.final_report import write_figures
from engine.fitting import out_of_memory, take_steps
from engine.memory import keep_freed_memory
from engine.metrics import scores
from engine.model import InceptionResNetV1
from engine.picture_sizes import Stage, stages
from engine.ranks import ALONE, STALLED, Ranks
from engine.report import write_page
from engine.run import Run
from engine.saved import Progress, Saved
from engine.scalars import Scalars, unless_full
from engine.schedule import learning_rate
from engine.step import Step
from engine.watchdog import Watchdog
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.loader import Batch, PictureStream, TrainingPlan, training_stream
from pipelines.memory import picture_memory
from pipelines.progress import Advance, bar, say
from pipelines.sampling import label_odds, positive_weights, rank_slice

SHOW_EVERY = 10  # steps between looks at the loss, which wait for the device
MOST_IN_A_ROW = 10  # skipped updates
MOST_SKIPPED = 0.05  # of an epoch's batches, if more than MOST_IN_A_ROW
NAMED = 8  # pictures of a skipped update that a line names


class OutOfMemory(Exception):  # noqa: N818 -- what is wrong is the batch, and is told as that
    """The first steps took more memory than there is."""


class Trainer:
    """A network in training on a data set, in a run's folder.

    Args:
        config: every choice.
        dataset: read, checked and split.
        placement: device and arithmetic.
        run: an existing folder.
        stopped: asked between steps; when it says yes, the state is saved and `Stopped` raised.
        ranks: who trains together. The first of them writes.
        watchdog: is told where training is.

    Attributes:
        steps: batches an epoch.
        total: batches from beginning to end of the learning rate's course; all epochs' unless changed.

    Raises:
        InputError: a batch that is too small for so many ranks.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        placement: Placement,
        run: Run,
        stopped: Callable[[], bool],
        ranks: Ranks = ALONE,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.config, self.dataset, self.placement, self.run, self.stopped = config, dataset, placement, run, stopped
        self.ranks, self.watchdog = ranks, watchdog or Watchdog(STALLED)
        positions = rank_slice(0, config.batch_size, ranks.rank, ranks.count)
        self.share = positions.stop - positions.start
        least = config.batch_size // ranks.count
        if least < (1 if config.sync_norm else 2):
            needs = "1 picture or more" if config.sync_norm else "2 pictures or more for batch norm, or --sync-norm"
            raise InputError(f"--batch-size {config.batch_size}: each of {ranks.count} processes needs {needs}")
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
            ranks.rank,
            ranks.count,
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
        uneven = weight.to(device) if (weight != 1).any() else None
        self.step = Step(config, placement, self.model, uneven, ranks.group, self.share / config.batch_size)
        if ranks.rank:
            torch.manual_seed(config.seed + (ranks.rank << 32))  # of dropout, which is not to be the same on all
        self.progress = Progress()
        self.saved = Saved(run, self.step, dataset.labels, ranks)
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl
        self.memory = None if device.type == "cuda" else picture_memory(config.picture_memory, ranks.beside)
        self._recent: list[tuple[int, Tensor]] = []  # step and rows of each update since the last look
        self._told_to_stop = False  # all ranks, at the same step

    def fit(self) -> None:
        """Trains to the end and writes thresholds.json, report.json and report.html of the best epoch.

        Raises:
            Stopped: after saving, when `stopped` says so.
            OutOfMemory: the first steps take too much.
            InputError: the loss, or too many updates' losses or gradients, are not numbers.
        """
        at = self.progress
        start = at.epoch * self.steps + at.step
        if self._goes_on() and start < self.stages()[-1].first:
            self._try_full_size()
        scalars = Scalars(self.run.tensorboard, at.epoch + 1) if self.ranks.first else None
        began_at = at.epoch
        if at.epoch >= self.config.epochs:
            done = f"{at.epoch} of {self.config.epochs}"
            say(f"epochs trained already: {done}; the report is made anew, --epochs N goes on")
        elif at.stopped_early(self.config.patience):
            say(f"training stopped early, {at.stale} epochs after its best; the report is made anew")
        batches = self.batches(start)
        try:
            while self._goes_on():
                began = time.perf_counter()
                with bar(f"epoch {at.epoch + 1}/{self.config.epochs}") as advance:
                    self._train_epoch(batches, advance, began)
                self._finish_epoch(began, scalars)
                if self.memory is not None and at.epoch == began_at + 1:
                    say(self.memory.summary(len(self.plan.rows)))
        except Stopped:
            self.saved.save(at)
            raise
        finally:
            self.watchdog.moved("writing checkpoints")
            if scalars is not None:
                scalars.close()
            self.saved.finish()
        self._final_report()  # stopped there, nothing is saved: last.pt is whole

    def _goes_on(self) -> bool:
        """Whether there is an epoch left to train."""
        at = self.progress
        return at.epoch < self.config.epochs and not at.stopped_early(self.config.patience)

    def stages(self) -> list[Stage]:
        """Sizes of the training pictures over the run."""
        config = self.config
        return stages(config.picture_sizes, config.image_size, self.total, self.steps, config.accumulate)

    def stream(self, size: int | None = None, end: int | None = None) -> PictureStream:
        """The training pictures of one size, by default the full one, up to batch number `end` if there is one."""
        full = self.config.image_size
        spec = replace(self.placement.spec(size or full), kept=full)
        plan = replace(self.plan, size=spec.size)
        return training_stream(self.dataset.root, self.dataset.files, plan, spec, self.memory, end)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The training pictures from batch number `start` on, of the size that each stage has.

        Raises:
            InputError: as PictureStream.batches does.
        """
        run = self.stages()
        bad: dict[int, str] = {}
        for stage, following in zip(run, [*run[1:], None], strict=True):
            end = None if following is None else following.first
            if end is not None and end <= start:
                continue
            if self.memory is not None and not self.config.augment:
                self.memory.clear()  # of pictures that are letterboxed to another stage's size
            stream = self.stream(stage.size, end)
            stream.bad = bad
            yield from stream.batches(max(start, stage.first))

    def _try_full_size(self) -> None:
        """Memory that is too small for the steps of the last stage is not to be found out after most of the run.

        Raises:
            OutOfMemory: it is; on the CPU the system may kill the process.
        """
        self.watchdog.moved("trying steps on pictures of the full size")
        device = self.placement.device
        with self._first_steps(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            take_steps(self.config, self.placement, len(self.dataset.labels), self.share)
        gc.collect()
        torch.cuda.empty_cache()

    def _train_epoch(self, batches: Iterator[Batch], advance: Advance, began: float) -> None:
        at, every = self.progress, self.config.checkpoint_steps
        self.model.train()
        while at.step < self.steps:
            if self._stops():
                self._look()
                at.seconds += time.perf_counter() - began
                raise Stopped
            before = at.step
            self.take_step(batches)
            if at.step // SHOW_EVERY > before // SHOW_EVERY:
                advance(at.step, self.steps, self._figures())
            if at.step // every > before // every and at.step < self.steps:
                self._look()
                self.saved.save(at)

    def take_step(self, batches: Iterator[Batch]) -> None:
        """One step of the optimizer, with the batches that it takes.

        Raises:
            OutOfMemory, InputError: as `fit` does.
        """
        at, before, moved = self.progress, self.progress.step, self.watchdog.moved
        # What an interruption must not split: the batches of one step of the optimizer.
        together = min(self.config.accumulate, self.steps - at.step)
        rate = learning_rate(self.config.schedule, self.config.lr, at.epoch * self.steps + at.step, self.total)
        rows = []
        for number in range(together):
            asked = time.perf_counter()
            moved(f"waiting for the pictures of step {at.step + 1} of epoch {at.epoch + 1}")
            batch = next(batches)
            received = time.perf_counter()
            moved(f"step {at.step + 1} of epoch {at.epoch + 1}")
            with self._first_steps():
                self.add_gradient(batch, number == 0, together)
            rows.append(batch.rows)
            at.step += 1
            at.waited += received - asked
            at.stepping += time.perf_counter() - asked
        asked = time.perf_counter()
        with self._first_steps():
            self.step.update(rate)
        self._recent.append((before, torch.cat(rows)))
        # Where a look costs nothing, other ranks are not kept waiting for what a signal asks.
        always = self.ranks.count > 1 and self.placement.device.type == "cpu"
        if always or at.step // SHOW_EVERY > before // SHOW_EVERY or at.step == self.steps:
            self._look()
        at.stepping += time.perf_counter() - asked

    @contextmanager
    def _first_steps(self) -> Iterator[None]:
        """Memory that runs out while updates are still taking theirs for the first time, is about the batch.

        Raises:
            OutOfMemory: in place of what the allocator raised.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if self.step.updates > self.step.warm_from or not out_of_memory(error):
                raise
            raise OutOfMemory from None

    def _stops(self) -> bool:
        """Whether it is time to stop: a rank alone decides at once, several when all have heard of it."""
        asked = self.stopped()
        if self.ranks.count == 1:
            return asked
        if asked:
            self.step.ask_to_stop()
        return self._told_to_stop

    def _look(self) -> None:
        """Learns what became of the last updates, which waits for the device, and names those that were skipped.

        Raises:
            InputError: they are too many.
        """
        at, recent = self.progress, self._recent
        self._recent = []
        for (step, rows), outcome in zip(recent, self.step.outcomes(len(recent)), strict=True):
            self._told_to_stop |= outcome.stop
            at.in_a_row = at.in_a_row + 1 if outcome.skipped else 0
            if outcome.skipped:
                at.skipped += math.ceil(len(rows) / self.share)
                self._tell_skipped(step, self.ranks.gather((outcome.loss_here, rows.tolist())))
        if at.in_a_row >= MOST_IN_A_ROW or at.skipped > max(MOST_IN_A_ROW, MOST_SKIPPED * self.steps):
            raise InputError(
                f"{at.skipped} steps of epoch {at.epoch + 1} had a loss or a gradient that is not a number, "
                f"{at.in_a_row} of them in a row; {self.run.last} is from before; a new run with a smaller --lr helps"
            )

    def _tell_skipped(self, step: int, found: list[tuple[bool, list[int]]]) -> None:
        """One line; `found` is of each rank whether its loss was finite, and its rows."""
        rows = sorted({row for finite, own in found if not finite for row in own})
        what = "loss" if rows else "gradient"
        rows = rows or sorted({row for _, own in found for row in own})
        named = ", ".join(f"{row} ({self.dataset.files[row]})" for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        say(
            f"step {step + 1} of epoch {self.progress.epoch + 1} was skipped: its {what} is not a number; "
            f"its pictures are rows {named}{more}"
        )

    def add_gradient(self, batch: Batch, first: bool = True, together: int = 1) -> Tensor:
        """Adds a batch's gradient; see engine.step."""
        rows = batch.rows
        if self.targets.is_cuda:  # or else Python would wait for the step before
            rows = rows.pin_memory().to(self.targets.device, non_blocking=True)
        targets = self.targets[rows]
        return self.step.add_gradient(batch.images, targets, first, together)

    def _figures(self) -> str:
        at = self.progress
        loss, rate = self._train_loss(), at.step * self.config.batch_size / at.stepping
        return f"loss {loss:.4f}  {rate:.0f} images/s  waiting {at.waited / at.stepping:.0%}"

    def _train_loss(self) -> float:
        """Mean over the batches of the epoch so far that counted."""
        at = self.progress
        counted = at.step - at.skipped
        return float(self.step.loss_sum) / counted if counted else math.nan

    def _finish_epoch(self, began: float, scalars: Scalars | None) -> None:
        at = self.progress
        try:
            logits, rows = self.predict("val")
        except Stopped:
            at.seconds += time.perf_counter() - began
            raise
        self.watchdog.moved(f"the figures of epoch {at.epoch + 1}")
        line = self.ranks.from_first(lambda: self._line(logits, rows, began))
        at.seconds = line["seconds"]
        best = self.end_epoch(line["val_loss"])
        self._write_epoch(line, scalars)
        if best and self.ranks.first:
            with self.evaluated():
                self.saved.save_best(at)
        self.saved.save(at)
        say(
            f"epoch {at.epoch}/{self.config.epochs}  train loss {line['train_loss']:.4f}  "
            f"val loss {line['val_loss']:.4f}  micro-F1 {line['micro_f1']:.4f}  macro-F1 {line['macro_f1']:.4f}  "
            f"mAP {line['map']:.4f}  {line['images_per_s']:.0f} images/s  waiting {line['data_wait_fraction']:.0%}  "
            f"{at.seconds:.0f} s"
        )

    def end_epoch(self, val_loss: float) -> bool:
        """Progress goes on to the next epoch; whether its network is the best so far, for best.pt.

        By the validation loss where early stopping goes by it; without, the last, at the end of the rate's course. So
        too while pictures still grow: only the last stage shows what validation does.
        """
        at = self.progress
        growing = at.epoch * self.steps + at.step <= self.stages()[-1].first
        improved = growing or val_loss < at.best_loss
        at.best_loss = math.inf if growing else min(at.best_loss, val_loss)
        at.stale = 0 if improved else at.stale + 1
        at.epoch, at.step, at.waited, at.stepping, at.skipped = at.epoch + 1, 0, 0.0, 0.0, 0
        self.step.loss_sum.zero_()
        return improved or self.config.patience is None

    def _line(self, logits: Tensor, rows: NDArray[np.int64], began: float) -> dict[str, Any]:
        """The line of metrics.jsonl for the epoch that is done.

        Raises:
            InputError: a loss is not a number.
        """
        at, targets = self.progress, self.dataset.targets[rows]
        losses = {"train_loss": self._train_loss(), "val_loss": mean_loss(logits, targets)}
        if not all(map(math.isfinite, losses.values())):
            raise InputError(
                f"the loss is not a number after epoch {at.epoch + 1}; a new run with a smaller --lr helps"
            )
        return {
            "epoch": at.epoch + 1,
            **losses,
            **asdict(scores(torch.sigmoid(logits).numpy(), targets)),
            "lr": float(self.step.optimizer.param_groups[0]["lr"]),
            "images_per_s": self.steps * self.config.batch_size / max(at.stepping, 1e-9),
            "data_wait_fraction": at.waited / max(at.stepping, 1e-9),
            "seconds": at.seconds + time.perf_counter() - began,
        }

    def _write_epoch(self, line: dict[str, Any], scalars: Scalars | None) -> None:
        self.lines.append(line)
        if scalars is None:
            return
        with unless_full(self.run.metrics):
            self.run.write_metrics(self.lines)
        scalars.add(line)

    def evaluated(self) -> AbstractContextManager[None]:
        """The weights that validation sees and best.pt keeps are in the network while the context lasts."""
        return nullcontext() if self.step.average is None else self.step.average.in_place()

    def predict(self, split: str) -> tuple[Tensor, NDArray[np.int64]]:
        """Logits and row numbers of a split, by the weights that validation sees.

        Raises:
            Stopped: `stopped` became true.
        """
        with bar("validating") as advance, self.evaluated():

            def progress(done: int, total: int) -> None:
                self.watchdog.moved(f"validating, picture {done} of {total}")
                advance(done, total, "")

            return predict_part(
                self.model,
                self.dataset,
                split,
                min(self.share, MOST),  # what a step takes stays taken while it is recorded
                self.config.image_size,
                self.placement,
                self.ranks,
                self.stopped,
                progress,
            )

    def _final_report(self) -> None:
        """Figures, thresholds and page of the best epoch on validation."""
        weights, epoch = self.ranks.from_first(self.saved.best)
        config, labels = self.config, self.dataset.labels
        network = InceptionResNetV1(len(labels), config.width, config.dropout, config.block8)
        network.load_state_dict(weights)
        with bar("evaluating the best epoch") as advance:

            def progress(done: int, total: int) -> None:
                self.watchdog.moved(f"evaluating the best epoch, picture {done} of {total}")
                advance(done, total, "")

            write_figures(
                *(self.run, network, epoch, self.dataset, config, self.stopped, progress, self.ranks), finished=True
            )
        if not self.ranks.first:
            return
        self.watchdog.moved("drawing the report")
        try:
            write_page(self.run, self.dataset)
        except Exception as error:  # the run is whole without its page, whatever kept it from being drawn
            say(f"report.html could not be made: {error}; python -m engine.report {self.run.folder} tries again")

    def restore(self) -> bool:
        """Goes on from the newest usable checkpoint, and says whether there is one; a run without starts at the
        beginning.

        Raises:
            InputError: damaged checkpoints, or those of another run or other labels.
        """
        found = self.saved.restore()
        if found is not None:
            self.progress, self.lines = found
        return found is not None
