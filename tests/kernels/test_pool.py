import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import max_pool, pool
from kernels.pool import max_pool_reference

CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 5, 9, 4), (2, 64, 37, 37), (0, 4, 5, 5)], ids=str)
def test_against_torch(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randint(-3, 4, shape).to(device, dtype).to(memory_format=CHANNELS_LAST).requires_grad_()
    y, expected = max_pool(x), max_pool_reference(x)
    upstream = torch.randn(y.shape).to(device, dtype)
    assert torch.equal(y, expected)
    grads = [torch.autograd.grad(result, x, upstream)[0] for result in (y, expected)]
    torch.testing.assert_close(*grads, rtol=2**-6, atol=2**-6)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(3, 9), st.integers(3, 9)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_operators_for_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Those that a GPU takes, in their CPU form; few values, so that windows have several largest ones."""
    x = torch.randint(-3, 4, shape).to(dtype).to(memory_format=CHANNELS_LAST).requires_grad_()
    y, due = pool._MaxPool.apply(x), max_pool_reference(x)
    assert torch.equal(y, due)
    upstream = torch.randint(-3, 4, y.shape).to(dtype)
    assert torch.equal(*(torch.autograd.grad(result, x, upstream)[0] for result in (y, due)))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("operation", [max_pool, pool._MaxPool.apply], ids=["public", "operators"])
def test_compiles_without_a_break(operation: Any) -> None:
    x = torch.randn(2, 3, 8, 7).to(memory_format=CHANNELS_LAST).requires_grad_()
    step, results = lambda x: operation(torch.relu(x)) * 2, []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        y = function(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("operation", [max_pool, pool._MaxPool.apply], ids=["public", "operators"])
def test_nan_and_infinity(operation: Any) -> None:
    x = torch.full((1, 1, 3, 7), -math.inf)
    x[0, 0, 1, 1], x[0, 0, 2, 6] = math.nan, math.inf
    x = x.to(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(operation(x), max_pool_reference(x), equal_nan=True, rtol=0, atol=0)


def test_operators() -> None:
    """Those that a GPU takes, in their CPU form."""
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64).to(memory_format=CHANNELS_LAST)
    ops = torch.ops.manylabel
    torch.library.opcheck(ops.max_pool, (x,))
    y, tap = ops.max_pool(x)
    assert torch.equal(y, max_pool_reference(x))
    torch.library.opcheck(ops.max_pool_backward, (y, tap, 8, 7))
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(max_pool_reference(plain), plain, y)
    torch.testing.assert_close(ops.max_pool_backward(y, tap, 8, 7), expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1, 2, 3), r"x has shape \(1, 1, 2, 3\); H and W must be 3 or more"),
        (torch.zeros(1, 4, 3, 3), "it takes channels-last memory"),
        (torch.zeros(1, 1, 3, 3).int(), r"x is torch\.int32"),
        (torch.zeros(3, 3), "it takes four dimensions"),
    ],
)
def test_wrong_argument(x: Tensor, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        max_pool(x)
