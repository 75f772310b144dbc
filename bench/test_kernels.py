"""Each kernel, forward and backward, beside eager torch and torch.compile, at the network's own shapes.

`extra_info` has the bytes that the formula of the kernel's file counts, bytes a second, and their share of a plain
copy's. On a GPU all are replayed from CUDA graphs, as in training. On the CPU the case "one element" is what a call
costs before it does anything: our operations are torch.library operators, which Python dispatches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import kernels
from bench import OURS
from bench.timing import Call, clock, copy_bandwidth, input_sets, replay_of
from bench.turns import Row, Timed, in_turn
from kernels.asymmetric import asymmetric_loss_reference
from kernels.batch_norm import batch_norm_relu_reference
from kernels.conv1x1 import conv1x1_residual_relu_reference
from kernels.residual import residual_add_relu_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
ITEM = DTYPE.itemsize

Operation = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operation at one shape.

    Attributes:
        make: its tensors, those that want a gradient marked so.
        ours, eager: from these tensors to the output.
        bytes: moved forward and backward by the formula.
    """

    make: Callable[[], list[Tensor]]
    ours: Operation
    eager: Operation
    bytes: int


def feature_map(channels: int, size: int, batch: int) -> Tensor:
    values = torch.randn(batch, channels, size, size, device=DEVICE, dtype=DTYPE)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def vector(channels: int) -> Tensor:
    return torch.rand(channels, device=DEVICE).requires_grad_()


def residual(channels: int, size: int, batch: int) -> Case:
    return Case(
        lambda: [feature_map(channels, size, batch), feature_map(channels, size, batch)],
        lambda x, branch: kernels.residual_add_relu(x, branch, 0.17),
        lambda x, branch: residual_add_relu_reference(x, branch, 0.17),
        7 * ITEM * batch * channels * size * size,
    )


def batch_norm(channels: int, size: int, batch: int) -> Case:
    def make() -> list[Tensor]:
        running = [torch.zeros(channels, device=DEVICE), torch.ones(channels, device=DEVICE)]
        return [feature_map(channels, size, batch), vector(channels), vector(channels), *running]

    return Case(
        make,
        lambda x, weight, bias, mean, var: kernels.batch_norm_relu(x, weight, bias, mean, var, True),
        lambda x, weight, bias, mean, var: batch_norm_relu_reference(x, weight, bias, mean, var, True),
        8 * ITEM * batch * channels * size * size,
    )


def tail(channels: int, depth: int, size: int, batch: int) -> Case:
    pixels = batch * size * size
    return Case(
        lambda: [
            feature_map(channels, size, batch),
            feature_map(depth, size, batch),
            torch.randn(channels, depth, 1, 1, device=DEVICE, dtype=DTYPE).requires_grad_(),
            vector(channels),
        ],
        lambda x, branch, weight, bias: kernels.conv1x1_residual_relu(x, branch, weight, bias, 0.17),
        lambda x, branch, weight, bias: conv1x1_residual_relu_reference(x, branch, weight, bias.to(x.dtype), 0.17),
        ITEM * (7 * pixels * channels + 3 * pixels * depth + 3 * channels * depth),
    )


def loss(rows: int, labels: int, ours: Operation, eager: Operation, kind: torch.dtype = torch.float32) -> Case:
    return Case(
        lambda: [
            torch.randn(rows, labels, device=DEVICE).requires_grad_(),
            (torch.rand(rows, labels, device=DEVICE) < 0.1).to(kind),
        ],
        ours,
        eager,
        rows * labels * (4 * 4 + kind.itemsize),
    )


def eager_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """As a training loop has it: the targets become numbers first."""
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def pixels(size: int, batch: int) -> Case:
    mean, std = [127.5] * 3, [128.0] * 3
    return Case(
        lambda: [torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=DEVICE)],
        lambda x: kernels.normalize(x, mean, std, DTYPE),
        lambda x: ((x.float() - 127.5) / 128).permute(0, 3, 1, 2).to(DTYPE),
        (1 + ITEM) * batch * size * size * 3,
    )


BCE = (kernels.sigmoid_bce, eager_bce)
ASYMMETRIC = (kernels.asymmetric_loss, asymmetric_loss_reference)
PROVIDERS = (OURS, "eager", "compiled")


def cases(batch: int) -> dict[str, Case]:
    """By name; the losses have the rows of a large batch, and of a small one."""
    return {
        "residual_add_relu block A 256x37x37": residual(256, 37, batch),
        "residual_add_relu block B 896x18x18": residual(896, 18, batch),
        "residual_add_relu block C 1792x8x8": residual(1792, 8, batch),
        "residual_add_relu one element": residual(1, 1, 1),
        "batch_norm_relu stem 64x77x77": batch_norm(64, 77, batch),
        "batch_norm_relu block A 32x37x37": batch_norm(32, 37, batch),
        "batch_norm_relu block B 128x18x18": batch_norm(128, 18, batch),
        "batch_norm_relu block C 192x8x8": batch_norm(192, 8, batch),
        "batch_norm_relu two elements": batch_norm(1, 1, 2),
        "conv1x1_residual_relu block A 256x37x37": tail(256, 96, 37, batch),
        "conv1x1_residual_relu block B 896x18x18": tail(896, 256, 18, batch),
        "conv1x1_residual_relu block C 1792x8x8": tail(1792, 384, 8, batch),
        "conv1x1_residual_relu one element": tail(1, 1, 1, 1),
        "sigmoid_bce 8192x80": loss(8192, 80, *BCE),
        "sigmoid_bce 8192x80, bool targets": loss(8192, 80, *BCE, torch.bool),
        "sigmoid_bce 32x20": loss(32, 20, *BCE),
        "sigmoid_bce one element": loss(1, 1, *BCE),
        "asymmetric_loss 8192x80": loss(8192, 80, *ASYMMETRIC),
        "asymmetric_loss one element": loss(1, 1, *ASYMMETRIC),
        "normalize 320x320": pixels(320, batch),
        "normalize one pixel": pixels(1, 1),
    }


def step(operation: Operation) -> Callable[[list[Tensor]], Any]:
    """Forward and, where an input wants a gradient, backward."""

    def run(tensors: list[Tensor]) -> Any:
        y = operation(*tensors)
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        return (y, *torch.autograd.grad(y, wanted, upstream(y))) if wanted else (y,)

    return run


def check_alike(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Within 2 % of the largest element; where plain torch rounds on the way, one in 500 may have another ReLU mask."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        apart = (a.float() - b.float()).abs() > 2e-2 * b.float().abs().max()
        assert apart.sum().item() <= (a.numel() // 500 if DTYPE.itemsize < 4 else 0)


_ones: dict[tuple[Any, ...], Tensor] = {}


def upstream(y: Tensor) -> Tensor:
    """A gradient that is there before the clock starts."""
    key = (y.shape, y.dtype)
    if key not in _ones:
        _ones[key] = torch.ones_like(y)
    return _ones[key]


@dataclass(frozen=True, slots=True)
class Calls:
    """Of one case."""

    name: str
    bytes: int
    timed: Timed


@pytest.fixture(scope="module", params=cases(1))
def calls(request: pytest.FixtureRequest, quick: bool) -> Calls:
    torch.manual_seed(0)
    torch.compiler.reset()
    case = cases(1 if quick else 32 if DEVICE == "cuda" else 4)[request.param]
    inputs = case.make()
    buffers = input_sets(case.make, sum(t.nbytes for t in inputs), DEVICE)
    together = len(buffers) if DEVICE == "cuda" else 1

    def turn(provider: str) -> Call:
        """All sets of inputs at once, replayed; on the CPU the next one."""
        if provider == "compiled" and quick:
            pytest.skip("torch.compile takes seconds a case; not in the quick form")
        operations = {OURS: case.ours, "eager": case.eager}
        run = step(operations.get(provider) or torch.compile(case.eager, dynamic=False))
        check_alike(run(inputs), step(case.eager)(inputs))
        if DEVICE == "cuda":
            return replay_of(lambda: [run(tensors) for tensors in buffers])
        endless = cycle(buffers)
        return lambda: run(next(endless))

    rounds = 2 if quick else 30 if DEVICE == "cuda" or case.bytes < 1 << 20 else 15
    makes = {provider: partial(turn, provider) for provider in PROVIDERS}
    return Calls(request.param, case.bytes, in_turn(makes, rounds, lambda: clock(DEVICE)() / together))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_kernel(row: Row, calls: Calls, provider: str) -> None:
    rate = calls.bytes / calls.timed.median(provider)
    dtype = str(DTYPE).removeprefix("torch.")
    facts = {"dtype": dtype, "bytes": calls.bytes, "bytes_per_s": rate, "share_of_copy": rate / copy_bandwidth(DEVICE)}
    row(calls.timed, provider, calls.name, **facts)
