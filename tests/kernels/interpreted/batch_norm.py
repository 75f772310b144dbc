import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import batch_norm, batch_norm_relu, batch_norm_relu_concat, batch_norm_triton
from kernels.batch_norm import batch_norm_relu_reference

Close = Callable[..., None]
Memory = Any
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CHANNELS_LAST = torch.channels_last
EPS = 1e-3


def channels_last(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, sliced: bool = False) -> Tensor:
    """Between stretches of NaN; sliced: some channels, from an odd place on, of a map that is NaN elsewhere."""
    n, c, h, w = shape
    own = torch.randn(shape) * 2 + 3
    if not sliced:
        return memory.input(own.to(dtype).contiguous(memory_format=CHANNELS_LAST))
    wider = torch.full((n, h, w, c + 5), math.nan).permute(0, 3, 1, 2)
    wider[:, 3 : 3 + c] = own
    return memory.input(wider.to(dtype))[:, 3 : 3 + c]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("form", ["plain", "sliced", "residual", "no relu"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 24, 5, 7), (2, 70, 9, 3)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_batch_norm(
    memory: Memory, dtype: torch.dtype, shape: tuple[int, ...], form: str, training: bool, assert_close: Close
) -> None:
    maps = [channels_last(memory, shape, dtype, form == "sliced").requires_grad_()]
    if form == "residual":
        maps.append(channels_last(memory, shape, dtype).requires_grad_())
    weight, bias, mean, var = (memory.input(torch.rand(shape[1]) + 0.5) for _ in range(4))
    vectors = [weight.requires_grad_(), bias.requires_grad_()]
    upstream = channels_last(memory, shape, dtype, form == "sliced").detach()

    def run(operation: Any, kind: torch.dtype | None) -> list[Tensor]:
        given = [t if kind is None else t.detach().to(kind).requires_grad_() for t in (*maps, *vectors)]
        residual = {"residual": given[1], "scale": 0.17} if len(maps) == 2 else {}
        running = [t.to(kind or t.dtype).clone() for t in (mean, var)]
        y = operation(given[0], *given[-2:], *running, training, eps=EPS, relu=form != "no relu", **residual)
        return [y.detach(), *torch.autograd.grad(y, given, upstream.to(y.dtype)), *running]

    ours = run(batch_norm_relu, None)
    # y, in training parts of the statistics and these; gradients, parts of their sums and these.
    memory.check(outputs=4 + 2 * training + (form == "residual"))
    plain, exact = run(batch_norm_relu_reference, torch.float32), run(batch_norm_relu_reference, torch.float64)
    sides = (ours[0] > 0) == (exact[0] > 0)
    rows = maps[0].numel() // shape[1]
    for number, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        if number == 0 or sides.all() or form == "no relu":
            # The interpreter truncates to half precision, and so do the gradients that are summed up.
            size = max(1.0, c.abs().max().item()) * (rows**0.5 if a.dim() == 1 else 1)
            assert_close(a, b.to(a.dtype), c, size)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("widths", [(5, 2), (0, 3), (4, 0)], ids=str)
def test_maps_of_different_pitch(memory: Memory, widths: tuple[int, int], training: bool) -> None:
    """x and the residual are slices of maps of different widths, y and the gradients are maps of their own."""
    shape = (3, 24, 5, 7)
    x, residual = (channels_last(memory, (3, 24 + w, 5, 7), torch.float32)[:, w:].requires_grad_() for w in widths)
    weight, bias, mean, var = (memory.input(torch.rand(24) + 0.5) for _ in range(4))
    leaves = (x, residual, weight.requires_grad_(), bias.requires_grad_())
    upstream = channels_last(memory, (3, 27, 5, 7), torch.float32)[:, 3:]
    results = []
    for operation in (batch_norm_relu, batch_norm_relu_reference):
        running = mean.clone(), var.clone()
        y = operation(x, weight, bias, *running, training, eps=EPS, residual=residual, scale=0.17)
        assert y.shape == shape
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("res", [True, False], ids=["residual", "plain"])
def test_infinite_running_statistics(res: bool) -> None:
    infinity = math.inf
    mean = torch.tensor([infinity, -infinity, 0.0, 0.0, infinity, math.nan])
    var = torch.tensor([1.0, 1.0, infinity, math.nan, infinity, 1.0])
    x, weight, bias = torch.randn(2, 3, 3, 6).permute(0, 3, 1, 2), torch.rand(6), torch.rand(6)
    residual = {"residual": torch.randn(2, 3, 3, 6).permute(0, 3, 1, 2), "scale": 0.5} if res else {}
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    upstream, found = torch.randn(x.shape), []
    for operation in (batch_norm_relu, batch_norm_relu_reference):
        y = operation(x, weight, bias, mean, var, False, **residual)
        found.append([y, *torch.autograd.grad(y, leaves, upstream)])
    torch.testing.assert_close(found[0], found[1], equal_nan=True)


def test_concatenation_writes_slices(memory: Memory) -> None:
    xs = [channels_last(memory, (3, channels, 5, 7), torch.float32).requires_grad_() for channels in (8, 33, 1)]
    weights, biases = ([memory.input(torch.rand(x.shape[1])).requires_grad_() for x in xs] for _ in range(2))
    y = batch_norm_relu_concat(xs, weights, biases, None, None, True, eps=EPS)
    upstream = channels_last(memory, (3, 42, 5, 7), torch.float32).detach()
    grads = torch.autograd.grad(y, [*xs, *weights, *biases], upstream)
    # y, parts of the statistics and these; a gradient each, parts of the sums and these.
    memory.check(outputs=3 + 3 + 2)
    single = zip(xs, weights, biases, strict=True)
    expected = torch.cat([batch_norm_relu_reference(*s, None, None, True, eps=EPS) for s in single], 1)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        grads, torch.autograd.grad(expected, [*xs, *weights, *biases], upstream), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("widths", [(16, 32, 8), (5, 1, 70), (1, 1, 2)], ids=str)
def test_slices_of_one_map(memory: Memory, widths: tuple[int, ...], training: bool) -> None:
    """What merged convolutions give: normalised into maps of their own, gradients side by side again."""
    whole = channels_last(memory, (3, sum(widths), 5, 3), torch.float32)
    xs = list(whole.split(widths, 1))
    weights, biases, means, variances = ([memory.input(torch.rand(w) + 0.5) for w in widths] for _ in range(4))
    running = [*means, *variances]
    ys, statistics = batch_norm.forward(xs, weights, biases, running, None, training, EPS, True, 1.0, False)
    grads = [channels_last(memory, tuple(x.shape), torch.float32) for x in xs]
    of_each = [list(vectors) for vectors in batch_norm_triton.of_each(xs, statistics, running, training)]
    (grad,), sums, _ = batch_norm.backward(
        grads, xs, ys, weights, biases, *of_each, training, EPS, True, False, 1.0, True
    )
    memory.check(outputs=3 + 2 * training + 3)
    given = [[t.detach().requires_grad_() for t in group] for group in (xs, weights, biases)]
    expected = [
        batch_norm_relu_reference(*vectors, training, eps=EPS)
        for vectors in zip(*given, [m.clone() for m in means], [v.clone() for v in variances], strict=True)
    ]
    torch.testing.assert_close(ys, expected)
    found = torch.autograd.grad(expected, [t for group in given for t in group], grads)
    torch.testing.assert_close(grad, torch.cat(found[:3], 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sums, torch.stack([torch.cat(found[6:]), torch.cat(found[3:6])]), rtol=1e-3, atol=1e-3)


def test_out_is_a_slice_of_a_buffer() -> None:
    x = (torch.randn(2, 16, 5, 3)).contiguous(memory_format=CHANNELS_LAST)
    buffer = torch.full((2, 5, 3, 41), 7.0).permute(0, 3, 1, 2)
    one, zero = torch.ones(16), torch.zeros(16)
    batch_norm_relu(x, one, zero, zero, one, False, out=buffer[:, 9:25])
    torch.testing.assert_close(buffer[:, 9:25], torch.relu(x / (1 + 1e-5) ** 0.5))
    assert (buffer[:, :9] == 7).all()
    assert (buffer[:, 25:] == 7).all()


def test_programs_that_take_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program joins the statistics of several tiles, and the last one's are not full."""
    monkeypatch.setattr(batch_norm_triton, "BATCH_NORM_PROGRAMS", 3)
    x = (5 + torch.randn(2, 3, 31, 17)).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    weight, bias = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True)
    results = []
    upstream = torch.randn(x.shape)
    for operation in (batch_norm_relu, batch_norm_relu_reference):
        mean, var = torch.zeros(3), torch.ones(3)
        y = operation(x, weight, bias, mean, var, True, relu=False)
        results.append([y, *torch.autograd.grad(y, (x, weight, bias), upstream), mean, var])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [1.0, 0.01])
def test_mean_far_from_zero(std: float) -> None:
    """The mean of squares less the square of the mean would have no digit left: its float32 unit at 1e6 is 0.06."""
    x = (1000 + std * torch.randn(4, 5, 31, 31)).contiguous(memory_format=CHANNELS_LAST)
    one, zero = torch.ones(5), torch.zeros(5)
    mean, var = zero.clone(), one.clone()
    y = batch_norm_relu(x, one, zero, mean, var, True, momentum=1.0, eps=1e-12, relu=False)
    exact = x.double()
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3)), rtol=2e-4, atol=0)
    scaled = (exact - exact.mean((0, 2, 3), keepdim=True)) * exact.var((0, 2, 3), False, keepdim=True).rsqrt()
    # The mean is off by a float32 unit of 1,000 or less, 6e-5.
    torch.testing.assert_close(y.double(), scaled, rtol=0, atol=6.2e-5 / std + 2e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_rounds_to_zero_has_no_gradient(dtype: torch.dtype) -> None:
    """The mask that is made from x is that of the y that was stored, underflow included."""
    x = torch.randn(2, 8, 9, 9).to(dtype).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    weight, bias = torch.full((8,), 1e-7), torch.zeros(8, requires_grad=True)
    y = batch_norm_relu(x, weight, bias, None, None, True)
    (found,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert torch.equal(found, (y > 0).sum((0, 2, 3)).float())
    assert dtype != torch.float16 or found.sum() < 0.45 * x.numel()


def test_offsets_past_32_bits() -> None:
    """A slice of a map of 2.2e9 elements, of which only what is touched takes memory: 32-bit offsets would leave it."""
    rows, pitch = 132, 2**24
    assert rows * pitch > 2**31
    holes = os.memfd_create("map")
    wide = torch.from_file(f"/proc/self/fd/{holes}", shared=True, size=rows * pitch, dtype=torch.float16)
    os.close(holes)
    x, out = (wide.view(rows, 1, 1, pitch).permute(0, 3, 1, 2)[:, c : c + 2] for c in (0, 8))
    x.copy_(torch.randn(x.shape))
    one, zero = torch.ones(2), torch.zeros(2)
    got = batch_norm_relu(x, one, zero, None, None, True, out=out)
    expected = batch_norm_relu_reference(x.float(), one, zero, None, None, True)
    torch.testing.assert_close(got.float(), expected, rtol=2e-3, atol=2e-3)
    given = [x.clone().requires_grad_(), x.requires_grad_()]
    grads = [torch.autograd.grad(batch_norm_relu(t, one, zero, None, None, True), t, out)[0] for t in given]
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_nan_and_infinity(training: bool) -> None:
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=CHANNELS_LAST)
    x[0, 1, 0, 0], x[1, 2, 1, 1], x[0, 3, 2, 2] = math.nan, math.inf, -math.inf
    one, zero = torch.ones(4), torch.zeros(4)
    got, expected = (
        f(x, one, zero, zero.clone(), one.clone(), training) for f in (batch_norm_relu, batch_norm_relu_reference)
    )
    torch.testing.assert_close(got, expected, equal_nan=True)
