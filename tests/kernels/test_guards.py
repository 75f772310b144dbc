"""The compiled passes on the CPU are given addresses: they touch nothing beside the tensors that lie there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import conv1x1

Memory = Any
# One pixel, rows that are folded, rows that are not, several parts.
SHAPES = [(2, 1, 1, 1), (3, 5, 3, 7), (2, 24, 4, 8), (1, 300, 3, 5), (2, 40, 41, 30)]
DTYPES = [torch.float32, torch.bfloat16]


def feature_map(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> Tensor:
    """Between stretches of NaN; sliced: a few channels of a map that is NaN elsewhere."""
    n, c, h, w = shape
    values = torch.randn(n, h, w, c).to(dtype)
    if sliced:
        values = torch.nn.functional.pad(values, (3, 2), value=torch.nan)
    found: Tensor = memory.input(values).permute(0, 3, 1, 2)
    return found[:, 3:-2] if sliced else found


def batch_norm(
    memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool, training: bool
) -> list[Tensor]:
    x = feature_map(memory, shape, dtype, sliced).requires_grad_()
    weight, bias, mean, var = (memory.input(torch.rand(shape[1]) + 0.5) for _ in range(4))
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    y = kernels.batch_norm_relu(*leaves, mean.clone(), var.clone(), training)
    return [y, *torch.autograd.grad(y, leaves, feature_map(memory, shape, dtype, sliced))]


def concatenation(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> list[Tensor]:
    n, c, h, w = shape
    xs = [feature_map(memory, (n, channels, h, w), dtype, sliced).requires_grad_() for channels in (c, 7)]
    weights, biases = ([memory.input(torch.rand(x.shape[1])).requires_grad_() for x in xs] for _ in range(2))
    y = kernels.batch_norm_relu_concat(xs, weights, biases, None, None, True)
    upstream = feature_map(memory, (n, c + 7, h, w), dtype, sliced)
    return [y, *torch.autograd.grad(y, [*xs, *weights, *biases], upstream)]


def tail(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> list[Tensor]:
    n, c, h, w = shape
    x, upstream = (feature_map(memory, shape, dtype, sliced) for _ in range(2))
    branch = feature_map(memory, (n, 9, h, w), dtype, sliced)
    weight, bias = memory.input(torch.randn(c, 9).to(dtype)), memory.input(torch.randn(c))
    leaves = [t.requires_grad_() for t in (x, branch, weight, bias)]
    y = kernels.conv1x1_residual_relu(*leaves, 0.17)
    return [y, *torch.autograd.grad(y, leaves, upstream)]


def input_gradient(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> list[Tensor]:
    n, c, h, w = shape
    grad, x = (feature_map(memory, shape, dtype, sliced) for _ in range(2))
    branch = feature_map(memory, (n, 9, h, w), dtype, sliced)
    return list(conv1x1.input_gradient(grad, branch, memory.input(torch.randn(9, c).to(dtype)), x))


PASSES: dict[str, Callable[..., list[Tensor]]] = {
    "batch_norm training": lambda *case: batch_norm(*case, True),
    "batch_norm eval": lambda *case: batch_norm(*case, False),
    "concatenation": concatenation,
    "tail": tail,
    "input_gradient": input_gradient,
}


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_maps(memory: Memory, name: str, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> None:
    results = PASSES[name](memory, shape, dtype, sliced)
    memory.check_guards()
    assert memory.outputs
    assert not any(result.isnan().any() for result in results)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("targets", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 601), (3, 2049), (1700, 80)], ids=str)
def test_sigmoid_bce(memory: Memory, shape: tuple[int, int], targets: torch.dtype, reduction: str) -> None:
    logits = memory.input(torch.randn(shape)).requires_grad_()
    y, mask = memory.input((torch.rand(shape) < 0.5).to(targets)), memory.input(torch.arange(shape[0]) % 3 < 2)
    loss = kernels.sigmoid_bce(logits, y, memory.input(torch.rand(shape[1])), reduction, 0.1, mask)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    memory.check_guards()
    assert not loss.isnan().any()
    assert not grad.isnan().any()


@pytest.mark.parametrize("targets", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (2, 2049), (1700, 80)], ids=str)
@pytest.mark.parametrize("loss", [kernels.sigmoid_bce, kernels.asymmetric_loss])
def test_logits(memory: Memory, loss: Callable[..., Tensor], shape: tuple[int, int], targets: torch.dtype) -> None:
    logits = memory.input(torch.randn(shape)).requires_grad_()
    positives = memory.input((torch.rand(shape) < 0.3).to(targets))
    mask = memory.input((torch.rand(shape[0]) < 0.7).to(torch.uint8))
    for reduction in ("none", "sum"):
        value = loss(logits, positives, reduction=reduction, sample_mask=mask)
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert grad.isfinite().all()
    memory.check_guards()
