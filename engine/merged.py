"""The weights of a network's convolutions as its forward pass takes them: in its dtype, and merged where that pays."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Group = Sequence[nn.Conv2d]


class _Cast(torch.autograd.Function):
    """Each group of weights as one in another dtype. All are copied together, forward and backward: few launches."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, groups: tuple[int, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        shapes = [weight.shape for weight in weights]
        copies, starts = _packed(shapes, dtype, weights[0].device)
        torch._foreach_copy_(copies, list(weights))
        ctx.shapes, ctx.groups, ctx.dtype = shapes, groups, weights[0].dtype
        merged, first = [], 0
        for size in groups:
            whole = copies[first]
            if size > 1:
                rows = sum(shape[0] for shape in shapes[first : first + size])
                whole = whole.as_strided((rows, *whole.shape[1:]), whole.stride(), starts[first])
            merged.append(whole)
            first += size
        return tuple(merged)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found, _ = _packed(ctx.shapes, ctx.dtype, grads[0].device)
        parts: list[Tensor] = []
        first = 0
        for grad, size in zip(grads, ctx.groups, strict=True):
            own = ctx.shapes[first : first + size]
            parts += grad.split_with_sizes([shape[0] for shape in own]) if size > 1 else [grad]
            first += size
        torch._foreach_copy_(found, parts)
        return None, None, *found


def _packed(shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], list[int]]:
    """Channels-last weights one after the other in one stretch of memory, and where each begins."""
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + shape.numel())
    memory = torch.empty(starts[-1], dtype=dtype, device=device)
    views = []
    for (o, i, h, w), start in zip(shapes, starts, strict=False):
        views.append(memory.as_strided((o, i, h, w), (i * h * w, 1, w * i, i), start))
    return views, starts


def merged_weights(groups: Sequence[Group], dtype: torch.dtype) -> list[Tensor]:
    """One weight [ΣO, I, kh, kw] for each group of convolutions that read the same map, in `dtype`."""
    weights = [conv.weight for group in groups for conv in group]
    if weights[0].dtype == dtype:
        return [torch.cat([conv.weight for conv in group]) if len(group) > 1 else group[0].weight for group in groups]
    return list(_Cast.apply(dtype, tuple(len(group) for group in groups), *weights))
