import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import residual_add_relu
from kernels.residual import residual_add_relu_reference

Close = Callable[..., None]
SCALE = 0.17  # no float16 and no bfloat16 is this number
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    (),
    (1,),
    (1031,),
    (0,),
    (3, 1025),
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 8, 1, 1),
    (0, 4, 3, 3),
    (3, 64, 17, 17),
]
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def tensors(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", layout: torch.memory_format = CONTIGUOUS
) -> tuple[Tensor, Tensor, Tensor]:
    """x and branch, which take gradients, and a gradient from upstream."""
    if len(shape) != 4:
        layout = CONTIGUOUS
    values = torch.randn(3, *shape).to(device, dtype)
    x, branch, upstream = (value.clone(memory_format=layout) for value in values)
    return x.requires_grad_(), branch.requires_grad_(), upstream


def check(x: Tensor, branch: Tensor, upstream: Tensor, close: Close) -> None:
    y = residual_add_relu(x, branch, SCALE)
    grads = torch.autograd.grad(y, (x, branch), upstream)
    plain = residual_add_relu_reference(x, branch, SCALE)
    plain_grads = torch.autograd.grad(plain, (x, branch), upstream)

    close(y, plain, residual_add_relu_reference(x.double(), branch.double(), SCALE))
    # By the mask of y: a sum within rounding of 0 may fall on either side.
    masked = upstream.double() * (y > 0)
    for grad, plain_grad, exact in zip(grads, plain_grads, (masked, SCALE * masked), strict=True):
        close(grad, plain_grad, exact)
    for result in (y, *grads):
        assert result.dtype == x.dtype
        assert result.stride() == x.stride()


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format, assert_close: Close
) -> None:
    check(*tensors(shape, dtype, device, layout), assert_close)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    layout=st.sampled_from([CONTIGUOUS, CHANNELS_LAST]),
)
def test_any_shape(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, assert_close: Close
) -> None:
    check(*tensors(shape, dtype, "cpu", layout), assert_close)


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_without_relu(device: str, dtype: torch.dtype, layout: torch.memory_format, assert_close: Close) -> None:
    x, branch, upstream = tensors((3, 64, 17, 17), dtype, device, layout)
    y = residual_add_relu(x, branch, SCALE, relu=False)
    grad_x, grad_branch = torch.autograd.grad(y, (x, branch), upstream)
    exact = x.double() + SCALE * branch.double()
    assert_close(y, x + SCALE * branch, exact)
    assert (y < 0).any()
    assert torch.equal(grad_x, upstream)
    assert_close(grad_branch, SCALE * upstream, SCALE * upstream.double())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rounds_once(device: str, dtype: torch.dtype) -> None:
    """A scale or a product rounded to the storage dtype on the way would be off by more than half a unit."""
    x, branch, _ = tensors((20011,), dtype, device)
    y = residual_add_relu(x, branch, SCALE).double()
    exact = residual_add_relu_reference(x.double(), branch.double(), SCALE)
    half_unit = torch.finfo(dtype).eps / 2 * 2 ** exact.log2().floor()
    slack = 2e-7 * (x.abs() + branch.abs())  # float32 arithmetic
    assert ((y - exact).abs() <= torch.where(exact > 1e-3, half_unit, 1e-3) + slack).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_infinity_and_zero(device: str, dtype: torch.dtype) -> None:
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0]
    x = torch.tensor(values, dtype=dtype, device=device, requires_grad=True)
    branch = torch.zeros_like(x, requires_grad=True)
    y, expected = residual_add_relu(x, branch, 0.5), torch.relu(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    upstream = torch.full_like(x, 3.0)
    grad, grad_branch = torch.autograd.grad(y, (x, branch), upstream)
    (expected_grad,) = torch.autograd.grad(expected, x, upstream)
    assert torch.equal(grad, expected_grad)
    assert torch.equal(grad_branch, expected_grad / 2)


def test_gradient_in_another_layout(device: str) -> None:
    x, branch, upstream = tensors((2, 6, 5, 4), torch.float32, device, CHANNELS_LAST)
    y = residual_add_relu(x, branch, SCALE)
    expected = torch.autograd.grad(y, (x, branch), upstream, retain_graph=True)
    for other in (upstream.contiguous(), upstream.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        assert other.stride() != y.stride()
        got = torch.autograd.grad(y, (x, branch), other, retain_graph=True)
        assert all(torch.equal(a, b) and a.stride() == x.stride() for a, b in zip(got, expected, strict=True))
    expanded, _ = torch.autograd.grad(y.sum(), (x, branch))
    assert torch.equal(expanded, (y > 0).float())


def test_not_last_in_the_graph(device: str) -> None:
    x, branch, _ = tensors((2, 8, 3, 3), torch.float32, device, CHANNELS_LAST)

    def loss(op: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
        y = op(torch.sin(x), 2 * branch, SCALE)
        return (op(y, torch.cos(y), 0.5) * y).mean() * 3

    got, expected = (
        torch.autograd.grad(loss(op), (x, branch)) for op in (residual_add_relu, residual_add_relu_reference)
    )
    torch.testing.assert_close(got, expected)


def test_one_input_wants_a_gradient() -> None:
    x, branch, upstream = tensors((5, 7), torch.float32)
    y = residual_add_relu(x.detach(), branch, SCALE)
    (grad,) = torch.autograd.grad(y, branch, upstream)
    torch.testing.assert_close(grad, SCALE * upstream * (y > 0))


def test_gradcheck() -> None:
    x, branch, _ = tensors((2, 3, 4, 5), torch.float64, layout=CHANNELS_LAST)
    for relu in (True, False):
        assert torch.autograd.gradcheck(lambda x, b, relu=relu: residual_add_relu(x, b, SCALE, relu), (x, branch))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=["contiguous", "channels_last"])
def test_opcheck(layout: torch.memory_format) -> None:
    x, branch, upstream = tensors((2, 3, 5, 7), torch.float32, layout=layout)
    torch.library.opcheck(torch.ops.manylabel.residual_add_relu, (x, branch, SCALE, True))
    torch.library.opcheck(torch.ops.manylabel.residual_add_relu, (x, branch, SCALE, False))
    torch.library.opcheck(torch.ops.manylabel.residual_add_relu_backward, (upstream, x.detach(), SCALE))


class Block(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return residual_add_relu(x, self.conv(residual_add_relu(x, self.conv(x), scale)), scale)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str) -> None:
    block = Block(4).to(memory_format=CHANNELS_LAST)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    # A second shape and scale: both become symbols.
    for shape, scale in (((2, 4, 5, 3), SCALE), ((3, 4, 7, 7), 0.1)):
        x, _, upstream = tensors(shape, torch.float32, layout=CHANNELS_LAST)
        results = []
        for module in (block, compiled):
            y = module(x, scale)
            assert y.is_contiguous(memory_format=CHANNELS_LAST)
            results.append((y, *torch.autograd.grad(y, (x, *block.parameters()), upstream)))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_call_raises_the_same_error() -> None:
    with pytest.raises(ValueError, match="branch has shape"):
        torch.compile(residual_add_relu, backend="aot_eager")(torch.ones(3, 4), torch.ones(2, 4), SCALE)


X = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("x", "branch", "scale", "message"),
    [
        (X.int(), X, SCALE, r"x is torch\.int32; it takes float32, float16"),
        (X[:, ::2], X[:, ::2], SCALE, r"x has strides \(36, 18, 3, 1\); .* without gaps"),
        (X[:1].expand(2, 4, 3, 3), X, SCALE, r"x has strides \(0, 9, 3, 1\)"),
        (X, X[:1], SCALE, r"branch has shape \(1, 4, 3, 3\); it takes that of x, \(2, 4, 3, 3\)"),
        (X, X.double(), SCALE, r"branch is torch\.float64; .* torch\.float32"),
        (X, X.to("meta"), SCALE, "branch is on meta; .* cpu"),
        (
            X,
            X.to(memory_format=CHANNELS_LAST),
            SCALE,
            r"branch has strides \(36, 1, 12, 4\); .*\(36, 9, 3, 1\)",
        ),
        (X, X, math.nan, "scale is nan; it takes a finite"),
        (X, X, -math.inf, "scale is -inf"),
        (X, X, 1e39, r"scale is 1e\+39; it takes a finite number that float32 can hold"),
        (X, X, 10**400, "scale is 1000"),
        (X, X, -0.1, "scale is -0.1; it takes a number of 0 or more"),
        (X, X, torch.ones(()), "scale is a Tensor; it takes a Python number"),
    ],
)
def test_wrong_argument(x: Tensor, branch: Tensor, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_add_relu(x, branch, scale)


def test_layouts_that_are_one() -> None:
    """Strides of dimensions with one element, and dense orders other than the two usual ones."""
    x = torch.randn(8, 16, 1, 1)
    branch = x.as_strided(x.shape, (16, 1, 16, 16))
    torch.testing.assert_close(residual_add_relu(x, branch, 1), torch.relu(2 * x))
    x = torch.randn(3, 4, 5).permute(2, 0, 1)
    y = residual_add_relu(x, x, 1)
    torch.testing.assert_close(y, torch.relu(2 * x))
    assert y.stride() == x.stride()
