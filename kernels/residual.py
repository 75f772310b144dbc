"""Scaled residual connection, with ReLU or without, in one pass.

    y           = relu(x + scale · branch)
    grad_x      = grad · [y > 0]
    grad_branch = scale · grad_x

x, branch and y have one shape and one dense layout, which the kernels read as flat memory. Only y is kept for
the backward pass: its sign is the mask. Without ReLU nothing is kept, and grad_x is grad itself.

Bytes moved for n elements of b bytes: 3·n·b forward (x, branch, y), 4·n·b backward (grad, y, both gradients);
without ReLU 2·n·b backward (grad, grad_branch).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_dense, check_flag, check_floats, check_like, check_number, same_layout
from kernels.launch import takes_triton
from kernels.traffic import Pass, declares, size
from kernels.tuning import RESIDUAL_ADD_RELU


def residual_add_relu_reference(x: Tensor, branch: Tensor, scale: float, relu: bool = True) -> Tensor:
    y = x + scale * branch
    return torch.relu(y) if relu else y


@triton.jit  # type: ignore[untyped-decorator]
def _residual_add_relu_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, branch_ptr, y_ptr, scale, n, RELU: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    branch = tl.load(branch_ptr + at, mask=inside).to(tl.float32)
    y = x + scale * branch
    if RELU:
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


@torch.library.custom_op("manylabel::residual_add_relu", mutates_args=())
def _forward(x: Tensor, branch: Tensor, scale: float, relu: bool) -> Tensor:
    y = torch.empty_like(x)
    if takes_triton(x):
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            grid = (triton.cdiv(x.numel(), RESIDUAL_ADD_RELU.blocks["BLOCK"]),)
            _residual_add_relu_fwd_kernel[grid](x, branch, y, scale, x.numel(), RELU=relu, **RESIDUAL_ADD_RELU.options)
        return y
    # Not torch.add(alpha=scale): that rounds the scale to the dtype of x, addcmul keeps it in float32.
    torch.addcmul(x, branch, x.new_ones(()), value=scale, out=y)
    return y.relu_() if relu else y


@torch.library.custom_op("manylabel::residual_add_relu_backward", mutates_args=())
def _backward(grad: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    grad_x, grad_branch = torch.empty_like(y), torch.empty_like(y)
    if takes_triton(y):
        # A gradient comes in whatever layout the next operation chose, expanded ones included.
        grad = grad if same_layout(grad, y) else torch.empty_like(y).copy_(grad)
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            grid = (triton.cdiv(y.numel(), RESIDUAL_ADD_RELU.blocks["BLOCK"]),)
            _residual_add_relu_bwd_kernel[grid](
                grad, y, grad_x, grad_branch, scale, y.numel(), **RESIDUAL_ADD_RELU.options
            )
    else:
        torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad_x)
        torch.mul(grad_x, scale, out=grad_branch)
    return grad_x, grad_branch


@_forward.register_fake
def _(x: Tensor, branch: Tensor, scale: float, relu: bool) -> Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(grad: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(y)


@declares("residual_add_relu")
def _(x: Tensor, branch: Tensor, scale: float, relu: bool) -> list[Pass]:
    return [Pass(size(x, branch), size(x))]


@declares("residual_add_relu_backward")
def _(grad: Tensor, y: Tensor, scale: float) -> list[Pass]:
    return [Pass(size(grad, y), 2 * size(y))]


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: Tensor) -> None:
    ctx.scale, ctx.relu = inputs[2], inputs[3]
    if ctx.relu:
        ctx.save_for_backward(output)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    if ctx.relu:
        return *_backward(grad, *ctx.saved_tensors, ctx.scale), None, None
    return grad, grad * ctx.scale, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def residual_add_relu(x: Tensor, branch: Tensor, scale: float, relu: bool = True) -> Tensor:
    """relu(x + scale · branch), computed in float32 and rounded once on the way out.

    Args:
        x: any shape, float32, float16 or bfloat16, on the CPU float64 too. Contiguous, channels-last or any
            other order of the dimensions that leaves no gaps in memory.
        branch: shape, dtype, device and layout of x.
        scale: a finite Python number, 0 or more; no gradient.
        relu: False leaves the ReLU out.

    Returns:
        A new tensor with the shape, dtype and layout of x. NaN comes through, as in torch.relu, and the
        gradient at 0 is 0. A gradient that arrives in another layout is copied to that of x first.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes. Nothing is copied to
            fit.

    Source: the scaled residual of Szegedy et al. 2016, arXiv:1602.07261, section 3.3.
    """
    check_floats("x", x)
    check_dense("x", x)
    check_like("branch", branch, "x", x)
    check_number("scale", scale, low=0)
    check_flag("relu", relu)
    y: Tensor = _forward(x, branch, scale, relu)
    return y
