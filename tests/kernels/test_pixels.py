import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import normalize
from kernels.pixels import normalize_reference

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    got = normalize(pixels, MEAN, STD, dtype)
    exact = normalize_reference(pixels, MEAN, STD, torch.float64)
    assert (got.shape, got.dtype) == (exact.shape, dtype)
    assert got.numel() == 0 or got.is_contiguous(memory_format=torch.channels_last)
    # Rounded once: half a unit in the last place, and float32 arithmetic on numbers up to 255.
    allowed = exact.abs() * torch.finfo(dtype).eps / 2 + 4e-7 * 255 / min(STD)
    assert ((got.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 5, 7, 3), (3, 37, 23, 3), (0, 4, 4, 3), (1, 2048, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(shape, dtype, device)


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(shape=st.tuples(*[st.integers(0, 12)] * 3), dtype=st.sampled_from(FLOATS))
def test_any_shape(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check((*shape, 3), dtype, "cpu")


def test_the_pipelines_own_normalisation() -> None:
    """Black and white of a picture come out as the pipelines make them."""
    pixels = torch.tensor([0, 255, 128], dtype=torch.uint8).reshape(1, 1, 1, 3)
    got = normalize(pixels, [127.5] * 3, [128.0] * 3, torch.float32)
    assert got.flatten().tolist() == [-127.5 / 128, 127.5 / 128, 0.5 / 128]


def test_opcheck() -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    torch.library.opcheck(torch.ops.manylabel.normalize, (pixels, [*MEAN], [*STD], torch.bfloat16))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str) -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    step = torch.compile(lambda x: normalize(x, MEAN, STD, torch.float16) * 2, backend=backend, fullgraph=True)
    torch.testing.assert_close(step(pixels), normalize(pixels, MEAN, STD, torch.float16) * 2)


X = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pixels": X.float()}, r"pixels is torch\.float32; it takes uint8"),
        ({"pixels": X[..., :2]}, r"pixels has shape \(2, 4, 4, 2\); it takes \[N, H, W, 3\]"),
        ({"pixels": X[:, ::2]}, "pixels has strides"),
        ({"mean": (1, 2)}, "mean has 2 numbers; it takes three"),
        ({"std": (1, 0, 1)}, "std is 0; it takes a number of"),
        ({"mean": (1, math.nan, 1)}, "mean is nan"),
        ({"dtype": torch.float64}, r"dtype is torch\.float64; it takes float32"),
    ],
)
def test_wrong_argument(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize(**{"pixels": X, "mean": MEAN, "std": STD, "dtype": torch.float32, **given})
