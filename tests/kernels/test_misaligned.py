"""Tensors that start at an odd place in memory, as views do: same results as of their copies."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import kernels


def moved(x: Tensor) -> Tensor:
    """A copy one element into a buffer, with the strides of x."""
    buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    copy = buffer[1:].as_strided(x.shape, x.stride(), 1)
    copy.copy_(x)
    assert copy.data_ptr() % 16
    return copy


def feature_map(dtype: torch.dtype, channels: int = 24) -> Tensor:
    return torch.randn(3, channels, 5, 7).to(dtype).contiguous(memory_format=torch.channels_last)


CASES: dict[str, Callable[[torch.dtype], tuple[Callable[..., Tensor], list[Tensor]]]] = {
    "residual_add_relu": lambda dtype: (
        lambda x, branch: kernels.residual_add_relu(x, branch, 0.17),
        [feature_map(dtype), feature_map(dtype)],
    ),
    "sigmoid_bce": lambda dtype: (
        lambda logits, targets: kernels.sigmoid_bce(logits, targets, reduction="none"),
        [torch.randn(31, 17).to(dtype), torch.rand(31, 17)],
    ),
    "asymmetric_loss": lambda dtype: (
        lambda logits, targets: kernels.asymmetric_loss(logits, targets, reduction="none"),
        [torch.randn(31, 17).to(dtype), torch.rand(31, 17)],
    ),
    "batch_norm_relu": lambda dtype: (
        lambda x, weight, bias: kernels.batch_norm_relu(x, weight, bias, None, None, True),
        [feature_map(dtype), torch.rand(24), torch.rand(24)],
    ),
    "batch_norm_relu of several": lambda dtype: (
        lambda x, y, weight, bias: kernels.batch_norm_relu_concat([x, y], [weight] * 2, [bias] * 2, None, None, True),
        [feature_map(dtype), feature_map(dtype), torch.rand(24), torch.rand(24)],
    ),
    "max_pool": lambda dtype: (kernels.max_pool, [feature_map(dtype)]),
    "conv1x1_residual_relu": lambda dtype: (
        lambda x, branch, weight: kernels.conv1x1_residual_relu(x, branch, weight, None, 0.17),
        [feature_map(dtype), feature_map(dtype, 13), torch.randn(24, 13).to(dtype)],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_misaligned(device: str, dtype: torch.dtype, name: str) -> None:
    operation, inputs = CASES[name](dtype)
    results = []
    for place in (torch.clone, moved):
        given = [place(t.to(device)).requires_grad_(t.dtype == dtype and i == 0) for i, t in enumerate(inputs)]
        y = operation(*given)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), given[0])])
    torch.testing.assert_close(results[1], results[0])


def test_misaligned_pixels(device: str) -> None:
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8, device=device)
    a, b = (kernels.normalize(place(pixels), [127.5] * 3, [128.0] * 3, torch.float16) for place in (torch.clone, moved))
    assert torch.equal(a, b)
