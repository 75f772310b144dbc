"""A training step of ours, on the device and in the arithmetic that training takes here.

That is bfloat16 where it is fast, float32 on a CPU that has no instructions for it.
"""

from typing import Any

import torch

from bench.peers import LABELS, data
from bench.timing import Call
from engine.config import resolve
from engine.device import decide
from engine.memory import keep_freed_memory
from engine.model import InceptionResNetV1
from engine.step import Step

PLACEMENT = decide("auto", True, "auto")
DEVICE = PLACEMENT.device.type
ARITHMETIC = str(PLACEMENT.amp or torch.float32).removeprefix("torch.")


def ours(size: int, batch: int) -> tuple[Step, Call]:
    """What engine.train trains with, and a step of it."""
    if DEVICE == "cpu":
        keep_freed_memory()  # as training does; peers in the same process gain by it too
    torch.manual_seed(0)
    model: Any = InceptionResNetV1(LABELS, dropout=0.0).train()
    model.to(device=DEVICE, memory_format=torch.channels_last)
    images, targets = data(size, batch, DEVICE, torch.channels_last)
    step = Step(resolve("paper", {}), PLACEMENT, model, None)

    def call() -> None:
        step.add_gradient(images, targets)
        step.update(0.001)

    return step, call


def our_step(size: int, batch: int) -> Call:
    """A step as engine.train takes it."""
    return ours(size, batch)[1]
