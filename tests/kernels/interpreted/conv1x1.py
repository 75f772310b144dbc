import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import conv1x1
from kernels.conv1x1 import conv1x1_residual_relu, conv1x1_residual_relu_reference, input_gradient

Close = Callable[..., None]
Memory = Any
SCALE = 0.17
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# N, C, K, H, W: one element, one channel, no depth, several tiles with odd ends, more than 128 deep.
SHAPES = [(1, 1, 1, 1, 1), (2, 1, 5, 3, 4), (2, 5, 0, 2, 2), (2, 131, 33, 7, 11), (1, 40, 150, 5, 13)]


def channels_last(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, h, w, c).to(dtype).permute(0, 3, 1, 2)


def between_others(memory: Memory, values: Tensor) -> Tensor:
    """The values as a channel slice that starts at no multiple of 16 bytes; the channels beside it are NaN."""
    wide = torch.nn.functional.pad(values.permute(0, 2, 3, 1), (3, 2), value=math.nan).permute(0, 3, 1, 2)
    piece: Tensor = memory.input(wide)[:, 3:-2]
    return piece


def tensors(
    memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool = False, parameters: Any = None
) -> tuple[list[Tensor], Tensor]:
    """x, branch, weight and bias, which take gradients, and a gradient from upstream."""
    n, c, k, h, w = shape
    maps = [channels_last(n, channels, h, w, dtype) for channels in (c, k, c)]
    x, branch, upstream = (between_others(memory, m) if sliced else memory.input(m) for m in maps)
    weight, bias = (memory.input(torch.randn(size).to(parameters or dtype)) for size in ((c, k), (c,)))
    return [t.requires_grad_() for t in (x, branch, weight, bias)], upstream


def formulas(
    inputs: list[Tensor], upstream: Tensor, y: Tensor, relu: bool, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result before the ReLU and the four gradients, by the mask of y."""
    x, branch, weight, bias = (t.detach() for t in inputs)
    x, branch, weight, bias = x.to(dtype), branch.to(dtype), weight.to(x.dtype).to(dtype), bias.to(dtype)
    # A copy: products in bfloat16 on the CPU may read what lies beside a slice.
    rows = branch.movedim(1, -1).flatten(0, -2).contiguous()
    g = upstream.to(dtype) * (y > 0) if relu else upstream.to(dtype)
    g_rows = g.movedim(1, -1).flatten(0, -2)

    def as_map(t: Tensor) -> Tensor:
        return t.unflatten(0, (len(x), *x.shape[2:])).movedim(-1, 1)

    product = as_map(rows @ weight.t() + bias)
    gradients = (g, as_map(SCALE * g_rows @ weight), SCALE * g_rows.t() @ rows, SCALE * g_rows.sum(0))
    return x + SCALE * product, gradients


def check(inputs: list[Tensor], upstream: Tensor, memory: Memory, close: Close, relu: bool, outputs: int) -> None:
    y = conv1x1_residual_relu(*inputs, SCALE, relu)
    grads = torch.autograd.grad(y, inputs, upstream)
    memory.check(outputs)
    (due, due_grads), (plain, plain_grads) = (
        formulas(inputs, upstream, y.detach(), relu, dtype) for dtype in (torch.float64, y.dtype)
    )
    activation = torch.relu if relu else torch.clone
    close(y.detach(), activation(plain), activation(due), due.abs().max().item())
    for tensor, grad, plain_grad, due_grad in zip(inputs, grads, plain_grads, due_grads, strict=True):
        assert grad.dtype == tensor.dtype
        close(grad, plain_grad, due_grad)


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_conv1x1(memory: Memory, dtype: torch.dtype, shape: tuple[int, ...], sliced: bool, assert_close: Close) -> None:
    """y, g and the sums of the bias are written whole, and nothing beside them; nothing beside the inputs is read."""
    inputs, upstream = tensors(memory, shape, dtype, sliced)
    check(inputs, upstream, memory, assert_close, relu=True, outputs=3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_conv1x1_without_relu(memory: Memory, dtype: torch.dtype, assert_close: Close) -> None:
    inputs, upstream = tensors(memory, (2, 131, 33, 5, 7), dtype, parameters=torch.float32)
    check(inputs, upstream, memory, assert_close, relu=False, outputs=1)


def test_conv1x1_without_bias(memory: Memory) -> None:
    (x, branch, weight, _), upstream = tensors(memory, (2, 33, 9, 3, 5), torch.float32)
    y = conv1x1_residual_relu(x, branch, weight, None, SCALE)
    got = torch.autograd.grad(y, (x, branch, weight), upstream)
    memory.check(outputs=2)  # y and g, no sums
    plain = conv1x1_residual_relu_reference(x, branch, weight, None, SCALE)
    torch.testing.assert_close((y, *got), (plain, *torch.autograd.grad(plain, (x, branch, weight), upstream)))


def test_conv1x1_rounds_once(memory: Memory) -> None:
    """The interpreter truncates to bfloat16; float16 it rounds."""
    inputs, upstream = tensors(memory, (2, 96, 40, 9, 9), torch.float16)
    y = conv1x1_residual_relu(*inputs, SCALE, relu=False).detach()
    due, _ = formulas(inputs, upstream, y, False, torch.float64)
    half_unit = torch.finfo(y.dtype).eps / 2 * 2 ** due.abs().log2().floor()
    assert ((y.double() - due).abs() <= half_unit + 1e-6 * due.abs().max()).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_conv1x1_nan_and_infinity(dtype: torch.dtype) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0], dtype=dtype)
    x = values.view(1, 1, 1, 6).expand(1, 4, 1, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    zeros = torch.zeros_like(x, memory_format=torch.channels_last)
    weight, bias = torch.ones(4, 4, dtype=dtype), torch.zeros(4, dtype=dtype)
    for inputs in ((x, zeros, weight, bias), (zeros, x, weight, bias)):
        got, expected = (op(*inputs, 0.5) for op in (conv1x1_residual_relu, conv1x1_residual_relu_reference))
        torch.testing.assert_close(got, expected, equal_nan=True)
        grads = [torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (got, expected)]
        torch.testing.assert_close(*grads)


def test_conv1x1_gradient_in_another_layout(memory: Memory) -> None:
    """Channels-last slices are read where they lie; what else comes is copied first."""
    inputs, upstream = tensors(memory, (2, 6, 3, 5, 4), torch.float32)
    y = conv1x1_residual_relu(*inputs, SCALE)
    expected = torch.autograd.grad(y, inputs, upstream, retain_graph=True)
    got = torch.autograd.grad(y, inputs, between_others(memory, upstream), retain_graph=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    memory.check(outputs=5)  # y, and g and sums twice
    got = torch.autograd.grad(y, inputs, upstream.contiguous(), retain_graph=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    memory.check(outputs=8)
    ones = memory.input(torch.ones(2, 5, 4, 6).permute(0, 3, 1, 2))
    summed = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(summed, torch.autograd.grad(y, inputs, ones))


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_precision_of_products(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is launched with the setting of the moment, which the interpreter does not look at."""
    kernel, given = conv1x1._conv1x1_residual_fwd_kernel, []

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **options: (
                given.append(options["PRECISION"]) or kernel[grid](*arguments, **options)
            )

    monkeypatch.setattr(conv1x1, "_conv1x1_residual_fwd_kernel", Spy())
    monkeypatch.setattr(conv1x1, "_precision", lambda: precision)
    x, weight = channels_last(1, 3, 2, 2, torch.float32), torch.randn(3, 3)
    conv1x1_residual_relu(x, x, weight, None, SCALE)
    input_gradient(x, x, weight, x)
    assert given == [precision] * 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slice"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_input_gradient(
    memory: Memory, shape: tuple[int, ...], sliced: bool, dtype: torch.dtype, assert_close: Close
) -> None:
    """The product of the head, the residual connection's gradient, the ReLU's mask and the sums of the bias at once.

    What the ReLU made 0 has no gradient; its output, the mask, may lie in a wider map than the gradient does.
    """
    n, c, k, h, w = shape
    grad, masking = memory.input(channels_last(n, c, h, w, dtype)), channels_last(n, c, h, w, dtype).relu()
    x = between_others(memory, masking) if sliced else memory.input(masking)
    branch = memory.input(channels_last(n, k, h, w, dtype))
    weight = memory.input(torch.randn(k, c).to(dtype))
    y, sums = input_gradient(grad, branch, weight, x)
    memory.check(outputs=2)

    def formula(kind: torch.dtype) -> Tensor:
        product = branch.to(kind).movedim(1, -1) @ weight.to(kind)
        return (grad.to(kind) + product.movedim(-1, 1)) * (x > 0)

    exact = formula(torch.float64)
    size = max(1.0, k**0.5)
    assert_close(y, formula(torch.float32).to(dtype), exact, size)
    pixels = n * h * w
    assert_close(sums, formula(torch.float32).sum((0, 2, 3)), exact.sum((0, 2, 3)), size * pixels**0.5)
