"""A search over shapes, dtypes and layouts: the interpreted kernels against plain torch in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels.asymmetric import asymmetric_loss_reference
from kernels.batch_norm import batch_norm_relu_reference
from kernels.bce import sigmoid_bce_reference
from kernels.conv1x1 import conv1x1_residual_relu_reference
from kernels.pixels import normalize_reference
from kernels.pool import max_pool_reference
from kernels.residual import residual_add_relu_reference

Close = Callable[..., None]
search = settings(max_examples=15, deadline=None, database=None, derandomize=True)
floats = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
sizes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 6), st.integers(1, 6))


def feature_map(n: int, c: int, h: int, w: int, dtype: torch.dtype, wider: int = 0) -> Tensor:
    return torch.randn(n, h, w, c + 2 * wider).to(dtype).permute(0, 3, 1, 2)[:, wider : wider + c].requires_grad_()


def check(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], close: Close, size: float = 1.0
) -> None:
    """Result and gradients; the latter by our mask of the ReLU, on whose sides what is within rounding may fall."""
    y = ours(*inputs)
    upstream = torch.randn(y.shape).to(y.dtype)
    grads = torch.autograd.grad(y, inputs, upstream)
    results = []
    for dtype in (None, torch.float64):
        given = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
        due = plain(*given)
        results.append((due.relu(), *torch.autograd.grad(due, given, (upstream * (y > 0)).to(due.dtype))))
    for got, like, exact in zip((y.detach(), *grads), *results, strict=True):
        close(got, like, exact, max(size, exact.abs().max().item()))


@search
@given(shape=st.lists(st.integers(1, 9), max_size=5).map(tuple), dtype=floats)
def test_residual_add_relu(shape: tuple[int, ...], dtype: torch.dtype, assert_close: Close) -> None:
    check(
        lambda x, b: kernels.residual_add_relu(x, b, 0.17),
        lambda x, b: residual_add_relu_reference(x, b, 0.17, relu=False),
        [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2)],
        assert_close,
    )


@search
@given(shape=sizes, dtype=floats, depth=st.integers(1, 70), wider=st.integers(0, 3))
def test_conv1x1(
    shape: tuple[int, int, int, int], dtype: torch.dtype, depth: int, wider: int, assert_close: Close
) -> None:
    n, c, h, w = shape
    x, branch = feature_map(n, c, h, w, dtype, wider), feature_map(n, depth, h, w, dtype, wider)
    parameters = [torch.randn(c, depth).to(dtype).requires_grad_(), torch.randn(c).to(dtype).requires_grad_()]
    check(
        lambda *t: kernels.conv1x1_residual_relu(*t, 0.17),
        lambda *t: conv1x1_residual_relu_reference(*t, 0.17, relu=False),
        [x, branch, *parameters],
        assert_close,
        (depth * n * h * w) ** 0.5,
    )


@search
@given(
    shape=sizes.filter(lambda s: s[0] * s[2] * s[3] > 4), dtype=floats, wider=st.integers(0, 3), training=st.booleans()
)
def test_batch_norm(
    shape: tuple[int, int, int, int], dtype: torch.dtype, wider: int, training: bool, assert_close: Close
) -> None:
    n, c, h, w = shape
    weight, bias = (torch.rand(c) + 0.5).requires_grad_(), torch.randn(c, requires_grad=True)
    mean, var = torch.randn(c), torch.rand(c) + 0.5

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = mean.to(weight.dtype, copy=True), var.to(weight.dtype, copy=True)
        return batch_norm_relu_reference(x, weight, bias, *running, training, eps=1e-3, relu=False)

    check(
        lambda *t: kernels.batch_norm_relu(*t, mean.clone(), var.clone(), training, eps=1e-3),
        plain,
        [feature_map(n, c, h, w, dtype, wider), weight, bias],
        assert_close,
        4 * (n * h * w) ** 0.5,
    )


@search
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(3, 9), st.integers(3, 9)),
    dtype=floats,
    wider=st.integers(0, 3),
)
def test_max_pool(shape: tuple[int, int, int, int], dtype: torch.dtype, wider: int) -> None:
    x = feature_map(*shape, dtype, wider)
    y, due = kernels.max_pool(x), max_pool_reference(x)
    assert torch.equal(y, due)
    upstream = torch.randn(y.shape)
    got, expected = torch.autograd.grad(y, x, upstream.to(dtype))[0], torch.autograd.grad(due.float(), x, upstream)[0]
    torch.testing.assert_close(got, expected, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize("name", ["sigmoid_bce", "asymmetric_loss"])
@search
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)), dtype=floats, reduction=st.sampled_from(["sum", "none"])
)
def test_losses(name: str, shape: tuple[int, int], dtype: torch.dtype, reduction: str) -> None:
    logits, targets = (3 * torch.randn(shape)).to(dtype).requires_grad_(), torch.rand(shape) < 0.3
    plain = sigmoid_bce_reference if name == "sigmoid_bce" else asymmetric_loss_reference
    exact = logits.detach().double().requires_grad_()
    got, due = (f(x, targets, reduction=reduction) for f, x in ((getattr(kernels, name), logits), (plain, exact)))
    upstream = torch.randn(got.shape)
    torch.testing.assert_close(got.double(), due, rtol=1e-4, atol=1e-5)
    (grad,), (due_grad,) = (torch.autograd.grad(y, x, upstream.to(y.dtype)) for y, x in ((got, logits), (due, exact)))
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), due_grad, rtol=unit + 1e-4, atol=unit)


@search
@given(shape=st.tuples(*[st.integers(1, 30)] * 3), dtype=floats)
def test_normalize(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    mean, std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    exact = normalize_reference(pixels, mean, std, torch.float64)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(kernels.normalize(pixels, mean, std, dtype).double(), exact, rtol=unit, atol=4e-6)
