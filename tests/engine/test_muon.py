"""Muon: steps are orthogonal and as long as said, a scaler is heeded, and convolutions are what it moves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.config import resolve
from engine.device import decide
from engine.model import InceptionResNetV1
from engine.muon import LENGTH, MOMENTUM, QUINTIC, STEPS, Muon, orthogonal
from engine.step import Step


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_singular_values_come_near_one(number: int, rows: int, columns: int, seed: int) -> None:
    """The directions stay; none grows beyond 1.3, and those that were not small are not small."""
    matrices = torch.randn(number, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for before, after in zip(matrices, orthogonal(matrices), strict=True):
        u, s, v = torch.linalg.svd(before, full_matrices=False)
        inside = u.mT @ after @ v.mT
        assert (inside - inside.diag().diag()).abs().max() < 1e-6
        assert inside.diag().max() < 1.3
        assert (inside.diag()[s > 0.2 * s.norm()] > 0.5).all()


def reference(weight: Tensor, gradients: list[Tensor], rates: list[float]) -> Tensor:
    """Jordan et al.'s algorithm for one weight [out, in, height, width], in float64, written out."""
    w, m = weight.double().flatten(1), torch.zeros_like(weight, dtype=torch.float64).flatten(1)
    a, b, c = QUINTIC
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient.double().flatten(1)
        m = MOMENTUM * m + (1 - MOMENTUM) * g
        x = MOMENTUM * m + (1 - MOMENTUM) * g
        x = x / x.norm()
        for _ in range(STEPS):
            x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
        w = w - rate * LENGTH * math.sqrt(max(w.shape)) * x
    return w.view_as(weight)


def test_steps_are_those_of_the_paper() -> None:
    """Several weights of one shape and others, tall and wide, channels-last or not."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (8, 16, 1, 7), (40, 4, 1, 1), (8, 16, 1, 7)]
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    weights[1].data = weights[1].data.contiguous(memory_format=torch.channels_last)
    start = [weight.detach().clone() for weight in weights]
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    rates = [0.01, 0.02, 0.005]
    muon = Muon(weights, 0.0)
    for some, rate in zip(gradients, rates, strict=True):
        for weight, gradient in zip(weights, some, strict=True):
            weight.grad = gradient
        muon.param_groups[0]["lr"] = rate
        muon.step()
    for number, weight in enumerate(weights):
        due = reference(start[number], [some[number] for some in gradients], rates)
        torch.testing.assert_close(weight.detach().double(), due, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_scaler_is_heeded(bad: float) -> None:
    """Scaled gradients move as they would unscaled; those that are not finite move nothing, momentum neither."""
    gradients = torch.randn(3, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    plain, scaled = (nn.Parameter(torch.ones(8, 4, 3, 3)) for _ in range(2))
    first, second = Muon([plain], 0.01), Muon([scaled], 0.01)
    for number, gradient in enumerate(gradients):
        if number == 1:
            second.grad_scale, second.found_inf = torch.tensor(1024.0), torch.tensor(1.0)  # type: ignore[attr-defined]
            scaled.grad = torch.full_like(gradient, bad)
            second.step()
        plain.grad, scaled.grad = gradient, gradient * 1024
        first.step()
        second.grad_scale, second.found_inf = torch.tensor(1024.0), torch.tensor(0.0)  # type: ignore[attr-defined]
        second.step()
    assert torch.equal(plain, scaled)


def test_each_weight_has_one_optimizer() -> None:
    """Convolutions are Muon's, all else Adam's; without Muon all are Adam's."""
    model = InceptionResNetV1(3, 0.125)
    ours = Step(resolve("paper", {"optimizer": "muon"}), decide("cpu", False, "off"), model, None)
    assert ours.muon is not None
    moved = ours.muon.param_groups[0]["params"]
    rest = ours.optimizer.param_groups[0]["params"]
    assert {id(p) for p in moved} == {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert sorted(map(id, (*moved, *rest))) == sorted(map(id, model.parameters()))
    adam = Step(resolve("paper", {}), decide("cpu", False, "off"), model, None)
    assert len(adam.optimizer.param_groups[0]["params"]) == len(moved) + len(rest)
