"""`python -m bench.tune`: which tile sizes, warps and stages of the Triton kernels are the fastest on the GPU at hand.

One training step says which shapes each kernel sees and how often. Each row of kernels.tuning is then tried with every
candidate at these shapes, replayed from CUDA graphs, and the sum over a step is what counts. A map that fits the L2
cache is found there, as in a step, where the layer before has just written it. What is best goes into kernels.tuning by
hand, with its reason.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from unittest import mock

import torch
import tyro
from torch import Tensor

from bench.timing import Call, clock, replay_of
from engine import command
from engine.model import InceptionResNetV1
from kernels import batch_norm_triton, conv1x1, pool, sigmoid_bce
from kernels.maps import channels_last
from kernels.tuning import Launch
from pipelines.errors import InputError

DEVICE = "cuda"
CALLS, REPLAYS = 10, 5
Shape = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Arguments:
    """Times every candidate for the launches of the Triton kernels, in bfloat16, on this GPU.

    Attributes:
        batch, size: of the pictures.
        rows: of kernels.tuning to time; all if none is given.
        json: writes all times to this file.
    """

    batch: int = 32
    size: int = 320
    rows: tuple[str, ...] = ()
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


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
        return [lambda: conv1x1.input_gradient(x, branch, weight.t().contiguous(), y)]
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
    return seen


def tried(row: Row, name: str, launch: Launch) -> Any:
    """The context in which the row of the table is another."""
    return mock.patch.object(row.module, name, launch)


def compile_only(job: tuple[str, Launch, list[Shape]]) -> None:
    """Fills Triton's cache."""
    name, launch, shapes = job
    with torch.no_grad(), tried(ROWS[name], name, launch):
        for shape in shapes:
            try:
                for call in ROWS[name].calls(shape):
                    call()
            except Exception:  # said where it is timed
                return


def milliseconds(row: Row, name: str, launch: Launch, shape: Shape) -> float:
    """Of one call of each function."""
    with tried(row, name, launch):
        functions = row.calls(shape)
        replay = replay_of(lambda: [function() for _ in range(CALLS) for function in functions])
        now, times = clock(DEVICE), []
        for _ in range(REPLAYS):
            began = now()
            replay()
            times.append(now() - began)
    return min(times) / CALLS * 1e3


def main() -> int:
    given = command.parse(Arguments, "python -m bench.tune")
    if not torch.cuda.is_available():
        raise InputError("there is no GPU to tune on")
    wrong = [name for name in given.rows if name not in ROWS]
    if wrong:
        raise InputError(f"--rows takes {', '.join(ROWS)}")
    seen = shapes_of_step(given.batch, given.size)
    rows = {name: ROWS[name] for name in given.rows or ROWS}
    own = {name: [s for s in seen if row.takes(s)] for name, row in rows.items()}
    jobs = [(name, launch, own[name]) for name, row in rows.items() for launch in row.candidates]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool_:
        list(pool_.map(compile_only, jobs))
    torch.set_grad_enabled(False)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        current = getattr(row.module, name)
        found = []
        for launch in (current, *row.candidates):
            try:
                each = {str(s): milliseconds(row, name, launch, s) for s in own[name]}
            except Exception as error:  # too much shared memory, say
                print(f"{name} {launch.blocks} {launch.warps} {launch.stages}: {str(error).splitlines()[0][:100]}")
                continue
            total = sum(each[str(s)] * seen[s] for s in own[name])
            figures = {"blocks": launch.blocks, "warps": launch.warps, "stages": launch.stages}
            found.append(figures | {"ms": total, "each": each})
        results[name] = [found[0], *sorted(found[1:], key=lambda f: f["ms"])]
        print(f"{name}: {found[0]['ms']:.3f} ms a step now; best:")
        for best in results[name][1:4]:
            print(
                f"  {best['ms']:.3f} ms  {best['blocks']}, {best['warps']} warps, {best['stages']} stages", flush=True
            )
    if given.json is not None:
        shapes = {str(s): count for s, count in seen.items()}
        content = {"gpu": torch.cuda.get_device_name(), "shapes": shapes, "rows": results}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.main(main)
