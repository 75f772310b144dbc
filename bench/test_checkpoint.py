"""What training waits for at a checkpoint, beside a step of it.

The study's network at 320×320, bfloat16 where the device computes in it. `extra_info` has the wait as a share of a
step; the write before is done each time, as it is after 500 steps.
"""

import statistics
from pathlib import Path
from typing import Any

import torch

from bench.timing import clock
from engine.checkpoint import Checkpoints
from engine.config import resolve
from engine.device import decide
from engine.memory import keep_freed_memory
from engine.model import InceptionResNetV1
from engine.run import Run
from engine.step import Step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, SIZE, LABELS, ROUNDS = 32, 320, 18, 5


def test_waiting_for_a_checkpoint(benchmark: Any, tmp_path: Path) -> None:
    keep_freed_memory()
    run = Run(tmp_path)
    run.create()
    checkpoints, now = Checkpoints(run), clock(DEVICE)
    placement = decide("auto", True, "off")
    model = InceptionResNetV1(LABELS).train()
    model.to(device=placement.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = Step(resolve("paper", {}), placement, model, None)
    images = torch.rand(BATCH, 3, SIZE, SIZE, dtype=placement.amp, device=DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.rand(BATCH, LABELS, device=DEVICE) < 0.2
    steps: list[float] = []

    def one_step() -> None:
        checkpoints.finish()
        began = now()
        step.add_gradient(images, targets)
        step.update(0.001)
        steps.append(now() - began)

    def save() -> None:
        checkpoints.save({"model": model.state_dict(), **step.state()}, run.last)

    benchmark.pedantic(save, setup=one_step, rounds=ROUNDS, warmup_rounds=1)
    checkpoints.finish()
    benchmark.extra_info["share_of_a_step"] = benchmark.stats.stats.median / statistics.median(steps[1:])
