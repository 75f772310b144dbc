import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels import residual_add_relu
from kernels.residual import residual_add_relu_reference

Close = Callable[..., None]
Memory = Any
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 1, 32, 32), (3, 17, 9, 7)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_residual(
    memory: Memory,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    assert_close: Close,
) -> None:
    values = [torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(3)]
    x, branch, upstream = (memory.input(value) for value in values)
    for tensor in (x, branch):
        tensor.requires_grad_()
    y = residual_add_relu(x, branch, 0.17)
    grads = torch.autograd.grad(y, (x, branch), upstream)
    memory.check(outputs=3)

    plain = residual_add_relu_reference(x, branch, 0.17)
    plain_grads = torch.autograd.grad(plain, (x, branch), upstream)
    assert_close(y, plain, residual_add_relu_reference(x.double(), branch.double(), 0.17))
    masked = upstream.double() * (y > 0)
    assert_close(grads[0], plain_grads[0], masked)
    assert_close(grads[1], plain_grads[1], 0.17 * masked)
    assert y.stride() == grads[0].stride() == grads[1].stride() == x.stride()


def test_residual_gradient_in_another_layout(memory: Memory) -> None:
    x, branch, upstream = (torch.randn(2, 6, 5, 4).to(memory_format=CHANNELS_LAST) for _ in range(3))
    for tensor in (x, branch):
        tensor.requires_grad_()
    y = residual_add_relu(x, branch, 0.5)
    expected = torch.autograd.grad(y, (x, branch), upstream, retain_graph=True)
    got = torch.autograd.grad(y, (x, branch), upstream.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    memory.check(outputs=6)  # y, two pairs of gradients and the copy


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_residual_nan_infinity_and_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype, requires_grad=True)
    y, expected = residual_add_relu(x, torch.zeros_like(x), 0.5), torch.relu(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    grad, expected_grad = (torch.autograd.grad(out, x, torch.ones_like(x))[0] for out in (y, expected))
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_residual_without_relu(memory: Memory, dtype: torch.dtype, assert_close: Close) -> None:
    x, branch = (memory.input(torch.randn(3, 17, 9, 7).to(dtype)).requires_grad_() for _ in range(2))
    y = residual_add_relu(x, branch, 0.17, relu=False)
    assert_close(y, x + 0.17 * branch, x.double() + 0.17 * branch.double())
    memory.check(outputs=1)
    grad_x, grad_branch = torch.autograd.grad(y, (x, branch), torch.ones_like(y))
    assert (grad_x == 1).all()
    assert_close(grad_branch, torch.full_like(y, 0.17), torch.full_like(y, 0.17).double())
