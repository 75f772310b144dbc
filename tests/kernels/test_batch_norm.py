import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import batch_norm_relu, batch_norm_relu_concat
from kernels.batch_norm import batch_norm_relu_reference
from kernels.batch_norm_triton import of_each

Close = Callable[..., None]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# The last one is cut into several parts on the CPU.
SHAPES = [(2, 1, 1, 1), (1, 3, 2, 1), (3, 24, 5, 7), (2, 70, 9, 3), (4, 32, 17, 17), (4, 40, 41, 30)]
CHANNELS_LAST = torch.channels_last
EPS = 1e-3


class Case:
    """A map, its vectors, and what comes from upstream; forward and backward of ours and of plain torch."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", sliced: bool = False, res: bool = False
    ) -> None:
        channels = shape[1]
        vectors = torch.promote_types(dtype, torch.float32)
        self.x = self.map(shape, dtype, device, sliced)
        self.residual = self.map(shape, dtype, device, sliced) if res else None
        self.upstream = torch.randn(shape).to(device, dtype)
        self.weight = (torch.rand(channels, dtype=vectors, device=device) + 0.5).requires_grad_()
        self.bias = torch.randn(channels, dtype=vectors, device=device).requires_grad_()
        self.running = torch.randn(channels).to(device, vectors), (torch.rand(channels) + 0.5).to(device, vectors)

    @staticmethod
    def map(shape: tuple[int, ...], dtype: torch.dtype, device: str, sliced: bool) -> Tensor:
        """Channels-last; sliced: some of the channels of a wider one, from an odd place on."""
        n, c, h, w = shape
        values = (torch.randn(n, c + 5, h, w) * 2 + 3).to(device, dtype).contiguous(memory_format=CHANNELS_LAST)
        return (values[:, 3 : 3 + c] if sliced else values[:, :c].clone(memory_format=CHANNELS_LAST)).requires_grad_()

    def run(
        self,
        operation: Any,
        training: bool,
        dtype: torch.dtype | None = None,
        upstream: Tensor | None = None,
        **options: Any,
    ) -> list[Tensor]:
        """y, the gradients and the running statistics, all in `dtype` where one is given."""
        inputs = [self.x, self.weight, self.bias, *([] if self.residual is None else [self.residual])]
        given = [t.detach().to(dtype).requires_grad_() for t in inputs] if dtype else inputs
        mean, var = (t.to(dtype or t.dtype).clone() for t in self.running)
        residual = {} if self.residual is None else {"residual": given[3], "scale": 0.17}
        y = operation(given[0], given[1], given[2], mean, var, training, eps=EPS, **residual, **options)
        grads = torch.autograd.grad(y, given, (self.upstream if upstream is None else upstream).to(y.dtype))
        return [y.detach(), *grads, mean, var]

    def check(self, close: Close, training: bool, relu: bool = True) -> None:
        ours = self.run(batch_norm_relu, training, relu=relu)
        # By the mask of our y: what is within rounding of 0 may fall on either side of the ReLU.
        masked = self.upstream * (ours[0] > 0) if relu else self.upstream
        plain, exact = (
            self.run(batch_norm_relu_reference, training, dtype, masked, relu=False) for dtype in (None, torch.float64)
        )
        for results in (plain, exact) if relu else ():
            results[0] = torch.relu(results[0])
        rows = self.x.numel() // self.x.shape[1]
        for a, b, c in zip(ours, plain, exact, strict=True):
            assert a.dtype == (self.x.dtype if a.dim() == 4 else self.weight.dtype)
            # x reaches 8; what is summed up over the rows cancels.
            close(a, b, c, max(8.0, c.abs().max().item()) * (rows**0.5 if a.dim() == 1 else 1))
        assert ours[0].is_contiguous(memory_format=CHANNELS_LAST)
        assert ours[1].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("form", ["plain", "sliced", "residual", "no relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], form: str, training: bool, assert_close: Close
) -> None:
    case = Case(shape, dtype, device, sliced=form == "sliced", res=form == "residual")
    case.check(assert_close, training, relu=form != "no relu")


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4).filter(lambda s: s[0] * s[2] * s[3] > 4),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    training=st.booleans(),
    sliced=st.booleans(),
    residual=st.booleans(),
)
def test_any_shape(
    shape: tuple[int, ...], dtype: torch.dtype, training: bool, sliced: bool, residual: bool, assert_close: Close
) -> None:
    Case(shape, dtype, "cpu", sliced, residual).check(assert_close, training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_whatever_the_threads(dtype: torch.dtype) -> None:
    """On the CPU; of rows that are folded and rows that are not."""
    threads = torch.get_num_threads()
    try:
        for shape in ((4, 40, 41, 31), (4, 24, 64, 40)):
            case, results = Case(shape, dtype), []
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                results.append(case.run(batch_norm_relu, True))
            for other in results[1:]:
                for a, b in zip(results[0], other, strict=True):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_module_s_results_over_several_steps(device: str, dtype: torch.dtype) -> None:
    """Same outputs and running statistics as torch.nn.BatchNorm2d, in training and after it."""
    module = torch.nn.BatchNorm2d(24, eps=EPS, momentum=0.3).to(device)
    mean, var = torch.zeros(24, device=device), torch.ones(24, device=device)
    for step in range(4):
        if step == 3:
            module.eval()
        x = Case.map((3, 24, 5, 7), dtype, device, False).detach() * (step + 1)
        expected = torch.relu(module(x))
        got = batch_norm_relu(x, module.weight, module.bias, mean, var, module.training, 0.3, EPS)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close((mean, var), (module.running_mean, module.running_var))


def test_a_mean_far_from_zero(device: str) -> None:
    """1,000 standard deviations away: the mean of squares less the square of the mean would have no digit left."""
    x = (1000 + torch.randn(4, 33, 31, 31)).to(device).contiguous(memory_format=CHANNELS_LAST)
    one, zero = torch.ones(33, device=device), torch.zeros(33, device=device)
    mean, var = zero.clone(), one.clone()
    y = batch_norm_relu(x, one, zero, mean, var, True, momentum=1.0, relu=False)
    exact = x.double()
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3)), rtol=2e-5, atol=0)
    scaled = (exact - exact.mean((0, 2, 3), keepdim=True)) * exact.var((0, 2, 3), False, keepdim=True).rsqrt()
    # A float32 unit of 1,000 is 6e-5; torch's own kernel on the CPU takes the mean from the bias first.
    torch.testing.assert_close(y.double(), scaled, rtol=0, atol=5e-4 if device == "cuda" else 5e-3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_residual_form_rounds_once(device: str, dtype: torch.dtype, relu: bool, training: bool) -> None:
    """A normalised map or a scaled gradient rounded before it is joined would be off by more than half a unit."""
    case = Case((3, 24, 15, 7), dtype, device, res=True)
    got = case.run(batch_norm_relu, training, relu=relu)
    upstream = case.upstream * (got[0] > 0) if relu else case.upstream
    due = case.run(batch_norm_relu_reference, training, torch.float64, upstream, relu=False)
    due[0] = torch.relu(due[0]) if relu else due[0]
    for number in (0, 1, 4):  # y and the gradients of both maps
        half_unit = torch.finfo(dtype).eps / 2 * 2 ** due[number].abs().log2().floor()
        slack = 4e-6 * due[number].abs().max()  # float32 arithmetic
        assert ((got[number].double() - due[number]).abs() <= half_unit + slack).all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_concatenation(device: str, dtype: torch.dtype, training: bool) -> None:
    """Every gradient and statistic as of single maps that are put side by side."""
    cases = [Case((3, channels, 5, 7), dtype, device) for channels in (8, 33, 1)]
    results = []
    for concat in (True, False):
        means, variances = ([case.running[i].clone() for case in cases] for i in range(2))
        vectors = [[case.weight for case in cases], [case.bias for case in cases], means, variances]
        xs = [case.x for case in cases]
        if concat:
            y = batch_norm_relu_concat(xs, *vectors, training, 0.1, EPS)
            assert y.is_contiguous(memory_format=CHANNELS_LAST)
        else:
            y = torch.cat(
                [batch_norm_relu(*all_of, training, 0.1, EPS) for all_of in zip(xs, *vectors, strict=True)], 1
            )
        upstream = torch.cat([case.upstream for case in cases], 1)
        results.append([y, *torch.autograd.grad(y, [*xs, *vectors[0], *vectors[1]], upstream), *means, *variances])
    # Torch sums up slices in another order than whole maps.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(results[0], results[1], rtol=4 * unit + 1e-5, atol=8 * unit + 1e-5)


def test_out_is_a_slice_of_a_buffer(device: str) -> None:
    case = Case((2, 16, 5, 3), torch.bfloat16, device)
    buffer = torch.full((2, 5, 3, 40), 7.0, dtype=torch.bfloat16, device=device).permute(0, 3, 1, 2)
    with torch.no_grad():
        y = batch_norm_relu(case.x, case.weight, case.bias, *case.running, False, out=buffer[:, 8:24])
        expected = batch_norm_relu(case.x, case.weight, case.bias, *case.running, False)
    assert torch.equal(y, expected)
    assert torch.equal(buffer[:, 8:24], expected)
    assert (buffer[:, :8] == 7).all()
    assert (buffer[:, 24:] == 7).all()


def test_gradient_in_another_layout(device: str) -> None:
    case = Case((2, 6, 5, 4), torch.float32, device)
    y = batch_norm_relu(case.x, case.weight, case.bias, None, None, True)
    expected = torch.autograd.grad(y, (case.x, case.weight), case.upstream, retain_graph=True)
    got = torch.autograd.grad(y, (case.x, case.weight), case.upstream.contiguous(), retain_graph=True)
    torch.testing.assert_close(got, expected)
    (expanded,) = torch.autograd.grad(y.sum(), case.bias)
    torch.testing.assert_close(expanded, (y > 0).sum((0, 2, 3)).float())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_the_stride_of_a_batch_of_one(dtype: torch.dtype) -> None:
    """It is arbitrary, and with some torch's own backward pass mistakes the layout of the gradient beside it."""
    case = Case((1, 8, 2, 2), dtype)
    case.x = case.x.detach().as_strided((1, 8, 2, 2), (1, 1, 16, 8)).requires_grad_()
    *_, grad_bias, _, _ = case.run(batch_norm_relu, True, relu=False)
    torch.testing.assert_close(grad_bias, case.upstream.to(grad_bias.dtype).sum((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_nan_and_infinity(device: str, training: bool) -> None:
    x = torch.randn(2, 4, 3, 3).to(device).contiguous(memory_format=CHANNELS_LAST)
    x[0, 1, 0, 0], x[1, 2, 1, 1], x[0, 3, 2, 2] = math.nan, math.inf, -math.inf
    one, zero = torch.ones(4, device=device), torch.zeros(4, device=device)
    got, expected = (
        f(x, one, zero, zero.clone(), one.clone(), training) for f in (batch_norm_relu, batch_norm_relu_reference)
    )
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("res", [True, False], ids=["residual", "plain"])
def test_infinite_running_statistics(device: str, res: bool) -> None:
    """As plain torch has it: of means and variances that a batch with an overflow has left behind."""
    found = []
    case = Case((2, 6, 3, 3), torch.float32, device, res=res)
    infinity = math.inf
    case.running = (
        torch.tensor([infinity, -infinity, 0.0, 0.0, infinity, math.nan], device=device),
        torch.tensor([1.0, 1.0, infinity, math.nan, infinity, 1.0], device=device),
    )
    for operation in (batch_norm_relu, batch_norm_relu_reference):
        found.append(case.run(operation, False))
    torch.testing.assert_close(found[0], found[1], equal_nan=True)


@pytest.mark.parametrize("res", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty(device: str, shape: tuple[int, ...], res: bool) -> None:
    """Nothing comes out, the statistics stay, the gradients of the vectors are 0."""
    x = torch.empty(shape, device=device).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    weight, bias = torch.ones(4, device=device, requires_grad=True), torch.zeros(4, device=device, requires_grad=True)
    mean, var = torch.full((4,), 2.0, device=device), torch.full((4,), 3.0, device=device)
    residual = x.detach().clone().requires_grad_() if res else None
    y = batch_norm_relu(x, weight, bias, mean, var, True, residual=residual)
    assert y.shape == shape
    assert (mean == 2).all()
    assert (var == 3).all()
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert [tuple(grad.shape) for grad in grads] == [shape, (4,), (4,)]
    assert not grads[1].any()
    if residual is not None:
        (grad,) = torch.autograd.grad(
            batch_norm_relu(x, weight, bias, None, None, True, residual=residual).sum(), residual
        )
        assert grad.shape == shape


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("res", [True, False], ids=["residual", "plain"])
def test_gradcheck(training: bool, res: bool) -> None:
    case = Case((2, 3, 3, 2), torch.float64, res=res)
    inputs = (case.x, case.weight, case.bias, *([case.residual] if case.residual is not None else []))

    def operation(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        scale = 1.0 if residual is None else 0.3
        mean, var = (t.clone() for t in case.running)
        return batch_norm_relu(x, weight, bias, mean, var, training, residual=residual, scale=scale)

    assert torch.autograd.gradcheck(operation, inputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_opcheck(training: bool, joined: bool) -> None:
    a, b = Case((2, 6, 3, 5), torch.float32, res=True), Case((2, 4, 3, 5), torch.float32)
    ops = torch.ops.manylabel
    xs, weights, biases = ([t.detach() for t in pair] for pair in ((a.x, b.x), (a.weight, b.weight), (a.bias, b.bias)))
    running = [a.running[0], b.running[0], a.running[1], b.running[1]]
    several = (xs, weights, biases, running, None, training, EPS, True, 1.0, joined)
    torch.library.opcheck(ops.batch_norm_relu, several)
    residual = a.map((2, 6, 3, 5), torch.float32, "cpu", False).detach()
    single = (xs[:1], weights[:1], biases[:1], running[::2], residual, training, EPS, True, 0.2, joined)
    torch.library.opcheck(ops.batch_norm_relu, single)
    one = (xs[0], weights[0], biases[0], running[::2], residual, training, EPS, True, 0.2)
    torch.library.opcheck(ops.batch_norm_relu_into, (torch.empty_like(xs[0]), *one))
    ys, statistics = ops.batch_norm_relu(*several[:-1], False)
    means, spreads = of_each(xs, statistics, running, training)
    saved = (ys, xs, ys, weights, biases, list(means), list(spreads), training, EPS, True)
    torch.library.opcheck(ops.batch_norm_relu_backward, (*saved, False, 1.0, joined))
    first = [group[:1] for group in saved[:7]]
    torch.library.opcheck(ops.batch_norm_relu_backward, (*first, training, EPS, True, True, 0.2, joined))


class Branches(torch.nn.Module):
    """Two convolutions whose batch norms meet in one map."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(4, c, 1, bias=False) for c in (3, 5))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(c) for c in (3, 5))

    def forward(self, x: Tensor) -> Tensor:
        vectors = zip(*[(n.weight, n.bias, n.running_mean, n.running_var) for n in self.norms], strict=True)
        maps = [conv(x) for conv in self.convs]
        return batch_norm_relu_concat(maps, *(list(v) for v in vectors), self.training)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_break(backend: str) -> None:
    """Gradients and running statistics included."""
    x = torch.randn(2, 4, 5, 3).to(memory_format=CHANNELS_LAST)
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        module = Branches().to(memory_format=CHANNELS_LAST)
        step = torch.compile(module, backend=backend, fullgraph=True) if compiled else module
        y = step(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters())), *module.buffers()])
    # inductor sums up in another order
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


X = torch.zeros(2, 4, 3, 3).to(memory_format=CHANNELS_LAST)
V = torch.ones(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X.int()}, r"x is torch\.int32; it takes float32"),
        ({"x": X[0]}, r"x has shape \(4, 3, 3\); it takes four dimensions"),
        ({"x": X.contiguous()}, r"x has strides \(36, 9, 3, 1\); it takes channels-last"),
        ({"x": X[:, ::2]}, "x has strides"),
        ({"weight": V.half()}, r"weight is torch\.float16; for torch\.float32 maps it takes torch\.float32"),
        ({"bias": torch.ones(3)}, r"bias has shape \(3,\); for these maps it takes \(4,\)"),
        ({"running_mean": V.to("meta")}, "running_mean is on meta"),
        ({"running_var": torch.ones(8)[::2]}, r"running_var has strides \(2,\)"),
        ({"running_mean": None}, "running_mean is None; running_mean and running_var go together"),
        ({"running_mean": None, "running_var": None, "training": False}, "without training they are needed"),
        ({"x": X[:1, :, :1, :1]}, "training takes more than one value a channel"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"momentum": 2}, "momentum is 2; it takes a number from 0 to 1"),
        ({"residual": X[:1]}, r"residual has shape \(1, 4, 3, 3\)"),
        ({"residual": X.double()}, r"residual is torch\.float64"),
        ({"residual": X, "scale": -0.1}, "scale is -0.1; it takes a number of 0 or more"),
        ({"scale": 0.5}, "scale is 0.5; without a residual it takes 1"),
        ({"out": X[:1]}, r"out has shape \(1, 4, 3, 3\)"),
        ({"out": X.clone(), "weight": V.clone().requires_grad_()}, "out takes no gradient"),
        ({"out": X.clone().requires_grad_()}, "out takes no gradient"),
    ],
)
def test_wrong_argument(given: dict[str, Any], message: str) -> None:
    fine = {"x": X, "weight": V, "bias": V, "running_mean": V.clone(), "running_var": V.clone(), "training": True}
    with pytest.raises(ValueError, match=message):
        batch_norm_relu(**{**fine, **given})


@pytest.mark.parametrize(
    ("xs", "weights", "message"),
    [
        ([], [], "xs is empty"),
        ([X, X], [V], "weights has 1 tensors; it takes one for each of 2 maps"),
        ([X, X[:, :, :2].contiguous(memory_format=CHANNELS_LAST)], [V, V], r"xs\[1\] has shape \(2, 4, 2, 3\)"),
        ([X, X.half()], [V, V], r"xs\[1\] is torch\.float16"),
        ([X, X], [V, V[:2]], r"weights\[1\] has shape \(2,\)"),
    ],
)
def test_wrong_list(xs: list[Tensor], weights: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_norm_relu_concat(xs, weights, [V] * len(xs), None, None, True)
