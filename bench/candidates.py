"""What bench.tune tries: rows of kernels.tuning, candidates in their place, and where a training step launches them."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.timing import Call
from engine.model import InceptionResNetV1
from kernels import batch_norm_triton, conv1x1, pool, sigmoid_bce
from kernels.maps import channels_last
from kernels.tuning import Launch

DEVICE = "cuda"
Shape = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        module: that reads it.
        candidates: in its place.
        calls: what is timed at a shape.
        takes: whether a shape is its own.
    """

    module: ModuleType
    candidates: tuple[Launch, ...]
    calls: Callable[[Shape], list[Call]]
    takes: Callable[[Shape], bool]


def candidates(warps: Iterable[int], stages: Iterable[int] = (1,), **blocks: Iterable[int]) -> tuple[Launch, ...]:
    found = []
    for values in product(*blocks.values(), warps, stages):
        found.append(Launch(dict(zip(blocks, values, strict=False)), values[-2], values[-1], ""))
    return tuple(found)


def feature_map(batch: int, channels: int, height: int, width: int) -> Tensor:
    return channels_last(torch.randn(batch, channels, height, width, device=DEVICE, dtype=torch.bfloat16))


def norm_calls(shape: Shape, sums: bool) -> list[Call]:
    """A forward and a backward pass of batch norm, each with one of its two kernels left as it is."""
    _, widths, (n, h, w) = shape
    xs = [feature_map(n, width, h, w) for width in widths]
    ys, grads = ([feature_map(n, width, h, w) for width in widths] for _ in range(2))
    vectors = [torch.rand(width, device=DEVICE) for width in widths]
    units = (xs, vectors, vectors)

    def statistics() -> None:
        batch_norm_triton._statistics(xs, 1e-3)

    def normalize() -> None:
        batch_norm_triton.forward(*units, [*vectors, *vectors], None, ys, False, 1e-3, True, 1.0)

    def backward() -> None:
        batch_norm_triton.backward(grads, *units, vectors, vectors, None, ys, True, 1e-3, True, 1.0)

    return [statistics if sums else normalize, backward]


def tail_calls(shape: Shape) -> list[Call]:
    _, (n, h, w), channels, depth, masked = shape
    x, y, branch = (feature_map(n, c, h, w) for c in (channels, channels, depth))
    weight = torch.randn(channels, depth, device=DEVICE, dtype=torch.bfloat16)
    if masked:
        transposed = weight.t().contiguous()
        return [lambda: conv1x1.input_gradient(x, branch, transposed, y)]
    bias = torch.rand(channels, device=DEVICE)
    return [lambda: conv1x1.forward(x, branch, weight, bias, 0.17, True)]


def pool_calls(shape: Shape) -> list[Call]:
    _, n, channels, h, w = shape
    x = feature_map(n, channels, h, w)
    y, tap = pool._forward(x)
    return [lambda: pool._forward(x), lambda: pool._backward(y, tap, h, w)]


SUMS = candidates((4, 8), BLOCK_ROWS=(32, 64, 128, 256), BLOCK_CHANNELS=(16, 32, 64), STAGES=(1, 3))
MAPS = candidates((4, 8), BLOCK_ROWS=(8, 16, 32, 64), BLOCK_CHANNELS=(32, 64, 128))
TAILS = candidates((4, 8), (3, 4), BLOCK_ROWS=(64, 128), BLOCK_CHANNELS=(64, 128, 256), BLOCK_DEPTH=(32, 64))


def is_norm(wide: bool) -> Callable[[Shape], bool]:
    return lambda shape: shape[0] == "norm" and (max(shape[1]) > 32) == wide


def of_block(candidates: tuple[Launch, ...], channels: int) -> tuple[Launch, ...]:
    return tuple(c for c in candidates if c.blocks["BLOCK_CHANNELS"] <= channels)


ROWS = {
    "BATCH_NORM_SUMS": Row(batch_norm_triton, SUMS, lambda s: norm_calls(s, True), lambda s: s[0] == "norm"),
    "BATCH_NORM": Row(batch_norm_triton, MAPS, lambda s: norm_calls(s, False), is_norm(True)),
    "BATCH_NORM_NARROW": Row(batch_norm_triton, of_block(MAPS, 32), lambda s: norm_calls(s, False), is_norm(False)),
    "CONV1X1_SHALLOW": Row(conv1x1, TAILS, tail_calls, lambda s: s[0] == "tail" and s[3] <= 128),
    "CONV1X1_DEEP": Row(conv1x1, TAILS, tail_calls, lambda s: s[0] == "tail" and s[3] > 128),
    "MAX_POOL": Row(pool, MAPS, pool_calls, lambda s: s[0] == "pool"),
}


def shapes_of_step(batch: int, size: int) -> Counter[Shape]:
    """What the kernels are given in a training step, and how often."""
    seen: Counter[Shape] = Counter()

    def watched(module: ModuleType, name: str, shape: Callable[..., Shape]) -> Any:
        real = getattr(module, name)

        def counted(*given: Any) -> Any:
            seen[shape(*given)] += 1
            return real(*given)

        return mock.patch.object(module, name, counted)

    def norm(xs: Any, *_: Any) -> Shape:
        n, _, h, w = xs[0].shape
        return "norm", tuple(x.shape[1] for x in xs), (n, h, w)

    def tail(x: Tensor, branch: Tensor, weight: Tensor, bias: Any, mask: Any, *_: Any) -> Shape:
        n, channels, h, w = x.shape
        return "tail", (n, h, w), channels, branch.shape[1], mask is not None

    model = InceptionResNetV1(20, dropout=0.0).train().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, targets = torch.randn(batch, 3, size, size, device=DEVICE), torch.zeros(batch, 20, device=DEVICE).bool()
    with (
        watched(batch_norm_triton, "_statistics", norm),
        watched(conv1x1, "_product", tail),
        watched(pool, "_pooled", lambda x: ("pool", *x.shape)),
        torch.autocast(DEVICE, torch.bfloat16),
    ):
        torch.autograd.backward(sigmoid_bce(model(images), targets))
    return Counter({shape: count // (2 if shape[0] == "pool" else 1) for shape, count in seen.items()})  # asked twice


def tried(row: Row, name: str, launch: Launch) -> Any:
    """The context in which the row of the table is another."""
    return mock.patch.object(row.module, name, launch)
