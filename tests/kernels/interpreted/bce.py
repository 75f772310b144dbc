import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels import asymmetric_loss, residual_add_relu, sigmoid_bce
from kernels.bce import sigmoid_bce_reference

Close = Callable[..., None]
Memory = Any
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets_dtype", [None, torch.bool, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (13, 7), (7, 601)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bce(
    memory: Memory,
    dtype: torch.dtype,
    shape: tuple[int, int],
    targets_dtype: torch.dtype | None,
    reduction: str,
    assert_close: Close,
) -> None:
    """Unweighted with bool targets, weighted with soft ones."""
    soft = targets_dtype is not torch.bool
    targets = torch.rand(shape).to(targets_dtype) if soft else torch.rand(shape) < 0.3
    logits, targets = memory.input((3 * torch.randn(shape)).to(dtype)).requires_grad_(), memory.input(targets)
    weight = memory.input(4 * torch.rand(shape[1])) if soft else None
    loss = sigmoid_bce(logits, targets, weight, reduction)
    upstream = torch.randn(loss.shape)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    memory.check(outputs=3)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.detach().to(dtype).requires_grad_()
        w = None if weight is None else weight.to(dtype)
        value = binary_cross_entropy_with_logits(x, targets.to(dtype), reduction=reduction, pos_weight=w)
        return value.detach(), torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact, exact_grad = plain(torch.float64)
    assert_close(loss, plain(torch.float32)[0], exact)
    largest = upstream.abs().max().item() / (logits.numel() if reduction == "mean" else 1)
    assert_close(grad, plain(dtype)[1], exact_grad, largest)


def test_bce_makes_no_gradient_that_nobody_wants(memory: Memory) -> None:
    logits, targets = memory.input(torch.randn(3, 5)), memory.input(torch.rand(3, 5) < 0.5)
    loss = sigmoid_bce(logits, targets)
    memory.check(outputs=1)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(logits, targets.float()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [5, 301])
def test_bce_mask_and_smoothing(memory: Memory, rows: int, reduction: str) -> None:
    """Samples left out hold NaN; 301 rows are several programs, whose edges lie inside rows."""
    mask = memory.input(torch.arange(rows) % 3 > 0)
    values, targets = torch.randn(rows, 13), memory.input(torch.rand(rows, 13))
    values[~mask] = math.nan
    logits, weight = memory.input(values).requires_grad_(), memory.input(4 * torch.rand(13))
    loss = sigmoid_bce(logits, targets, weight, reduction, 0.1, mask)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    memory.check(outputs=3)
    kept = values[mask].requires_grad_()
    expected = sigmoid_bce_reference(kept, targets[mask], weight, reduction, 0.1)
    (expected_grad,) = torch.autograd.grad(expected.sum(), kept)
    torch.testing.assert_close(loss[mask] if reduction == "none" else loss, expected)
    torch.testing.assert_close(grad[mask], expected_grad)
    assert not grad[~mask].any()


@pytest.mark.parametrize("loss", [sigmoid_bce, asymmetric_loss])
@pytest.mark.parametrize("kind", [torch.uint8, torch.bool], ids=str)
def test_any_byte_but_zero_counts(loss: Any, kind: torch.dtype) -> None:
    """In a mask and in targets."""
    logits, targets = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3) < 0.5
    mask = torch.tensor([255, 0, 7, 0], dtype=torch.uint8)
    bytes_of_targets = targets * torch.tensor([255, 2, 128], dtype=torch.uint8)
    results = []
    for y, counts in ((bytes_of_targets.view(kind), mask.view(kind)), (targets.float(), mask != 0)):
        value = loss(logits, y, reduction="none", sample_mask=counts)
        results.append((value, *torch.autograd.grad(value.sum(), logits)))
    torch.testing.assert_close(results[0], results[1])


def test_bce_far_from_zero() -> None:
    values = torch.tensor([-80.0, -40, -20, -1e-3, 0, 1e-3, 20, 40, 80])
    logits = torch.stack([values, values], dim=1).requires_grad_()
    targets = torch.tensor([0.0, 1.0]).repeat(len(values), 1)
    loss = sigmoid_bce(logits, targets, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    side = torch.stack([values, -values], dim=1).double()
    torch.testing.assert_close(loss.double(), side.exp().log1p(), rtol=5e-7, atol=0)
    expected = torch.sigmoid(side) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(grad.double(), expected, rtol=5e-7, atol=0)


def test_bce_nan_and_infinity() -> None:
    logits = torch.tensor([[math.nan, math.inf, -math.inf]], requires_grad=True)
    loss = sigmoid_bce(logits, torch.tensor([[True, False, True]]), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == [[True, False, False]]
    assert loss[0, 1:].tolist() == [math.inf, math.inf]
    assert grad.isnan().tolist() == [[True, False, False]]
    assert grad[0, 1:].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("size", [0, 3])
def test_empty_and_float64_take_plain_torch(size: int) -> None:
    logits = torch.randn(size, 4, dtype=torch.float64 if size else torch.float32, requires_grad=True)
    assert sigmoid_bce(logits, torch.ones(size, 4), reduction="sum").dtype == logits.dtype
    assert residual_add_relu(logits, logits, 1.0).shape == (size, 4)
