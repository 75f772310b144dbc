"""Scaled residual connection with ReLU, in one pass.

    y           = relu(x + scale · branch)
    grad_x      = grad · [y > 0]
    grad_branch = scale · grad_x

x, branch and y have one shape and one dense layout, which the kernels read as flat memory. Only y is kept for
the backward pass: its sign is the mask.

Bytes moved for n elements of b bytes: 3·n·b forward (x, branch, y), 4·n·b backward (grad, y, both gradients).
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # eight 16-bit elements, one 128-bit access, for each of the 128 threads of a program
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def residual_add_relu_reference(x: Tensor, branch: Tensor, scale: float) -> Tensor:
    return torch.relu(x + scale * branch)


@triton.jit  # type: ignore[untyped-decorator]
def _residual_add_relu_fwd_kernel(x_ptr, branch_ptr, y_ptr, scale, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    branch = tl.load(branch_ptr + at, mask=inside).to(tl.float32)
    y = x + scale * branch
    y = tl.where(y <= 0, 0.0, y)  # not y > 0: a NaN must come through
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _residual_add_relu_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, y_ptr, grad_x_ptr, grad_branch_ptr, scale, n, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    grad = tl.load(grad_ptr + at, mask=inside).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside).to(tl.float32)
    grad = tl.where(y <= 0, 0.0, grad)
    tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_branch_ptr + at, (scale * grad).to(grad_branch_ptr.dtype.element_ty), mask=inside)


# TRITON_INTERPRET=1 at import makes the kernels run on CPU tensors too.
_INTERPRETED = not isinstance(_residual_add_relu_fwd_kernel, triton.JITFunction)


def _takes_triton(x: Tensor) -> bool:
    # An empty tensor has nothing to launch; plain torch gives it what is due, on a GPU too.
    return x.numel() > 0 and (x.is_cuda or (_INTERPRETED and x.dtype != torch.float64))


@torch.library.custom_op("manylabel::residual_add_relu", mutates_args=())
def _forward(x: Tensor, branch: Tensor, scale: float) -> Tensor:
    y = torch.empty_like(x)
    if _takes_triton(x):
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            grid = (triton.cdiv(x.numel(), _BLOCK),)
            _residual_add_relu_fwd_kernel[grid](x, branch, y, scale, x.numel(), BLOCK=_BLOCK)
        return y
    # Not torch.add(alpha=scale): that rounds the scale to the dtype of x, addcmul keeps it in float32.
    return torch.addcmul(x, branch, x.new_ones(()), value=scale, out=y).relu_()


@torch.library.custom_op("manylabel::residual_add_relu_backward", mutates_args=())
def _backward(grad: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    grad_x, grad_branch = torch.empty_like(y), torch.empty_like(y)
    if _takes_triton(y):
        # A gradient comes in whatever layout the next operation chose, expanded ones included.
        grad = grad if _same_layout(grad, y) else torch.empty_like(y).copy_(grad)
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            grid = (triton.cdiv(y.numel(), _BLOCK),)
            _residual_add_relu_bwd_kernel[grid](grad, y, grad_x, grad_branch, scale, y.numel(), BLOCK=_BLOCK)
    else:
        torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad_x)
        torch.mul(grad_x, scale, out=grad_branch)
    return grad_x, grad_branch


@_forward.register_fake
def _(x: Tensor, branch: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(grad: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(y)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.scale = inputs[2]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    (y,) = ctx.saved_tensors
    return *_backward(grad, y, ctx.scale), None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    if a.stride() == b.stride() or a.numel() == 0:
        return True
    # The stride of a dimension of one element is arbitrary.
    return all(s == t or size == 1 for s, t, size in zip(a.stride(), b.stride(), a.shape, strict=True))


def _is_dense(x: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of the dimensions."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _check(x: Tensor, branch: Tensor, scale: float) -> None:
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"x is on {x.device}; it takes cpu and cuda")
    if x.dtype not in _DTYPES or (x.dtype == torch.float64 and x.is_cuda):
        raise ValueError(f"x is {x.dtype}; it takes float32, float16, bfloat16, on the CPU float64")
    if not _is_dense(x):
        raise ValueError(f"x has strides {x.stride()}; for {tuple(x.shape)} it takes memory without gaps")
    if branch.shape != x.shape:
        raise ValueError(f"branch has shape {tuple(branch.shape)}; it takes that of x, {tuple(x.shape)}")
    if branch.dtype != x.dtype:
        raise ValueError(f"branch is {branch.dtype}; it takes the dtype of x, {x.dtype}")
    if branch.device != x.device:
        raise ValueError(f"branch is on {branch.device}; it takes the device of x, {x.device}")
    if not _same_layout(x, branch):
        raise ValueError(f"branch has strides {branch.stride()}; it takes those of x, {x.stride()}")
    if not isinstance(scale, float | int):
        raise ValueError(f"scale is a {type(scale).__name__}; it takes a Python number")
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale is {scale}; it takes a finite number")


def residual_add_relu(x: Tensor, branch: Tensor, scale: float) -> Tensor:
    """relu(x + scale · branch), computed in float32 and rounded once on the way out.

    Args:
        x: any shape, float32, float16 or bfloat16, on the CPU float64 too. Contiguous, channels-last or any
            other order of the dimensions that leaves no gaps in memory.
        branch: shape, dtype, device and layout of x.
        scale: a finite Python number; no gradient.

    Returns:
        A new tensor with the shape, dtype and layout of x. NaN comes through, as in torch.relu, and the
        gradient at 0 is 0. A gradient that arrives in another layout is copied to that of x first.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes. Nothing is copied to
            fit.

    Source: the scaled residual of Szegedy et al. 2016, arXiv:1602.07261, section 3.3.
    """
    _check(x, branch, scale)
    y: Tensor = _forward(x, branch, scale)
    return y
