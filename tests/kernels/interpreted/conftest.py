"""The Triton kernels in Triton's interpreter, on CPU tensors.

Triton decides for the interpreter when a kernel is defined, so these tests need a process that starts with
TRITON_INTERPRET=1: test_interpreter.py starts it, and the names of these files keep them out of every other run.
The interpreter truncates where a GPU rounds a float32 to bfloat16; the tolerance leaves room for that.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.launch import INTERPRETED

GUARD = 63  # odd: no tensor begins at a multiple of more than its item

assert INTERPRETED, "start the process with TRITON_INTERPRET=1"


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
            guards = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
            untouched = guards.isnan() if guards.is_floating_point() else guards == 255
            assert untouched.all(), "written beside the output"
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
