"""What the kernel tests share: a fixed seed, devices, guarded memory, and the rule for how wrong a kernel may be."""

import math
from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    """Two at least: work is shared as it is where people train, whatever the environment says of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


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


GUARD = 63  # odd: no tensor begins at a multiple of more than its item


class Memory:
    """Hands out tensors that lie between stretches of NaN, or of 255, and looks after them."""

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
        assert not any(tensor.isnan().any() for tensor, _ in self.outputs), "an element was not written"
        self.check_guards()

    def check_guards(self) -> None:
        for _, buffer in self.outputs:
            guards = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
            untouched = guards.isnan() if guards.is_floating_point() else guards == 255
            assert untouched.all(), "written beside the output"
        for buffer, before in self.inputs:
            torch.testing.assert_close(buffer, before, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Whatever the operations allocate while the fixture lives comes from it."""
    memory = Memory()

    def empty(*sizes: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        shape = sizes if not sizes or isinstance(sizes[0], int) else sizes[0]
        strides = torch.zeros(()).expand(shape).contiguous().stride()
        return memory.output(torch.Size(shape), strides, dtype)

    def empty_strided(shape: Any, strides: Any, *, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        return memory.output(torch.Size(shape), tuple(strides), dtype)

    def empty_like(like: Tensor) -> Tensor:
        return memory.output(like.shape, like.stride(), like.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_strided", empty_strided)
        patch.setattr(torch, "empty_like", empty_like)
        yield memory
