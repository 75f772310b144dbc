from typing import Any

import pytest
import torch

from kernels import normalize
from kernels.pixels import normalize_reference

Memory = Any
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 7, 3), (3, 37, 23, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_normalize(memory: Memory, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    pixels = memory.input(torch.randint(0, 256, shape, dtype=torch.uint8))
    got = normalize(pixels, MEAN, STD, dtype)
    memory.check(outputs=1)
    exact = normalize_reference(pixels, MEAN, STD, torch.float64)
    # The interpreter truncates to bfloat16: a whole unit in the last place.
    allowed = exact.abs() * torch.finfo(dtype).eps + 4e-7 * 255 / min(STD)
    assert ((got.double() - exact).abs() <= allowed).all()
