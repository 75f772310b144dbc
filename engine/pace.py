"""How long an epoch takes, from a few steps: a budget of time becomes a number of epochs before training begins."""

import math
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.answers import predict
from engine.config import Config
from engine.device import decide
from engine.fitting import fitting_batch
from engine.memory import give_freed_memory_back
from engine.run import Run
from engine.trainer import Trainer
from pipelines.dataset import Dataset
from pipelines.loader import evaluation_stream

WARM, TIMED = 8, 40  # steps


def seconds_a_step(trainer: Trainer) -> float:
    """Seconds of a step on a batch, on this machine as busy as it is: the mean over a run, whose pictures may grow.

    The trainer's weights are spent on it.
    """
    trainer.model.train()
    stages = trainer.stages()
    ends = [*(stage.first for stage in stages[1:]), trainer.total]
    each = [_median_step(trainer, stage.size, math.ceil(TIMED / len(stages))) for stage in stages]
    batches = [end - stage.first for stage, end in zip(stages, ends, strict=True)]
    return sum(seconds * number for seconds, number in zip(each, batches, strict=True)) / trainer.total


def _median_step(trainer: Trainer, size: int, steps: int) -> float:
    """Of as many steps on pictures of one size, none of which is decoded already."""
    if trainer.memory is not None:
        trainer.memory.clear()
    batches = trainer.stream(size).batches()
    times = []
    for _ in range(WARM + steps):
        began = time.perf_counter()
        loss = trainer.add_gradient(next(batches))
        trainer.step.update(trainer.config.lr)
        loss.item()  # waits for the device
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM:])


def seconds_an_epoch(config: Config, dataset: Dataset) -> float:
    """Seconds of training and validating once."""
    placement = decide(config.device, config.amp, config.compile)
    config = fitting_batch(config, dataset)
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, dataset, placement, Run(Path(folder)), lambda: False)
        step = seconds_a_step(trainer)
        rows = dataset.splits["val"]
        some = rows[: 8 * config.batch_size]
        spec = placement.spec(config.image_size)
        began = time.perf_counter()
        stream = evaluation_stream(dataset.root, dataset.files, some, config.batch_size, spec)
        predict(trainer.model, stream, placement, len(dataset.labels))
        validation = (time.perf_counter() - began) / math.ceil(len(some) / config.batch_size)
        steps = trainer.steps
        del trainer, stream
    give_freed_memory_back()
    return step * steps + validation * math.ceil(len(rows) / config.batch_size)
