"""What training waits for: the loader alone, the network on pictures that are there already, and both together."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from engine.step import WARM_UP
from engine.trainer import Trainer
from pipelines.loader import Batch

SECONDS = 4.0  # a measurement, about
ROUNDS = 5  # in turn, so that what else the machine does disturbs all alike
WAITING = 0.03  # share of a step from which on the loader is what training waits for


def loader_report(trainer: Trainer) -> list[str]:
    """Measures and says it, a line each, for each size that the pictures will have. The weights are spent on it."""
    sizes = [stage.size for stage in trainer.stages()]
    lines = []
    for size in sizes:
        lines += [f"{size}×{size}:"] if len(sizes) > 1 else []
        lines += _of_size(trainer, size)
    kept = [] if trainer.memory is None else [trainer.memory.summary(len(trainer.plan.rows))]
    return lines + kept


def _of_size(trainer: Trainer, size: int) -> list[str]:
    """Measures on pictures of one size, none of which is decoded already."""
    if trainer.memory is not None:
        trainer.memory.clear()
    batches = trainer.stream(size).batches()
    ready = _own(next(batches))
    trainer.model.train()
    _seconds(trainer, lambda: _step(trainer, ready), WARM_UP + 2)  # kernels are compiled, and launches recorded
    step_seconds = _seconds(trainer, lambda: _step(trainer, ready), 3)
    # As many on each rank: a step has them wait for each other.
    steps = min(trainer.ranks.gather(max(3, round(SECONDS / step_seconds))))
    load, compute, both, waits = [], [], [], []
    for _ in range(ROUNDS):
        load.append(_seconds(trainer, lambda: next(batches), steps))
        compute.append(_seconds(trainer, lambda: _step(trainer, ready), steps))
        waited = _Waited(batches)
        both.append(_seconds(trainer, lambda w=waited: _step(trainer, next(w)), steps))  # type: ignore[misc]
        waits.append(waited.seconds / steps / both[-1])
    pictures = trainer.config.batch_size
    wait = statistics.median(waits)
    cost = statistics.median(b / c for b, c in zip(both, compute, strict=True)) - 1
    faster = statistics.median(c / b for b, c in zip(load, compute, strict=True))
    if wait > WAITING:
        verdict = f"training waits for pictures {wait:.1%} of the time"
    else:
        verdict = f"the loader waits for the network (which waits {wait:.1%}) and could feed {faster:.0f} of them"
    return [
        f"loader alone    {pictures / statistics.median(load):,.0f} pictures/s",
        f"network alone   {pictures / statistics.median(compute):,.0f} pictures/s, on pictures in memory",
        f"both together   {pictures / statistics.median(both):,.0f} pictures/s, {cost:+.1%} a step",
        verdict,
    ]


class _Waited:
    """Batches, and the seconds that it took until they came."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - asked
        return batch


def _own(batch: Batch) -> Batch:
    return Batch(batch.images.clone(memory_format=torch.preserve_format), batch.rows.clone())


def _step(trainer: Trainer, batch: Batch) -> None:
    trainer.add_gradient(batch)
    trainer.step.update(trainer.config.lr)


def _seconds(trainer: Trainer, call: Callable[[], object], times: int) -> float:
    """Seconds a call, the device waited for."""
    cuda = trainer.placement.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
