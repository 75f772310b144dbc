"""Where an operation runs: as its Triton kernel or as plain torch, by the dispatcher or past it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

# TRITON_INTERPRET=1 at import makes the kernels run on CPU tensors too.
INTERPRETED: bool = triton.knobs.runtime.interpret

Result = TypeVar("Result")


def takes_triton(x: Tensor) -> bool:
    """Whether the kernel runs on x. An empty tensor has nothing to launch: plain torch gives it what is due."""
    return x.numel() > 0 and (x.is_cuda or (INTERPRETED and x.dtype != torch.float64))


def past_dispatcher(operator: Callable[..., Result]) -> Callable[..., Result]:
    """The operator, called as the Python function that it is where nobody asks for more.

    The dispatcher takes 60 microseconds on its way there: for gradients, compilers, tensors that stand for others.
    """
    function: Callable[..., Result] = operator._init_fn  # type: ignore[attr-defined]

    def call(*arguments: Any) -> Result:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or watched():
            return operator(*arguments)
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        plain = type(first) in (Tensor, torch.nn.Parameter) and (first.is_cuda or first.is_cpu)
        return (function if plain else operator)(*arguments)

    return call


def is_batched(grad: Tensor) -> bool:
    """Whether it stands for several gradients, as is_grads_batched of torch.autograd.grad makes them."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad)


def watched() -> bool:
    """Whether a mode, as those that trace and count, or a function transform wants to see each operation."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
