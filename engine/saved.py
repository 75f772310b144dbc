"""What a run keeps of a network in training: last.pt to go on from, best.pt to answer with; and how it goes on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoints, load_checkpoint, newest_checkpoint, remove_remains
from engine.ranks import Ranks
from engine.run import Run
from engine.step import Step
from pipelines.errors import InputError
from pipelines.progress import say


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
        skipped: batches of this epoch whose update was skipped.
        in_a_row: updates skipped since the last that was made.
    """

    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    stepping: float = 0.0
    skipped: int = 0
    in_a_row: int = 0

    def stopped_early(self, patience: int | None) -> bool:
        """Whether early stopping ends the run, after `patience` stale epochs; None: there is none."""
        return patience is not None and self.stale >= patience


class Saved:
    """A run's checkpoints, as training writes them and takes them up again.

    Args:
        run: an existing folder.
        step: of the network in training, with its optimizer and configuration.
        labels: of the data set.
        ranks: who trains together. The first of them reads and writes files.

    Attributes:
        checkpoints: the writer behind the training.
    """

    def __init__(self, run: Run, step: Step, labels: tuple[str, ...], ranks: Ranks) -> None:
        self.run, self.step, self.labels, self.ranks = run, step, labels, ranks
        self.checkpoints = Checkpoints(run)

    def save(self, progress: Progress) -> None:
        """Leaves all state to the writer of last.pt; every rank has to call it."""
        cuda = self.step.placement.device.type == "cuda"
        own = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if cuda else None}
        everyone = self.ranks.gather(own)
        if self.ranks.first:
            self.checkpoints.save({**self._network(progress), **self.step.state(), "rng": everyone}, self.run.last)

    def save_best(self, progress: Progress) -> None:
        """Leaves the network as it is to the writer of best.pt; only the first rank may call it."""
        self.checkpoints.save(self._network(progress), self.run.best)

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            InputError: the last write failed.
        """
        self.checkpoints.finish()

    def _network(self, progress: Progress) -> dict[str, Any]:
        """What best.pt holds."""
        return {"model": self.step.model.state_dict(), "labels": list(self.labels), "progress": asdict(progress)}

    def restore(self) -> tuple[Progress, list[dict[str, Any]]] | None:
        """Network and optimizer as the newest usable checkpoint has them; every rank has to call it.

        Returns:
            progress, and the lines of metrics.jsonl so far; None of a run that has no checkpoint.

        Raises:
            InputError: damaged checkpoints, or those of another run or other labels.
        """
        state = self.ranks.from_first(self._newest)
        if state is None:
            return None
        try:
            progress = self._take_over(state)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.run.last}: not a checkpoint of this run: {said}") from None
        # Better told now than after the last epoch.
        if progress.epoch and not self.ranks.from_first(lambda: self._has_best(progress)):
            progress.best_loss, progress.stale = math.inf, 0
        return progress, self.ranks.from_first(lambda: self._lines_so_far(progress))

    def _newest(self) -> dict[str, Any] | None:
        remove_remains(self.run)
        state = newest_checkpoint(self.run)
        if state is None:
            self.run.write_metrics([])
        return state

    def _lines_so_far(self, progress: Progress) -> list[dict[str, Any]]:
        lines = [line for line in self.run.metric_lines() if line["epoch"] <= progress.epoch]
        self.run.write_metrics(lines)
        return lines

    def _take_over(self, state: dict[str, Any]) -> Progress:
        if tuple(state["labels"]) != self.labels:
            raise InputError(f"{self.run.last}: was trained for other labels than the data set has")
        self.step.model.load_state_dict(state["model"])
        self.step.restore(state)
        progress = Progress(**state["progress"])
        if self.ranks.rank < len(state["rng"]):  # a rank more than before goes on with the seed of its own
            own = state["rng"][self.ranks.rank]
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None and self.step.placement.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"])
        return progress

    def _has_best(self, progress: Progress) -> bool:
        """Whether best.pt is whole; if not, an epoch that is still to come is to be the best.

        Raises:
            InputError: it is not, and no epoch is to come; or it is another run's.
        """
        try:
            best = load_checkpoint(self.run.best)
        except InputError as error:
            config = self.step.config
            if progress.epoch >= config.epochs or progress.stopped_early(config.patience):
                raise
            say(f"{error}; the best of the epochs that follow takes its place")
            return False
        self._weights_of(best)
        return True

    def best(self) -> tuple[dict[str, Tensor], int]:
        """Weights, by their names, and epoch that best.pt holds.

        Raises:
            InputError: it is missing, damaged, or another run's.
        """
        return self._weights_of(load_checkpoint(self.run.best))

    def _weights_of(self, best: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
        own = self.step.model.state_dict()
        try:
            weights, epoch = best["model"], int(best["progress"]["epoch"])
            fits = {name: t.shape for name, t in weights.items()} == {name: t.shape for name, t in own.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise InputError(f"{self.run.best}: not a checkpoint of this run")
        return weights, epoch
