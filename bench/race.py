"""Timed training: the clock runs while a network learns, and stands while it is looked at."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.answers import Stopped, mean_loss
from engine.metrics import per_label, scores
from engine.thresholds import tuned_thresholds
from engine.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Look:
    """A network in training, on validation.

    Attributes:
        seconds: of training so far: waiting for pictures included, looking not.
        pictures: trained on so far.
        loss: binary cross-entropy, unweighted.
        micro_f1, macro_f1, map: at 0.5, as engine.metrics has them.
    """

    seconds: float
    pictures: int
    loss: float
    micro_f1: float
    macro_f1: float
    map: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a timed training came to.

    Attributes:
        looks: on the clock's schedule, at the ends of epochs, and at the end.
        final: figures of the network that was kept, by split: micro_f1, macro_f1 and map at 0.5, the same with
            thresholds tuned on validation below `tuned`, and F1 of each label.
    """

    looks: list[Look]
    final: dict[str, dict[str, Any]]

    @property
    def seconds(self) -> float:
        return self.looks[-1].seconds

    def reached(self, micro_f1: float) -> float | None:
        """Seconds at the first look that has it; None: none has."""
        return next((look.seconds for look in self.looks if look.micro_f1 >= micro_f1), None)

    def values(self) -> dict[str, Any]:
        """As plain data."""
        return {"seconds": self.seconds, "looks": [asdict(look) for look in self.looks], "final": self.final}


class Watch:
    """A clock that can stand; seconds since it was made while it ran."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.before, self.began = now, 0.0, now()

    def seconds(self) -> float:
        return self.before + self.now() - self.began

    def stop(self) -> float:
        self.before = self.seconds()
        self.began = math.nan
        return self.before

    def go_on(self) -> None:
        self.began = self.now()


def race(
    trainer: Trainer,
    every: float,
    splits: Sequence[str] = ("val",),
    progress: Callable[[int, int, str], None] = lambda done, total, figures: None,
) -> Outcome:
    """Trains for `trainer.total` batches as engine.train does, and looks every so many seconds.

    The network is kept that engine.train keeps: with early stopping that of the epoch with the lowest validation loss,
    else the last. The end of the last batch counts as an epoch's.

    Args:
        trainer: new; it is spent on it.
        every: seconds of training between looks.
        splits: that the outcome is measured on, "val" first.
        progress: told batches done, all of them, and the last look.

    Raises:
        Stopped: the trainer was asked to.
    """
    at, config = trainer.progress, trainer.config
    looks: list[Look] = []
    kept: dict[str, Tensor] = {}
    done, due = 0, every
    trainer.model.train()
    watch = Watch()
    batches = trainer.batches()
    while done < trainer.total and not at.stopped_early(config.patience):
        if trainer.stopped():
            raise Stopped
        trainer.take_step(batches)
        done = at.epoch * trainer.steps + at.step
        end = at.step == trainer.steps or done >= trainer.total
        if not end and watch.seconds() < due:
            continue
        float(trainer.step.loss_sum)  # waits for the device
        seconds = watch.stop()
        due = max(due, seconds) + every if seconds >= due else due
        logits, rows = trainer.predict("val")
        looks.append(_look(seconds, done * config.batch_size, logits, trainer.dataset.targets[rows]))
        if end and trainer.end_epoch(looks[-1].loss):
            with trainer.evaluated():
                kept = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        progress(done, trainer.total, f"micro-F1 {looks[-1].micro_f1:.3f}, mAP {looks[-1].map:.3f}")
        trainer.model.train()
        watch.go_on()
    return Outcome(looks, _final(trainer, kept, splits))


def _look(seconds: float, pictures: int, logits: Tensor, targets: NDArray[np.bool_]) -> Look:
    found = scores(torch.sigmoid(logits).numpy(), targets)
    return Look(seconds, pictures, mean_loss(logits, targets), **asdict(found))


def _final(trainer: Trainer, weights: dict[str, Tensor], splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of weights on splits, in the arithmetic of training."""
    trainer.model.load_state_dict(weights)
    trainer.step.average = None  # the weights are those of the average already
    found = {}
    for split in splits:
        logits, rows = trainer.predict(split)
        found[split] = (torch.sigmoid(logits).numpy(), trainer.dataset.targets[rows])
    thresholds = tuned_thresholds(*found["val"])
    return {
        split: {
            **asdict(scores(*answers)),
            "tuned": asdict(scores(*answers, thresholds)),
            "f1": {row["label"]: row["f1"] for row in per_label(trainer.dataset.labels, *answers)},
        }
        for split, answers in found.items()
    }
