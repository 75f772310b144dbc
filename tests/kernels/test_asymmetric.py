import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from kernels import asymmetric_loss, sigmoid_bce
from kernels.asymmetric import asymmetric_loss_reference

Close = Callable[..., None]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]
FORMS = [(0.0, 4.0, 0.05), (1.0, 2.0, 0.0), (0.0, 0.0, 0.0), (0.5, 1.5, 0.3), (0.0, 0.0, 0.2)]


def check(logits: Tensor, targets: Tensor, form: tuple[float, float, float], reduction: str, close: Close) -> None:
    """Against float64, beside plain torch in float32 for the loss and in that of logits for the gradient."""
    loss = asymmetric_loss(logits, targets, *form, reduction)
    upstream = torch.randn_like(loss)
    (grad,) = torch.autograd.grad(loss, logits, upstream)

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.detach().to(dtype).requires_grad_()
        value = asymmetric_loss_reference(x, targets, *form, reduction)
        return value.detach(), torch.autograd.grad(value, x, upstream.to(dtype))[0]

    exact, exact_grad = plain(torch.float64)
    close(loss, plain(loss.dtype)[0], exact)
    largest = (sum(form[:2]) + 1) * upstream.abs().max().item()
    close(grad, plain(logits.dtype)[1], exact_grad, largest / (logits.numel() if reduction == "mean" else 1))
    assert (loss.dtype, grad.dtype) == (torch.promote_types(logits.dtype, torch.float32), logits.dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (32, 20), (7, 601), (3, 2049)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_float64(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, int],
    form: tuple[float, float, float],
    reduction: str,
    assert_close: Close,
) -> None:
    logits = (3 * torch.randn(shape)).to(device, dtype).requires_grad_()
    check(logits, (torch.rand(shape) < 0.2).to(device), form, reduction, assert_close)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from(FLOATS),
    gammas=st.tuples(*[st.just(0.0) | st.floats(1, 5)] * 2),
    margin=st.just(0.0) | st.floats(0.02, 0.9),  # with less plain torch takes the logarithm of 0
    spread=st.sampled_from([0.1, 3.0]),
)
def test_any_shape_and_form(
    shape: tuple[int, int],
    dtype: torch.dtype,
    gammas: tuple[float, float],
    margin: float,
    spread: float,
    assert_close: Close,
) -> None:
    logits = (spread * torch.randn(shape)).to(dtype).requires_grad_()
    check(logits, torch.rand(shape), (*gammas, margin), "none", assert_close)


@pytest.mark.parametrize("margin", [1e-8, 1e-6, 1e-3])
def test_a_small_margin_far_from_zero(device: str, margin: float) -> None:
    """1 - (p - margin) is below what float32 can tell from 0 there, and still has a logarithm."""
    values = torch.tensor([[-30.0, 0.0, 8.0, 17.0, 30.0]], device=device)
    p, q = torch.sigmoid(values.double()), torch.sigmoid(-values.double())
    for target in (0.0, 1.0):
        loss = asymmetric_loss(values, torch.full_like(values, target), 1.0, 2.0, margin, "none")
        positive = q * -torch.log(p)
        negative = (p - margin).clamp(min=0) ** 2 * -torch.log((q + margin).clamp(max=1))
        torch.testing.assert_close(loss.double(), positive if target else negative, rtol=1e-5, atol=1e-12)


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    margin=st.sampled_from([0.0, 1e-30, 1e-8, 0.5, 1 - 1e-7, 1.0]) | st.floats(0, 1),
    gammas=st.tuples(*[st.just(0.0) | st.floats(0.5, 4)] * 2),
    spread=st.sampled_from([1.0, 10.0, 40.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_margin(margin: float, gammas: tuple[float, float], spread: float, dtype: torch.dtype) -> None:
    """Tiny ones and large ones, against float64 by formulas in which nothing cancels."""
    values = (spread * torch.randn(13, 7)).double()
    # At p = margin the gradient may jump; what is within rounding of it may fall on either side.
    values = torch.where((values.sigmoid() - margin).abs() < 1e-5, values + 1, values)
    targets = torch.rand(13, 7)
    logits, exact = values.to(dtype).requires_grad_(), values.to(dtype).double().requires_grad_()
    loss = asymmetric_loss(logits, targets, *gammas, margin, "none")
    y, p, q = targets.double(), exact.sigmoid(), (-exact).sigmoid()
    r, log_not_r = (
        (p - margin).clamp(min=0),
        logsigmoid(-exact) if margin == 0 else torch.log((q + margin).clamp(max=1)),
    )
    # Where r is 0 so is its power, but for the exponent 0; autograd must not see 0 to the power of γ - 1.
    neg = torch.where(r > 0, r.clamp(min=1e-300) ** gammas[1], float(gammas[1] == 0))
    due = -y * q ** gammas[0] * logsigmoid(exact) - (1 - y) * neg * log_not_r
    torch.testing.assert_close(loss.double(), due, rtol=1e-4, atol=1e-6)
    grad, due_grad = (torch.autograd.grad(t.sum(), x)[0] for t, x in ((loss, logits), (due, exact)))
    torch.testing.assert_close(grad.double(), due_grad, rtol=1e-4, atol=1e-5)


def test_without_exponents_and_margin_it_is_the_cross_entropy(device: str) -> None:
    logits, targets = torch.randn(9, 7, device=device) * 20, torch.rand(9, 7, device=device)
    results = []
    for op in (sigmoid_bce, lambda x, y: asymmetric_loss(x, y, 0, 0, 0)):
        x = logits.clone().requires_grad_()
        results.append((op(x, targets), *torch.autograd.grad(op(x, targets), x)))
    torch.testing.assert_close(results[1], results[0])


def test_far_from_zero(device: str) -> None:
    """The loss of a sure mistake, and of a sure hit with its small weight, keep their relative accuracy."""
    column = torch.tensor([-80.0, -40, -20, 0, 20, 40, 80], device=device)
    logits = torch.stack([column, column], 1)
    targets = torch.tensor([False, True], device=device).repeat(len(column), 1)
    got = asymmetric_loss(logits, targets, 0.5, 0.25, 0.0, "none")
    exact = asymmetric_loss_reference(logits.double(), targets, 0.5, 0.25, 0.0, "none")
    torch.testing.assert_close(got.double(), exact, rtol=2e-5, atol=1e-44)
    assert (exact > 0).all()


def test_nan_and_infinity(device: str) -> None:
    logits = torch.tensor([[math.nan, math.inf, -math.inf, math.inf, -math.inf]], device=device)
    targets = torch.tensor([[True, False, True, True, False]], device=device)
    for form in FORMS:
        got, plain = (f(logits, targets, *form, "none") for f in (asymmetric_loss, asymmetric_loss_reference))
        certain = ~plain.isnan()
        torch.testing.assert_close(got[certain], plain[certain])
        assert got[0, 0].isnan()
        assert got[0, 2] == math.inf


def test_gradients_at_infinity(device: str) -> None:
    """Those of the largest finite logits: half precision overflows on one sure mistake."""
    targets = torch.tensor([[False, True, True, False]], device=device)
    for form in FORMS:
        grads = []
        for size in (math.inf, 1e30):
            logits = torch.tensor([[1.0, 1.0, -1.0, -1.0]], device=device).mul(size).requires_grad_()
            grads += torch.autograd.grad(asymmetric_loss(logits, targets, *form, "sum"), logits)
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_samples_left_out_count_for_nothing(device: str, reduction: str) -> None:
    logits, targets = torch.randn(301, 13, device=device), torch.rand(301, 13, device=device) < 0.3
    mask = torch.arange(301, device=device) % 3 > 0
    logits[~mask] = math.nan
    logits.requires_grad_()
    loss = asymmetric_loss(logits, targets, reduction=reduction, sample_mask=mask)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    expected = asymmetric_loss_reference(logits, targets, reduction=reduction, sample_mask=mask)
    torch.testing.assert_close(
        loss[mask] if reduction == "none" else loss, expected[mask] if reduction == "none" else expected
    )
    assert not grad[~mask].any()
    assert grad[mask].any()


@pytest.mark.parametrize("targets", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_the_same_bits_whatever_the_threads(form: tuple[float, float, float], targets: torch.dtype) -> None:
    """On the CPU, where the rows are cut into parts."""
    logits, mask = torch.randn(4099, 80), torch.rand(4099) < 0.7
    positives = (torch.rand(4099, 80) < 0.3).to(targets)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found = []
            for reduction in REDUCTIONS:
                x = logits.clone().requires_grad_()
                loss = asymmetric_loss(x, positives, *form, reduction, mask)
                found += [loss, *torch.autograd.grad(loss.sum(), x)]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_where_it_is(device: str) -> None:
    """In loss and gradient, whatever the target; the others of its row keep theirs."""
    logits = torch.randn(3, 700, device=device)
    logits[1, 5] = logits[2, 699] = math.nan
    for form in FORMS:
        for target in (False, True):
            x = logits.clone().requires_grad_()
            loss = asymmetric_loss(x, torch.full_like(x, target, dtype=torch.bool), *form, "none")
            (grad,) = torch.autograd.grad(loss.sum(), x)
            assert torch.equal(loss.isnan(), logits.isnan())
            assert torch.equal(grad.isnan(), logits.isnan())


def test_a_margin_below_the_normal_numbers() -> None:
    """On the CPU, where the logarithm is our own."""
    logits, margin = torch.tensor([[0.0, 20.0, 85.0, 95.0, 110.0]]).requires_grad_(), 1e-40
    loss = asymmetric_loss(logits, torch.zeros_like(logits), 0.0, 1.0, margin, "none")
    exact = logits.detach().double().requires_grad_()
    due = torch.sigmoid(exact) * -torch.log(torch.sigmoid(-exact) + margin)
    torch.testing.assert_close(loss.double(), due, rtol=1e-5, atol=0)
    (grad,), (due_grad,) = (torch.autograd.grad(t.sum(), x) for t, x in ((loss, logits), (due, exact)))
    torch.testing.assert_close(grad.double(), due_grad, rtol=1e-5, atol=1e-3)


def test_empty_batch(device: str) -> None:
    logits, targets = torch.empty(0, 5, device=device, requires_grad=True), torch.empty(0, 5, device=device)
    assert asymmetric_loss(logits, targets).isnan()
    assert asymmetric_loss(logits, targets, reduction="sum").item() == 0


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradcheck(form: tuple[float, float, float]) -> None:
    logits = (2 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(4, 5)
    assert torch.autograd.gradcheck(lambda x: asymmetric_loss(x, targets, *form), logits)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction: str) -> None:
    logits, targets = torch.randn(6, 5, requires_grad=True), torch.rand(6, 5) < 0.5
    for margin, with_grad in ((0.05, True), (0.0, False)):
        args = (logits if with_grad else logits.detach(), targets, None, 1.0, 4.0, margin, reduction, with_grad)
        torch.library.opcheck(torch.ops.manylabel.asymmetric_loss, args)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_a_break() -> None:
    head = torch.nn.Linear(6, 4)

    def step(x: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return asymmetric_loss(head(x), targets, sample_mask=mask) * 2

    x, targets, mask = torch.randn(5, 6), torch.rand(5, 4) < 0.5, torch.tensor([1, 1, 0, 1, 0], dtype=torch.uint8)
    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        loss = function(x, targets, mask)
        results.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
    torch.testing.assert_close(results[1], results[0])


X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma_pos": -1}, "gamma_pos is -1; it takes a number of 0 or more"),
        ({"gamma_neg": math.inf}, "gamma_neg is inf; it takes a finite"),
        ({"margin": 2.0}, "margin is 2.0; it takes a number from 0 to 1"),
        ({"margin": torch.ones(())}, "margin is a Tensor; it takes a Python number"),
        ({"targets": X.long()}, r"targets is torch\.int64"),
        ({"reduction": "max"}, "reduction is 'max'; it takes mean, sum or none"),
        ({"sample_mask": X[0]}, r"sample_mask is torch\.float32"),
    ],
)
def test_wrong_argument(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asymmetric_loss(**{"logits": X, "targets": X, **given})
