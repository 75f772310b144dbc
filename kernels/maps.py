"""Room for feature maps, and the places of several in one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kernels.arguments import is_channels_last


def empty_map(
    like: Tensor, channels: int | None = None, size: tuple[int, int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """A channels-last map [N, C, H, W] as another, but for what is given; its memory is not written."""
    n, c, h, w = like.shape
    if channels is not None:
        c = channels
    if size is not None:
        h, w = size
    strides = (h * w * c, 1, w * c, c)
    return torch.empty_strided((n, c, h, w), strides, dtype=dtype or like.dtype, device=like.device)


def channels_last(x: Tensor) -> Tensor:
    """x, or a copy where it is neither channels-last nor a channel slice: a gradient comes in whatever layout the next
    operation chose, expanded ones included."""
    return x if is_channels_last(x) else empty_map(x).copy_(x)


def slices(xs: Sequence[Tensor]) -> list[slice]:
    """Channels of each map in their concatenation."""
    edges = [0, *accumulate(x.shape[1] for x in xs)]
    return [slice(a, b) for a, b in pairwise(edges)]
