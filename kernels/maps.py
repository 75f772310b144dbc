"""Room for feature maps, and the places of several in one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor


def empty_map(
    like: Tensor, channels: int | None = None, size: tuple[int, int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """A channels-last map [N, C, H, W] as another, but for what is given; its memory is not written."""
    n, c, h, w = like.shape
    shape = (n, *(size or (h, w)), c if channels is None else channels)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device).permute(0, 3, 1, 2)


def slices(xs: Sequence[Tensor]) -> list[slice]:
    """Channels of each map in their concatenation."""
    edges = [0, *accumulate(x.shape[1] for x in xs)]
    return [slice(a, b) for a, b in pairwise(edges)]
