"""Products by way of a convolution are products: whatever the shape, and nothing beside the operands is read."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import products
from tests.kernels.conftest import Memory

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_FEWEST", 0)


def operands(rows: int, depth: int, columns: int, form: str) -> tuple[Tensor, Tensor]:
    """As the network has them: pixels by a weight, as it is or turned; turned pixels by pixels."""
    generator = torch.Generator().manual_seed(rows * 31 + depth * 7 + columns)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if form == "turned pixels":
        return drawn(depth, rows).t(), drawn(depth, columns)
    return drawn(rows, depth), drawn(columns, depth).t() if form == "turned weight" else drawn(depth, columns)


FORMS = ["weight", "turned weight", "turned pixels"]


@torch.no_grad()
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.sampled_from(FORMS))
def test_a_product_of_any_shape(rows: int, depth: int, columns: int, form: str) -> None:
    a, b = operands(rows, depth, columns, form)
    found = products.matmul(a, b)
    assert found.shape == (rows, columns)
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_nothing_beside_the_operands_is_read(memory: Memory, form: str) -> None:
    a, b = (memory.input(t) for t in operands(37, 29, 23, form))
    torch.testing.assert_close(products.matmul(a, b), a @ b)
    memory.check_guards()


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_comes_through(form: str, value: float) -> None:
    a, b = operands(40, 24, 16, form)
    a[3, 5] = value
    found = products.matmul(a, b)
    assert not found[3].isfinite().any()
    assert found[:3].isfinite().all()
    assert found[4:].isfinite().all()


@pytest.mark.parametrize("mode", ["no grad", "grad", "gradients"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fewest", [0, 1 << 24])
def test_autocast_changes_nothing(monkeypatch: pytest.MonkeyPatch, form: str, fewest: int, mode: str) -> None:
    """With tensors that want gradients and without: an operator is called with grad mode on where none wants any."""
    monkeypatch.setattr(products, "_FEWEST", fewest)
    a, b = operands(40, 24, 16, form)
    if mode == "gradients":
        b.requires_grad_()
    with torch.autocast("cpu"), torch.set_grad_enabled(mode != "no grad"):
        found = products.matmul(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, products.matmul(a, b))
