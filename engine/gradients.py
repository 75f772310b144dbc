"""Gradients of several processes, summed."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor


class Summed:
    """One tensor in which everything lies that processes sum at an update, and one collective operation that does it.

    Not DistributedDataParallel: its reducer lives in Python and C++ between the launches of a backward pass, counts
    what it saw and changes its buckets after the first step; here the backward pass is recorded once and replayed, with
    or without a batch more to the same update. One sum after it is part of the recorded update like any other launch.
    It does not overlap the backward pass; docs/scale.md says what that costs, and where.

    Args:
        like: tensors whose sums are wanted, on one device, float32.
        group: the processes.
    """

    def __init__(self, like: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        self.group = group
        self.flat = torch.zeros(sum(t.numel() for t in like), device=like[0].device)
        # Strides too, so that what is channels-last stays so and the optimizer reads rows as they lie.
        starts = accumulate((t.numel() for t in like), initial=0)
        self.sums = [self.flat.as_strided(t.shape, t.stride(), at) for t, at in zip(like, starts, strict=False)]

    @torch.no_grad()
    def of(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes; the next call writes over them."""
        torch._foreach_copy_(self.sums, list(own))
        dist.all_reduce(self.flat, group=self.group)
        return self.sums
