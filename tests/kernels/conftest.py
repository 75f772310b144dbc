"""What the kernel tests share: a fixed seed, the devices, and the rule for how wrong a kernel may be."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from kernels.launch import INTERPRETED

Close = Callable[..., None]

# Triton's interpreter needs a process of its own: test_interpreter.py starts it.
collect_ignore = [] if INTERPRETED else ["interpreted"]

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def assert_close() -> Close:
    """error ≤ 2 · (the error of plain torch in the same dtype + a unit in the last place of the largest).

    Where terms cancel, their size is the magnitude: the result says nothing of what rounding cost.
    """

    def check(got: Tensor, plain: Tensor, exact: Tensor, magnitude: float | None = None) -> None:
        assert got.shape == exact.shape
        if exact.numel():
            got, plain, exact = got.cpu(), plain.cpu(), exact.cpu()
            error, torch_error = ((t.double() - exact).abs().max().item() for t in (got, plain))
            ulp = torch.finfo(got.dtype).eps * (magnitude or exact.abs().max().item())
            assert error <= 2 * (torch_error + ulp), f"{error:.3g}; torch {torch_error:.3g}, ulp {ulp:.3g}"

    return check


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
