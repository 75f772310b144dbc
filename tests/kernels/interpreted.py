"""The Triton kernels in Triton's interpreter, on CPU tensors.

Triton decides for the interpreter when a kernel is defined, so these tests need a process that starts with
TRITON_INTERPRET=1: test_interpreter.py starts it, and the name of this file keeps it out of every other run.
The interpreter truncates where a GPU rounds a float32 to bfloat16; the tolerance leaves room for that.
"""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels import residual, residual_add_relu, sigmoid_bce
from kernels.residual import residual_add_relu_reference

Close = Callable[..., None]
GUARD = 64
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last

assert residual._INTERPRETED, "start the process with TRITON_INTERPRET=1"


class Memory:
    """Hands out tensors that lie between stretches of NaN, and looks after them."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def empty(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        blank = math.nan if dtype.is_floating_point else 255
        buffer = torch.full((shape.numel() + 2 * GUARD,), blank, dtype=dtype)
        return buffer.as_strided(shape, strides, GUARD), buffer

    def output(self, shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor, buffer = self.empty(shape, strides, dtype)
        self.outputs.append((tensor, buffer))
        return tensor

    def input(self, values: Tensor) -> Tensor:
        """A copy of the values, with their layout. What a kernel reads beside it spoils the result."""
        tensor, buffer = self.empty(values.shape, values.stride(), values.dtype)
        tensor.copy_(values)
        self.inputs.append((buffer, buffer.clone()))
        return tensor

    def check(self, outputs: int) -> None:
        assert len(self.outputs) == outputs
        for tensor, buffer in self.outputs:
            assert not tensor.isnan().any(), "an element was not written"
            assert torch.cat([buffer[:GUARD], buffer[-GUARD:]]).isnan().all(), "written beside the output"
        for buffer, before in self.inputs:
            torch.testing.assert_close(buffer, before, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Whatever the operations allocate while the fixture lives comes from it."""
    memory = Memory()

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        strides = torch.zeros(()).expand(shape).contiguous().stride()
        return memory.output(torch.Size(shape), strides, dtype)

    def empty_like(like: Tensor) -> Tensor:
        return memory.output(like.shape, like.stride(), like.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield memory


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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets_dtype", [None, torch.bool, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (13, 7), (7, 601)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bce(
    memory: Memory,
    dtype: torch.dtype,
    shape: tuple[int, int],
    targets_dtype: torch.dtype | None,
    reduction: str,
    assert_close: Close,
) -> None:
    """Unweighted with bool targets, weighted with soft ones."""
    soft = targets_dtype is not torch.bool
    targets = torch.rand(shape).to(targets_dtype) if soft else torch.rand(shape) < 0.3
    logits, targets = memory.input((3 * torch.randn(shape)).to(dtype)).requires_grad_(), memory.input(targets)
    weight = memory.input(4 * torch.rand(shape[1])) if soft else None
    loss = sigmoid_bce(logits, targets, weight, reduction)
    upstream = torch.randn(loss.shape)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    memory.check(outputs=3)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.detach().to(dtype).requires_grad_()
        w = None if weight is None else weight.to(dtype)
        value = binary_cross_entropy_with_logits(x, targets.to(dtype), reduction=reduction, pos_weight=w)
        return value.detach(), torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact, exact_grad = plain(torch.float64)
    assert_close(loss, plain(torch.float32)[0], exact)
    largest = upstream.abs().max().item() / (logits.numel() if reduction == "mean" else 1)
    assert_close(grad, plain(dtype)[1], exact_grad, largest)


def test_bce_makes_no_gradient_that_nobody_wants(memory: Memory) -> None:
    logits, targets = memory.input(torch.randn(3, 5)), memory.input(torch.rand(3, 5) < 0.5)
    loss = sigmoid_bce(logits, targets)
    memory.check(outputs=1)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(logits, targets.float()))


def test_bce_far_from_zero() -> None:
    values = torch.tensor([-80.0, -40, -20, -1e-3, 0, 1e-3, 20, 40, 80])
    logits = torch.stack([values, values], dim=1).requires_grad_()
    targets = torch.tensor([0.0, 1.0]).repeat(len(values), 1)
    loss = sigmoid_bce(logits, targets, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    side = torch.stack([values, -values], dim=1).double()
    torch.testing.assert_close(loss.double(), side.exp().log1p(), rtol=5e-7, atol=0)
    expected = torch.sigmoid(side) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(grad.double(), expected, rtol=5e-7, atol=0)


def test_bce_nan_and_infinity() -> None:
    logits = torch.tensor([[math.nan, math.inf, -math.inf]], requires_grad=True)
    loss = sigmoid_bce(logits, torch.tensor([[True, False, True]]), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == [[True, False, False]]
    assert loss[0, 1:].tolist() == [math.inf, math.inf]
    assert grad.isnan().tolist() == [[True, False, False]]
    assert grad[0, 1:].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("size", [0, 3])
def test_empty_and_float64_take_plain_torch(size: int) -> None:
    logits = torch.randn(size, 4, dtype=torch.float64 if size else torch.float32, requires_grad=True)
    assert sigmoid_bce(logits, torch.ones(size, 4), reduction="sum").dtype == logits.dtype
    assert residual_add_relu(logits, logits, 1.0).shape == (size, 4)
