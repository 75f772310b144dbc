"""Exponential moving average of a network's weights, and of its running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average ← average + (1 - d) · (weights - average) after each update of the optimizer.

    The decay d of update n is (n - 1) / (n + 9) until that reaches what is asked for: the first takes the weights as
    they are, and short runs do not keep those that they started from. All tensors move in one multi-tensor operation,
    and nothing waits for the device.

    Args:
        model: on its device; its parameters and floating-point buffers are followed.
        decay: in [0, 1); 0 is the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.followed: list[Tensor] = [t for t in model.state_dict().values() if t.is_floating_point()]
        self.average = [t.clone() for t in self.followed]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the present weights."""
        self.updates += 1
        decay = min(self.decay, (self.updates - 1) / (self.updates + 9))
        torch._foreach_lerp_(self.average, self.followed, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the average while the context lasts, and its own weights again after it."""
        own = [t.clone() for t in self.followed]
        with torch.no_grad():
            torch._foreach_copy_(self.followed, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.followed, own)

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"average": self.average, "updates": self.updates}

    def restore(self, state: dict[str, object]) -> None:
        """What `state` gave."""
        average, updates = state["average"], state["updates"]
        assert isinstance(average, list)
        assert isinstance(updates, int)
        torch._foreach_copy_(self.average, average)
        self.updates = updates
