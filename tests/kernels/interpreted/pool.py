import math
from typing import Any

import pytest
import torch

from kernels import max_pool
from kernels.pool import max_pool_reference

Memory = Any


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 5, 9, 4), (1, 70, 6, 11), (3, 64, 7, 8)], ids=str)
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slice"])
def test_max_pool(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool) -> None:
    """Values are few, so that windows have several largest ones."""
    n, c, h, w = shape
    values = torch.randint(-3, 4, (n, h, w, c)).to(dtype)
    wide = torch.nn.functional.pad(values, (3, 2), value=math.nan) if sliced else values
    given = memory.input(wide).permute(0, 3, 1, 2)
    x = (given[:, 3:-2] if sliced else given).requires_grad_()
    y = max_pool(x)
    upstream = memory.input(torch.randn_like(y))
    (grad,) = torch.autograd.grad(y, x, upstream)
    memory.check(outputs=3)
    plain = x.detach().contiguous().requires_grad_()
    expected = max_pool_reference(plain)
    assert torch.equal(y, expected)
    (due,) = torch.autograd.grad(expected.float(), plain, upstream.float())
    torch.testing.assert_close(grad, due, rtol=2**-6, atol=2**-6)


def test_nan_and_infinity() -> None:
    x = torch.full((1, 1, 3, 7), -math.inf)
    x[0, 0, 1, 1], x[0, 0, 2, 6] = math.nan, math.inf
    got = max_pool(x.to(memory_format=torch.channels_last))
    assert torch.equal(got.isnan(), max_pool_reference(x).isnan())
    assert got[0, 0, 0, 2] == math.inf
