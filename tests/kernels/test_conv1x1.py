import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import conv1x1
from kernels.conv1x1 import _precision, conv1x1_residual_relu, conv1x1_residual_relu_reference

Close = Callable[..., None]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
SCALE = 0.17  # no float16 and no bfloat16 is this number
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# N, C, K, H, W
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 1, 5, 3, 4),
    (2, 7, 1, 4, 3),
    (1, 64, 32, 1, 1),
    (2, 131, 67, 5, 7),
    (3, 256, 96, 9, 9),
    (2, 40, 24, 61, 33),
    (0, 4, 3, 3, 3),
    (2, 4, 3, 0, 3),
    (2, 0, 3, 2, 2),
    (2, 3, 0, 2, 2),
]


def channels_last(n: int, c: int, h: int, w: int, dtype: torch.dtype, wider: int = 0, device: str = "cpu") -> Tensor:
    """[n, c, h, w], as a slice of a map with `wider` more channels before it and behind it."""
    values = torch.randn(n, h, w, c + 2 * wider).to(device, dtype)  # a slice would lose its gaps on the way
    return values.permute(0, 3, 1, 2)[:, wider : wider + c]


def tensors(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str = "cpu",
    wider: int = 0,
    parameters: torch.dtype | None = None,
) -> tuple[Inputs, Tensor]:
    """x, branch, weight and bias, which take gradients, and a gradient from upstream."""
    n, c, k, h, w = shape
    x, branch, upstream = (channels_last(n, channels, h, w, dtype, wider, device) for channels in (c, k, c))
    weight, bias = (torch.randn(size).to(device, parameters or dtype) for size in ((c, k, 1, 1), (c,)))
    for tensor in (x, branch, weight, bias):
        tensor.requires_grad_()
    return (x, branch, weight, bias), upstream


def exact(inputs: Inputs, upstream: Tensor, y: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The result before the ReLU and the four gradients by the formulas, in another dtype.

    The mask is that of the y given: a sum within rounding of 0 may fall on either side.
    """
    x, branch, weight, bias = (
        t.detach().to(x_dtype).to(dtype) for t, x_dtype in zip(inputs, dtypes(inputs), strict=True)
    )
    rows, weight = branch.movedim(1, -1).flatten(0, -2), weight.flatten(1)
    g = upstream.to(dtype) if y is None else upstream.to(dtype) * (y > 0)
    g_rows = g.movedim(1, -1).flatten(0, -2)
    product = (rows @ weight.t() + bias).view(*x.movedim(1, -1).shape).movedim(-1, 1)
    grad_branch = (SCALE * g_rows @ weight).view(*branch.movedim(1, -1).shape).movedim(-1, 1)
    grad_weight = (SCALE * g_rows.t() @ rows).view(inputs[2].shape)
    return x + SCALE * product, g, grad_branch, grad_weight, SCALE * g_rows.sum(0)


def dtypes(inputs: Inputs) -> list[torch.dtype]:
    """What each input is computed from: a float32 weight beside half inputs is rounded first."""
    return [inputs[0].dtype] * 3 + [inputs[3].dtype]


def check(inputs: Inputs, upstream: Tensor, close: Close, relu: bool = True) -> None:
    y = conv1x1_residual_relu(*inputs, SCALE, relu)
    assert y.dtype == inputs[0].dtype
    assert y.permute(0, 2, 3, 1).is_contiguous()
    grads = torch.autograd.grad(y, inputs, upstream)
    mask = y.detach() if relu else None
    due, plain = (exact(inputs, upstream, mask, dtype) for dtype in (torch.float64, y.dtype))
    largest = due[0].abs().max().item() if y.numel() else None
    close(y.detach(), plain[0].relu() if relu else plain[0], due[0].relu() if relu else due[0], largest)
    for tensor, grad, plain_grad, due_grad in zip(inputs, grads, plain[1:], due[1:], strict=True):
        assert grad.dtype == tensor.dtype
        close(grad, plain_grad, due_grad)


@pytest.mark.parametrize("wider", [0, 3], ids=["whole", "slices"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], wider: int, assert_close: Close
) -> None:
    """Slices have rows that start at no multiple of 16 bytes."""
    check(*tensors(shape, dtype, device, wider), assert_close)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(0, top) for top in (3, 40, 40, 4, 4))),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    wider=st.integers(0, 3),
    relu=st.booleans(),
)
def test_any_shape(shape: tuple[int, ...], dtype: torch.dtype, wider: int, relu: bool, assert_close: Close) -> None:
    check(*tensors(shape, dtype, "cpu", wider), assert_close, relu)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_without_relu(device: str, dtype: torch.dtype, assert_close: Close) -> None:
    inputs, upstream = tensors((2, 67, 35, 5, 7), dtype, device)
    check(inputs, upstream, assert_close, relu=False)
    assert (conv1x1_residual_relu(*inputs, SCALE, relu=False) < 0).any()


def test_without_bias(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # in the reference's convolution
    (x, branch, weight, _), upstream = tensors((2, 33, 9, 3, 5), torch.float32, device)
    results = []
    for op in (conv1x1_residual_relu, conv1x1_residual_relu_reference):
        y = op(x, branch, weight.flatten(1), None, SCALE)
        results.append((y, *torch.autograd.grad(y, (x, branch, weight), upstream)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_float32_parameters_beside_half(device: str, dtype: torch.dtype, assert_close: Close) -> None:
    """As autocast leaves them; their gradients come back in float32."""
    check(*tensors((2, 67, 35, 5, 7), dtype, device, parameters=torch.float32), assert_close)


def test_autocast_changes_nothing() -> None:
    """Inside, its dtypes would round the products of float32 maps."""
    inputs, upstream = tensors((2, 16, 8, 3, 3), torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv1x1_residual_relu(*inputs, SCALE)
            results.append((y, *torch.autograd.grad(y, inputs, upstream)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_tf32_where_torch_allows_it() -> None:
    """By the older setting and by the newer one, after which torch refuses to read the older."""
    matmul = torch.backends.cuda.matmul
    try:
        for name, value in (("allow_tf32", True), ("allow_tf32", False), ("fp32_precision", "tf32")):
            setattr(matmul, name, value)
            assert _precision() == ("tf32" if value else "ieee")
    finally:
        matmul.allow_tf32 = False


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_rounds_once(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product, a bias or a scaled weight rounded on the way would be off by more than half a unit.

    A CPU that multiplies in bfloat16 rounds the product.
    """
    monkeypatch.setattr(conv1x1, "cpu_has_bfloat16", lambda: False)
    inputs, upstream = tensors((2, 96, 40, 9, 9), dtype, device)
    y = conv1x1_residual_relu(*inputs, SCALE, relu=False)
    results = (y, *torch.autograd.grad(y, inputs, upstream))
    for got, due in zip(results, exact(inputs, upstream, None, torch.float64), strict=True):
        half_unit = torch.finfo(dtype).eps / 2 * 2 ** due.abs().log2().floor()
        slack = 2e-6 * due.abs().max()  # float32 sums
        assert ((got.double() - due).abs() <= half_unit + slack).all()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_whatever_the_cpu_multiplies_in(
    native: bool, relu: bool, assert_close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv1x1, "cpu_has_bfloat16", lambda: native)
    check(*tensors((2, 67, 35, 5, 7), torch.bfloat16, wider=3), assert_close, relu)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_beside_a_slice_is_read(device: str, dtype: torch.dtype) -> None:
    """Not even times 0: it may be NaN."""
    inputs, upstream = tensors((2, 133, 67, 5, 7), dtype, device)
    results = []
    for sliced in (False, True):
        given = list(inputs)
        for i in (0, 1) if sliced else ():
            wide = torch.nn.functional.pad(given[i].detach(), (0, 0, 0, 0, 5, 4), value=math.nan)
            wide = wide.contiguous(memory_format=torch.channels_last)
            given[i] = wide[:, 5:-4].requires_grad_()
        y = conv1x1_residual_relu(*given, SCALE)
        results.append((y, *torch.autograd.grad(y, given, upstream)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_nan_and_infinity(device: str, dtype: torch.dtype, scale: float) -> None:
    """In every input; a scale of 0 hides none of them, and what is 0 before the ReLU has gradient 0."""
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0], dtype=dtype, device=device)
    ones = torch.ones(6, 4, dtype=dtype, device=device)
    x = values.view(1, 1, 1, 6).expand(1, 4, 1, 6).contiguous(memory_format=torch.channels_last)
    zeros = torch.zeros_like(x)
    spoilt = ones.clone()
    spoilt[2, 1], spoilt[3, 0] = math.nan, math.inf
    for tail, branch, weight, bias in (
        (x, zeros, ones[:4], ones[0] * 0),
        (zeros, x, ones[:4], ones[0]),
        (zeros, zeros, spoilt[:4], ones[0]),
        (zeros, zeros, ones[:4], values[:4].clone()),
    ):
        leaves = [t.clone().requires_grad_() for t in (tail, branch, weight, bias)]
        got, expected = (op(*leaves, scale) for op in (conv1x1_residual_relu, conv1x1_residual_relu_reference))
        torch.testing.assert_close(got, expected, equal_nan=True)
        pairs = zip(*(torch.autograd.grad(y, leaves, torch.ones_like(y)) for y in (got, expected)), strict=True)
        for grad, expected_grad in pairs:
            torch.testing.assert_close(grad, expected_grad, equal_nan=True)


def test_gradient_in_another_layout(device: str) -> None:
    inputs, upstream = tensors((2, 6, 3, 5, 4), torch.float32, device)
    wide = torch.randn(2, 5, 4, 11, device=device).permute(0, 3, 1, 2)
    wide[:, 2:8] = upstream
    for relu in (True, False):
        y = conv1x1_residual_relu(*inputs, SCALE, relu)
        expected = torch.autograd.grad(y, inputs, upstream, retain_graph=True)
        for other in (upstream.contiguous(), upstream.mT.contiguous().mT, wide[:, 2:8]):
            assert other.stride() != y.stride()
            torch.testing.assert_close(torch.autograd.grad(y, inputs, other, retain_graph=True), expected)
        summed = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
        torch.testing.assert_close(summed, torch.autograd.grad(y, inputs, torch.ones_like(y)))


class Products(TorchDispatchMode):
    """Counts the products of a backward pass."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.manylabel.scaled_product.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("wanted", "relu", "saved", "products"),
    [
        ("xbwc", True, 3, 2),
        ("x", True, 1, 0),
        ("x", False, 0, 0),
        ("b", True, 2, 1),
        ("w", False, 1, 1),
        ("c", True, 1, 0),
    ],
)
def test_only_what_is_wanted(wanted: str, relu: bool, saved: int, products: int) -> None:
    """Keeps and computes no more than the gradients of x, branch, weight or bias (c) need, and gets these right."""
    all_inputs, upstream = tensors((2, 5, 3, 2, 2), torch.float32)
    inputs = [t if name in wanted else t.detach() for name, t in zip("xbwc", all_inputs, strict=True)]
    leaves = [t for t in inputs if t.requires_grad]
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = conv1x1_residual_relu(*inputs, SCALE, relu)
    with Products() as mode:
        got = torch.autograd.grad(y, leaves, upstream)
    assert (len(kept), mode.count) == (saved, products)
    plain = conv1x1_residual_relu_reference(*inputs, SCALE, relu)
    torch.testing.assert_close(got, torch.autograd.grad(plain, leaves, upstream))


def test_gradcheck() -> None:
    inputs, _ = tensors((2, 3, 4, 2, 3), torch.float64)
    for relu in (True, False):
        assert torch.autograd.gradcheck(lambda *t, relu=relu: conv1x1_residual_relu(*t, SCALE, relu), inputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    (x, branch, weight, bias), upstream = tensors((2, 5, 3, 4, 3), torch.float32)
    weight = weight.detach().flatten(1).requires_grad_()
    ops = torch.ops.manylabel
    for relu, constant in ((True, bias), (False, None)):
        torch.library.opcheck(ops.conv1x1_residual_relu, (x, branch, weight, constant, SCALE, relu))
    half = torch.randn(4, 3).bfloat16()
    torch.library.opcheck(ops.scaled_product, (half.t(), half, SCALE))
    for with_sums in (True, False):
        torch.library.opcheck(ops.relu_backward_and_sums, (upstream, x.detach(), with_sums))
    torch.library.opcheck(ops.conv1x1_input_gradient, (upstream, branch.detach(), torch.randn(3, 5), x.detach()))


@pytest.mark.parametrize("wider", [0, 3], ids=["whole", "slices"])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_input_gradient(device: str, dtype: torch.dtype, wider: int, assert_close: Close) -> None:
    """What the ReLU made 0 has no gradient; its output, the mask, may lie in a wider map than the gradient does."""
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is for the CPU")
    grad, branch = (channels_last(2, c, 5, 7, dtype, 0, device) for c in (37, 18))
    x = channels_last(2, 37, 5, 7, dtype, wider, device)
    x.relu_()
    assert (x == 0).any()
    weight = torch.randn(18, 37).to(device, dtype)
    y, sums = conv1x1.input_gradient(grad, branch, weight, x)

    def formula(kind: torch.dtype) -> Tensor:
        product = branch.to(kind).movedim(1, -1) @ weight.to(kind)
        return (grad.to(kind) + product.movedim(-1, 1)) * (x > 0)

    due = formula(torch.float64)
    assert_close(y, formula(dtype), due)
    assert_close(sums, formula(dtype).sum((0, 2, 3), dtype=sums.dtype), due.sum((0, 2, 3)), 70**0.5 * 18**0.5)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        y = conv1x1_residual_relu(x, x[:, 1:], self.conv.weight, self.conv.bias, scale)
        return conv1x1_residual_relu(y, y[:, :3], self.conv.weight, self.conv.bias, scale, relu=False)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str) -> None:
    block = Block().to(memory_format=torch.channels_last)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    # A second shape and scale: both become symbols.
    for size, scale in (((2, 4, 5, 3), SCALE), ((3, 4, 7, 7), 0.1)):
        x, upstream = (channels_last(*size, torch.float32).requires_grad_() for _ in range(2))
        results = []
        for module in (block, compiled):
            y = module(x, scale)
            assert y.is_contiguous(memory_format=torch.channels_last)
            results.append((y, *torch.autograd.grad(y, (x, *block.parameters()), upstream.detach())))
        torch.testing.assert_close(results[1], results[0])


X, B = (channels_last(2, c, 3, 3, torch.float32) for c in (4, 6))
W, BIAS = torch.zeros(4, 6, 1, 1), torch.zeros(4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X.int()}, r"x is torch\.int32; it takes float32, float16"),
        ({"x": X[0]}, r"x has shape \(4, 3, 3\); it takes four dimensions"),
        ({"x": X.contiguous()}, r"x has strides \(36, 9, 3, 1\); it takes channels-last"),
        ({"branch": B.contiguous()}, r"branch has strides \(54, 9, 3, 1\); it takes channels-last"),
        ({"branch": B[:1]}, r"branch has shape \(1, 6, 3, 3\); for x of \(2, 4, 3, 3\) it takes \(2, 6, 3, 3\)"),
        ({"branch": B.double()}, r"branch is torch\.float64; it takes the dtype of x, torch\.float32"),
        ({"branch": B.to("meta")}, "branch is on meta; it takes the device of x, cpu"),
        ({"weight": W[:, :5]}, r"weight has shape \(4, 5, 1, 1\); .* it takes \(4, 6, 1, 1\) or \(4, 6\)"),
        ({"weight": W.half()}, r"weight is torch\.float16; it takes the dtype of x, torch\.float32"),
        ({"weight": torch.zeros(6, 4).t()}, r"weight has strides \(1, 4\); it takes contiguous"),
        ({"bias": BIAS[:3]}, r"bias has shape \(3,\); for x of \(2, 4, 3, 3\) it takes \(4,\)"),
        ({"bias": BIAS.double()}, r"bias is torch\.float64; it takes the dtype of x, torch\.float32"),
        ({"bias": torch.zeros(8)[::2]}, r"bias has strides \(2,\); it takes contiguous"),
        ({"scale": -0.1}, "scale is -0.1; it takes a number of 0 or more"),
        ({"scale": math.nan}, "scale is nan; it takes a finite"),
        ({"scale": torch.ones(())}, "scale is a Tensor; it takes a Python number"),
    ],
)
def test_wrong_argument(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv1x1_residual_relu(**{"x": X, "branch": B, "weight": W, "bias": BIAS, "scale": SCALE} | changed)
