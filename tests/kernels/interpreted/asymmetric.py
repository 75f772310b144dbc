import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import asymmetric_loss
from kernels.asymmetric import asymmetric_loss_reference

Close = Callable[..., None]
Memory = Any
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
FORMS = [(0.0, 4.0, 0.05), (1.0, 2.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.2)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (13, 7), (7, 301)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_asymmetric(
    memory: Memory,
    dtype: torch.dtype,
    shape: tuple[int, int],
    form: tuple[float, float, float],
    reduction: str,
    assert_close: Close,
) -> None:
    logits = memory.input((3 * torch.randn(shape)).to(dtype)).requires_grad_()
    targets = memory.input(torch.rand(shape) < 0.3)
    loss = asymmetric_loss(logits, targets, *form, reduction)
    upstream = torch.randn(loss.shape)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    memory.check(outputs=3)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.detach().to(dtype).requires_grad_()
        value = asymmetric_loss_reference(x, targets, *form, reduction)
        return value.detach(), torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact, exact_grad = plain(torch.float64)
    assert_close(loss, plain(torch.float32)[0], exact)
    largest = (sum(form[:2]) + 1) * upstream.abs().max().item()
    assert_close(grad, plain(dtype)[1], exact_grad, largest / (logits.numel() if reduction == "mean" else 1))


def test_samples_left_out(memory: Memory) -> None:
    mask = memory.input(torch.arange(301) % 3 > 0)
    logits, targets = torch.randn(301, 13), memory.input(torch.rand(301, 13) < 0.3)
    logits[~mask] = math.nan
    logits = memory.input(logits).requires_grad_()
    loss = asymmetric_loss(logits, targets, sample_mask=mask)
    (grad,) = torch.autograd.grad(loss, logits)
    memory.check(outputs=3)
    torch.testing.assert_close(loss, asymmetric_loss_reference(logits, targets, sample_mask=mask))
    assert not grad[~mask].any()
    assert grad[mask].any()


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
def test_nan_and_infinity() -> None:
    logits = torch.tensor([[math.nan, math.inf, -math.inf, math.inf, -math.inf]])
    targets = torch.tensor([[True, False, True, True, False]])
    for form in FORMS:
        got, plain = (f(logits, targets, *form, "none") for f in (asymmetric_loss, asymmetric_loss_reference))
        certain = ~plain.isnan()
        torch.testing.assert_close(got[certain], plain[certain])
        assert got[0, 0].isnan()
        assert got[0, 2] == math.inf
