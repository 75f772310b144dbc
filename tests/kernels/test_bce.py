import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from kernels import asymmetric_loss, losses_cpu, sigmoid_bce
from kernels.bce import sigmoid_bce_reference

Close = Callable[..., None]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (32, 20), (7, 601), (1, 2048), (3, 2049), (0, 5), (5, 0)]
REDUCTIONS = ["mean", "sum", "none"]


def check(logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str, close: Close) -> None:
    """Against float64, beside plain torch in float32 for the loss and in that of logits for the gradient."""
    loss = sigmoid_bce(logits, targets, pos_weight, reduction)
    upstream = torch.randn_like(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.detach().to(dtype).requires_grad_()
        weight = None if pos_weight is None else pos_weight.to(dtype)
        value = binary_cross_entropy_with_logits(x, targets.to(dtype), reduction=reduction, pos_weight=weight)
        return value.detach(), torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact, exact_grad = plain(torch.float64)
    assert loss.dtype == torch.promote_types(logits.dtype, torch.float32)
    assert grad.dtype == logits.dtype
    if exact.isnan().any():
        assert loss.isnan()
        assert grad.shape == logits.shape
        return
    close(loss, plain(loss.dtype)[0], exact)
    largest = upstream.abs().max().item() if loss.numel() else 1.0
    close(grad, plain(logits.dtype)[1], exact_grad, largest / (logits.numel() if reduction == "mean" else 1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int],
    weighted: bool,
    reduction: str,
    assert_close: Close,
) -> None:
    logits = (3 * torch.randn(shape)).to(device, dtype).requires_grad_()
    pos_weight = torch.rand(shape[1], device=device) * 4 if weighted else None
    check(logits, (torch.rand(shape) < 0.2).to(device), pos_weight, reduction, assert_close)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64, *FLOATS], ids=str)
def test_target_dtypes(device: str, dtype: torch.dtype, assert_close: Close) -> None:
    logits = torch.randn(33, 21, device=device, requires_grad=True)
    targets = torch.rand(33, 21, device=device)
    targets = targets.to(dtype) if dtype.is_floating_point else (targets < 0.5).to(dtype)
    check(logits, targets, torch.rand(21).to(device, torch.bfloat16), "mean", assert_close)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 70)),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    weighted=st.booleans(),
    reduction=st.sampled_from(REDUCTIONS),
    spread=st.sampled_from([0.1, 3.0, 50.0]),
)
def test_any_shape(
    shape: tuple[int, int],
    dtype: torch.dtype,
    weighted: bool,
    reduction: str,
    spread: float,
    assert_close: Close,
) -> None:
    logits = (spread * torch.randn(shape)).to(dtype).requires_grad_()
    check(logits, torch.rand(shape), torch.rand(shape[1]) if weighted else None, reduction, assert_close)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_label_smoothing(device: str, dtype: torch.dtype, reduction: str, assert_close: Close) -> None:
    """A target of 1 becomes 1 - s/2, one of 0 s/2; the weight of positives goes with the target."""
    logits = (3 * torch.randn(33, 21)).to(device, dtype).requires_grad_()
    targets, pos_weight = torch.rand(33, 21, device=device) < 0.3, torch.rand(21, device=device) * 4
    soft = torch.where(targets, 0.9, 0.1)
    loss = sigmoid_bce(logits, targets, pos_weight, reduction, label_smoothing=0.2)
    exact, plain = (
        binary_cross_entropy_with_logits(
            logits.to(kind),
            soft.to(kind),
            reduction=reduction,
            pos_weight=pos_weight.to(kind),
        )
        for kind in (torch.float64, torch.float32)
    )
    assert_close(loss, plain, exact)
    upstream = torch.ones_like(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    (expected,) = torch.autograd.grad(exact, logits, upstream.double())
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("rows", [5, 700])  # the second: many programs
def test_samples_left_out_count_for_nothing(device: str, rows: int, kind: torch.dtype, reduction: str) -> None:
    """Not even when they hold NaN; the mean is that of the others."""
    logits, targets = torch.randn(rows, 13, device=device), torch.rand(rows, 13, device=device)
    mask = torch.rand(rows, device=device) < 0.6
    mask[:2] = torch.tensor([True, False], device=device)
    logits[~mask] = math.nan
    logits.requires_grad_()
    loss = sigmoid_bce(logits, targets, reduction=reduction, sample_mask=mask.to(kind))
    (grad,) = torch.autograd.grad(loss.sum() * 3, logits)
    kept = logits.detach()[mask].requires_grad_()
    expected = sigmoid_bce_reference(kept, targets[mask], reduction=reduction)
    (expected_grad,) = torch.autograd.grad(expected.sum() * 3, kept)
    torch.testing.assert_close(loss[mask] if reduction == "none" else loss, expected)
    torch.testing.assert_close(grad[mask], expected_grad)
    assert not grad[~mask].any()
    assert reduction != "none" or not loss[~mask].any()


def test_all_samples_left_out(device: str) -> None:
    logits = torch.randn(3, 4, device=device, requires_grad=True)
    mask = torch.zeros(3, dtype=torch.bool, device=device)
    for operation in (sigmoid_bce, asymmetric_loss):
        loss = operation(logits, torch.rand(3, 4, device=device), sample_mask=mask)
        assert loss.isnan()
        (grad,) = torch.autograd.grad(loss, logits)
        assert not grad.any()  # a batch of padding must not spoil the weights
    assert sigmoid_bce(logits, torch.rand(3, 4, device=device), reduction="sum", sample_mask=mask).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_far_from_zero(device: str, dtype: torch.dtype) -> None:
    """Down to e^-80 the loss and its gradient keep their relative accuracy; torch's formula gives 0 there."""
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 is for the CPU")
    column = torch.tensor([-80.0, -40, -20, -1e-3, 0, 1e-3, 20, 40, 80], dtype=dtype, device=device)
    logits = torch.stack([column, column], dim=1).requires_grad_()
    targets = torch.tensor([0, 1], dtype=torch.uint8, device=device).repeat(len(column), 1)
    loss = sigmoid_bce(logits, targets, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)

    def softplus(v: float) -> float:
        return max(v, 0.0) + math.log1p(math.exp(-abs(v)))

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    for row, value in enumerate(column.tolist()):
        expected = [softplus(value), softplus(-value)], [sigmoid(value), -sigmoid(-value)]
        eps = max(torch.finfo(loss.dtype).eps * 64, 1e-14)
        assert loss[row].tolist() == pytest.approx(expected[0], rel=eps, abs=0)
        assert grad[row].tolist() == pytest.approx(expected[1], rel=eps + torch.finfo(dtype).eps, abs=0)


def test_nan_and_infinity(device: str) -> None:
    logits = torch.tensor([[math.nan, math.inf, -math.inf]], device=device, requires_grad=True)
    targets = torch.tensor([[1, 0, 1]], dtype=torch.uint8, device=device)
    loss = sigmoid_bce(logits, targets, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isnan().tolist() == [[True, False, False]]
    assert loss[0, 1:].tolist() == [math.inf, math.inf]
    assert grad.isnan().tolist() == [[True, False, False]]
    assert grad[0, 1:].tolist() == [1.0, -1.0]


def test_empty_batch(device: str) -> None:
    logits, targets = torch.empty(0, 5, device=device, requires_grad=True), torch.empty(0, 5, device=device)
    assert sigmoid_bce(logits, targets).isnan()
    assert sigmoid_bce(logits, targets, reduction="sum").item() == 0
    assert sigmoid_bce(logits, targets, reduction="none").shape == (0, 5)


def test_log1p_has_all_its_terms(device: str) -> None:
    """The last is a unit in the last place of float32: without it losses near 0 are too small on the average."""
    logits = torch.linspace(-0.01, 0.01, 4001, device=device)[:, None]
    loss = sigmoid_bce(logits, torch.zeros_like(logits), reduction="none").double()
    exact = torch.nn.functional.softplus(logits.double())
    assert ((loss - exact) / exact).mean().abs() < 3e-8


@pytest.mark.parametrize("targets", [torch.bool, torch.float32], ids=str)
def test_the_same_bits_whatever_the_threads(targets: torch.dtype) -> None:
    """On the CPU, where the rows are cut into parts."""
    logits, masks = torch.randn(4099, 80), (None, torch.rand(4099) < 0.7)
    positives, pos_weight = (torch.rand(4099, 80) < 0.3).to(targets), torch.rand(80)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found = []
            for reduction in REDUCTIONS:
                for mask in masks:
                    x = logits.clone().requires_grad_()
                    loss = sigmoid_bce(x, positives, pos_weight, reduction, 0.1, mask)
                    found += [loss, *torch.autograd.grad(loss.sum(), x)]
            rounded_late = [
                losses_cpu.bce(logits + n, logits, None, 1, None, None, weight=pos_weight, smoothing=0)
                for n in range(3)
            ]
            found.append(torch.tensor(rounded_late, dtype=torch.float64))
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [sigmoid_bce, asymmetric_loss])
def test_float16_gradients_come_from_outside_its_range(device: str, loss: Callable[..., Tensor], masked: bool) -> None:
    """What does not fit on the way may fit once it is multiplied by what comes from upstream, and is rounded once."""
    values = torch.tensor([[-20.0, -18.0, -12.0, 3.0]], device=device).repeat(8, 1)
    targets, n = torch.zeros_like(values), values.numel()
    mask = torch.arange(8, device=device) < 6 if masked else None
    weight: dict[str, Any] = {}
    for target, scale in ((0.0, 2.0**17), (1.0, 2.0**-12)):
        targets.fill_(target)
        if loss is sigmoid_bce:
            weight = {"pos_weight": torch.full((4,), 1e7, device=device)}
        else:
            weight = {"gamma_neg": 0.0, "margin": 0.0}
            scale = max(scale, 1.0)
        logits = values.half().requires_grad_()
        (got,) = torch.autograd.grad(loss(logits, targets, sample_mask=mask, **weight) * scale, logits)
        exact = (
            values.double().sigmoid() if target == 0 else -(-values.double()).sigmoid() * weight.get("pos_weight", 1)
        )
        due = exact * scale / (n * 6 / 8 if masked else n) * (1 if mask is None else mask[:, None])
        half_unit = torch.finfo(torch.float16).eps / 2 * 2 ** due.abs().log2().floor().clamp(min=-14)
        assert ((got.double() - due).abs() <= half_unit + 1e-5 * due.abs()).all()
        assert got.isfinite().all()
        assert got[0].all()


def test_float16_gradient_survives_the_mean_and_the_loss_scale(device: str) -> None:
    """1/n alone falls out of the range of float16, and the scale of an AMP scaler exceeds it."""
    logits = torch.randn(1024, 256).to(device, torch.float16).requires_grad_()
    targets = torch.rand(1024, 256, device=device) < 0.1
    (grad,) = torch.autograd.grad(sigmoid_bce(logits, targets) * 2.0**17, logits)
    expected = (logits.double().sigmoid() - targets.double()) * (2.0**17 / logits.numel())
    torch.testing.assert_close(grad.double(), expected, rtol=2e-3, atol=1e-6)


def test_not_last_in_the_graph_and_twice(device: str) -> None:
    w = torch.randn(6, 4, device=device, requires_grad=True)
    x, targets = torch.randn(9, 6, device=device), torch.rand(9, 4, device=device)
    results = []
    for op in (sigmoid_bce, sigmoid_bce_reference):
        loss = (1 + op(torch.tanh(x @ w), targets) * 3) ** 2
        results += [torch.autograd.grad(loss, w, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(results[0], results[1])  # backward leaves what it kept as it was
    torch.testing.assert_close(results[1], results[2])


def test_expanded_upstream_gradient(device: str) -> None:
    logits, targets = torch.randn(5, 3, device=device, requires_grad=True), torch.rand(5, 3, device=device)
    upstream = torch.tensor([[1.0], [2], [3], [4], [5]], device=device).expand(5, 3)
    (grad,) = torch.autograd.grad(sigmoid_bce(logits, targets, reduction="none"), logits, upstream)
    torch.testing.assert_close(grad, (logits.sigmoid() - targets) * upstream)


def test_the_same_bits_with_and_without_a_gradient(device: str) -> None:
    logits, targets = (
        torch.randn(301, 77, device=device, requires_grad=True),
        torch.rand(301, 77, device=device),
    )
    losses = [sigmoid_bce(logits, targets) for _ in range(3)]
    with torch.no_grad():
        losses.append(sigmoid_bce(logits, targets))
    assert [loss.requires_grad for loss in losses] == [True, True, True, False]
    assert len({loss.item() for loss in losses}) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction: str) -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets, pos_weight, mask = torch.rand(4, 5), torch.rand(5), torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda x: sigmoid_bce(x, targets, pos_weight, reduction, 0.1, mask), logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction: str) -> None:
    logits, targets = torch.randn(6, 5, requires_grad=True), torch.rand(6, 5) < 0.5
    for pos_weight, with_grad in ((torch.rand(5), True), (None, False)):
        mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.uint8) if with_grad else None
        args = (logits if with_grad else logits.detach(), targets, pos_weight, mask, 0.1, reduction, with_grad)
        torch.library.opcheck(torch.ops.manylabel.sigmoid_bce, args)
    upstream = torch.rand(6, 5) if reduction == "none" else torch.rand(())
    torch.library.opcheck(torch.ops.manylabel.scale_gradient, (logits.detach(), upstream, logits.detach()))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_a_break() -> None:
    head, pos_weight = torch.nn.Linear(6, 4), torch.rand(4)

    def step(x: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_bce(head(x), targets, pos_weight) * 2

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for n in (5, 8):  # the second makes the batch a symbol
        x, targets = torch.randn(n, 6), torch.rand(n, 4) < 0.5
        results = []
        for function in (step, compiled):
            loss = function(x, targets)
            results.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
        torch.testing.assert_close(results[1], results[0])
    with torch.no_grad():
        assert not compiled(x, targets).requires_grad


X, W = torch.zeros(3, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("logits", "targets", "pos_weight", "reduction", "message"),
    [
        (X.long(), X, None, "mean", r"logits is torch\.int64; it takes float32"),
        (X[0], X[0], None, "mean", r"logits has shape \(4,\); it takes two dimensions"),
        (X[:, ::2], X[:, ::2], None, "mean", r"logits has strides \(4, 2\); it takes contiguous"),
        (X, X.long(), None, "mean", r"targets is torch\.int64; it takes bool, uint8"),
        (X, X[:2], None, "mean", r"targets has shape \(2, 4\); .* \(3, 4\)"),
        (X, X.to("meta"), None, "mean", "targets is on meta; .* cpu"),
        (X, torch.zeros(4, 3).t(), None, "mean", r"targets has strides \(1, 3\)"),
        (X, X.clone().requires_grad_(), None, "mean", "targets requires a gradient"),
        (X, X, W.int(), "mean", r"pos_weight is torch\.int32"),
        (X, X, W[:3], "mean", r"pos_weight has shape \(3,\); .* \(4,\)"),
        (X, X, W.to("meta"), "mean", "pos_weight is on meta"),
        (X, X, torch.ones(1).expand(4), "mean", r"pos_weight has strides \(0,\)"),
        (X, X, W, "average", "reduction is 'average'; it takes mean, sum or none"),
    ],
)
def test_wrong_argument(
    logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sigmoid_bce(logits, targets, pos_weight, reduction)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; it takes a number from 0 to 1"),
        ({"label_smoothing": math.nan}, "label_smoothing is nan; it takes a finite"),
        ({"sample_mask": torch.ones(3)}, r"sample_mask is torch\.float32; it takes bool and uint8"),
        ({"sample_mask": torch.ones(4, dtype=torch.bool)}, r"sample_mask has shape \(4,\); .* \(3,\)"),
    ],
)
def test_wrong_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigmoid_bce(X, X, **given)


@pytest.mark.parametrize("loss", [sigmoid_bce, asymmetric_loss])
def test_any_byte_but_zero_counts(loss: Callable[..., Tensor], device: str) -> None:
    """In a mask and in targets, and as booleans that are a view of such bytes."""
    logits, targets = torch.randn(4, 3, device=device), torch.rand(4, 3, device=device) < 0.5
    mask = torch.tensor([255, 0, 7, 0], dtype=torch.uint8, device=device)
    bytes_of_targets = targets * torch.tensor([255, 2, 128], dtype=torch.uint8, device=device)
    due = loss(logits, targets.float(), sample_mask=mask != 0)
    for kind in (torch.uint8, torch.bool):
        torch.testing.assert_close(loss(logits, bytes_of_targets.view(kind), sample_mask=mask.view(kind)), due)


@pytest.mark.parametrize("loss", [sigmoid_bce, asymmetric_loss])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_twice(loss: Callable[..., Tensor], reduction: str) -> None:
    """The kept gradient is handed out as it is; what comes upstream the next time still counts, and so does .grad."""
    logits = torch.randn(5, 3, requires_grad=True)
    value = loss(logits, torch.rand(5, 3), reduction=reduction)
    one = torch.ones_like(value)
    value.backward(one, retain_graph=True)
    first = logits.grad.clone()
    value.backward(one, retain_graph=True)
    torch.testing.assert_close(logits.grad, 2 * first)
    (third,) = torch.autograd.grad(value, logits, one * -3)
    torch.testing.assert_close(third, -3 * first)


@pytest.mark.parametrize("loss", [sigmoid_bce, asymmetric_loss])
def test_second_derivatives_are_refused(loss: Callable[..., Tensor]) -> None:
    """They would be wrong without a word: the kept gradient is a constant to autograd."""
    weight = torch.randn(3, requires_grad=True)
    logits = torch.randn(4, 3) * weight
    (grad,) = torch.autograd.grad(loss(logits, torch.rand(4, 3)), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="scale_gradient"):
        grad.square().sum().backward()
