"""1×1 convolution joined to its residual connection, with ReLU or without: the tail of a residual block.

    y           = relu(x + scale · (branch Wᵀ + bias))        rows of C channels, one a pixel; branch has K
    g           = grad · [y > 0]
    grad_x      = g                       grad_branch = scale · g W
    grad_weight = scale · gᵀ branch       grad_bias   = scale · Σ g, over the pixels

In channels-last memory a 1×1 convolution is a matrix product over the pixels. The forward kernel makes the product
tile by tile and joins x to it while it is still in registers: the convolution's own output never reaches memory.
The backward kernel makes g and, for each tile of rows, the sums of the bias; the two products that are left are
plain ones, which the BLAS library does best. The scale is their factor alpha, applied before the only rounding; a
scaled W or g would be rounded once more in half precision.

Only y is kept beside the branch and W, its sign is the mask; without ReLU g is grad itself. No atomics: the same
input gives the same bits.

Bytes moved for M pixels and b bytes an element: forward (2·M·C + M·K + C·K)·b + 4·C; the backward kernel 3·M·C·b.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import conv1x1_cpu
from kernels.arguments import check_channels_last, check_flag, check_floats, check_number, check_tensor, row_pitch
from kernels.bfloat16 import PASSED, cpu_has_bfloat16
from kernels.launch import INTERPRETED, takes_triton
from kernels.maps import channels_last, empty_map
from kernels.products import matmul
from kernels.traffic import Pass, declares, size
from kernels.tuning import CONV1X1_DEEP, CONV1X1_FLOAT32, CONV1X1_MASK, CONV1X1_SHALLOW, Launch


def conv1x1_residual_relu_reference(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool = True
) -> Tensor:
    y = x + scale * torch.conv2d(branch, weight.reshape(*weight.shape[:2], 1, 1), bias)
    return torch.relu(y) if relu else y


@triton.jit  # type: ignore[untyped-decorator]
def _conv1x1_residual_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    branch_ptr,
    weight_ptr,
    bias_ptr,  # None: 0
    mask_ptr,  # None: nothing is masked
    y_ptr,
    sums_ptr,  # None: no sums over the pixels
    x_pitch,
    branch_pitch,
    mask_pitch,
    channel_stride,  # of the weight
    depth_stride,
    scale,
    pixels,
    channels,
    depth,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    # Neighbours share their rows of the branch, which come from memory once; the whole weight stays in the L2 cache.
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    step = tl.arange(0, BLOCK_DEPTH).to(tl.int64)
    product = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for first in range(0, depth, BLOCK_DEPTH):
        k = first + step
        branch_inside = (row < pixels) & (k < depth)[None, :]
        branch = tl.load(branch_ptr + (row * branch_pitch + k[None, :]), mask=branch_inside, other=0.0)
        weight_inside = (k < depth)[:, None] & (column < channels)[None, :]
        weight = tl.load(
            weight_ptr + (column[None, :] * channel_stride + k[:, None] * depth_stride), mask=weight_inside, other=0.0
        )
        if WIDEN:
            branch, weight = branch.to(tl.float32), weight.to(tl.float32)
        product = tl.dot(branch, weight, product, input_precision=PRECISION)
    inside = (row < pixels) & (column < channels)[None, :]
    if bias_ptr is not None:
        product += tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    x = tl.load(x_ptr + (row * x_pitch + column[None, :]), mask=inside, other=0.0).to(tl.float32)
    y = x + scale * product
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # not y > 0: a NaN must come through
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + (row * mask_pitch + column[None, :]), mask=inside, other=0.0).to(tl.float32)
        y = tl.where(mask <= 0, 0.0, y)
    tl.store(y_ptr + (row * channels + column[None, :]), y.to(y_ptr.dtype.element_ty), mask=inside)
    if sums_ptr is not None:
        sums_at = (tl.program_id(0) // tiles).to(tl.int64) * channels + column
        tl.store(sums_ptr + sums_at, tl.sum(tl.where(inside, y, 0.0), 0), mask=column < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _conv1x1_residual_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    y_ptr,
    out_ptr,
    sums_ptr,  # None: the bias wants no gradient
    grad_pitch,
    pixels,
    channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    program_row = (tl.program_id(0) // tiles).to(tl.int64)
    row = program_row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = (row < pixels) & (column < channels)[None, :]
    flat = row * channels + column[None, :]
    grad = tl.load(grad_ptr + (row * grad_pitch + column[None, :]), mask=inside, other=0.0).to(tl.float32)
    grad = tl.where(tl.load(y_ptr + flat, mask=inside, other=0.0).to(tl.float32) <= 0, 0.0, grad)
    tl.store(out_ptr + flat, grad.to(out_ptr.dtype.element_ty), mask=inside)
    if sums_ptr is not None:
        tl.store(sums_ptr + (program_row * channels + column), tl.sum(grad, 0), mask=column < channels)


def rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as its pixels, [N·H·W, C]: a view of channels-last memory, a copy of any other."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h * w, c)


def map_like(pixels: Tensor, x: Tensor) -> Tensor:
    """Pixels as the map that they make, with the batch, height and width of x."""
    n, _, h, w = x.shape
    return pixels.view(n, h, w, pixels.shape[1]).permute(0, 3, 1, 2)


def _launch(branch: Tensor) -> Launch:
    if branch.dtype == torch.float32:
        return CONV1X1_FLOAT32
    return CONV1X1_DEEP if branch.shape[1] > 128 else CONV1X1_SHALLOW


def _precision() -> str:
    """Of float32 products. Unlike allow_tf32, this may be read whichever of its two settings the program made."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@torch.library.custom_op("manylabel::conv1x1_residual_relu", mutates_args=())
def forward(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool) -> Tensor:
    """conv1x1_residual_relu for weight [C, K] in the dtype of x. Nothing is checked."""
    y = empty_map(x)
    if not takes_triton(x):
        return _forward_cpu(x, branch, weight, bias, scale, relu, y)
    _product(x, rows(branch), weight, bias, None, y, None, scale, relu)
    return y


def _product(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    y: Tensor,
    sums: Tensor | None,
    scale: float,
    relu: bool,
) -> None:
    """The kernel, for branch [pixels, K] and weight [C, K] of any strides."""
    launch = _launch(branch)
    (n, channels, h, w), depth = x.shape, branch.shape[1]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        tiles = triton.cdiv(n * h * w, launch.blocks["BLOCK_ROWS"])
        _conv1x1_residual_fwd_kernel[(tiles * triton.cdiv(channels, launch.blocks["BLOCK_CHANNELS"]),)](
            *(x, branch, weight, bias, mask, y, sums, row_pitch(x), branch.stride(0)),
            *(0 if mask is None else row_pitch(mask), weight.stride(0), weight.stride(1), scale),
            *(n * h * w, channels, depth),
            RELU=relu,
            PRECISION=_precision(),
            WIDEN=INTERPRETED,  # Triton's interpreter would multiply the bits of bfloat16
            **launch.options,
        )


def _forward_cpu(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool, y: Tensor
) -> Tensor:
    dtype, x = _product_dtype(x), channels_last(x)
    if _compiled_passes(x):
        product = matmul(_dense(rows(branch).to(dtype)), weight.to(dtype).t())
        conv1x1_cpu.join(x, map_like(product, x), bias, scale, relu, y)
        return y
    # The product goes on from x + scale · bias, which spares a map that would be written and read beside it.
    joined = rows(y) if y.dtype == dtype else y.new_empty(rows(y).shape, dtype=dtype)
    if bias is None:
        joined.copy_(rows(x))
    else:
        torch.add(rows(x), bias.to(dtype), alpha=scale, out=joined)
    _add_product(joined, rows(branch).to(dtype), weight.to(dtype).t(), scale, keep=1)
    if y.dtype != dtype:
        rows(y).copy_(joined)
    return y.relu_() if relu else y


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps between rows or columns: oneDNN's products in bfloat16 read beside rows of an odd length, and a NaN
    there comes through."""
    whole = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if whole else matrix.contiguous()


def _product_dtype(x: Tensor) -> torch.dtype:
    """In which products are computed. A CPU's half products are slow, but where it has instructions for them."""
    if x.is_cuda or (x.dtype == torch.bfloat16 and cpu_has_bfloat16()):
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)


def _compiled_passes(x: Tensor) -> bool:
    """Whether kernels.conv1x1_cpu has what goes with the products."""
    return not x.is_cuda and x.dtype in PASSED and x.numel() > 0


def _add_product(out: Tensor, a: Tensor, b: Tensor, scale: float, keep: int) -> None:
    """out = keep · out + scale · (a @ b). The out= form, which autocast leaves as it is."""
    if scale == 0 and a.numel():
        # BLAS skips a product times 0, and with it a NaN that the sum should show.
        a, scale = a * 0, 1.0
    torch.addmm(out, a, b, beta=keep, alpha=scale, out=out)


@torch.library.custom_op("manylabel::scaled_product", mutates_args=())
def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · (a @ b), rounded once to half precision."""
    dtype = _product_dtype(a)
    a_dense, b_dense = (t if t.is_cuda else _dense(t.to(dtype)) for t in (a, b))
    if a.is_cpu and dtype == torch.float32:
        # What is small is scaled: the weight, or its gradient.
        pixels = a_dense.is_contiguous()
        out = matmul(a_dense, b_dense * scale) if pixels else matmul(a_dense, b_dense).mul_(scale)
        return out.to(a.dtype)
    out = a.new_empty(a.shape[0], b.shape[1], dtype=dtype)
    _add_product(out, a_dense, b_dense, scale, keep=0)
    return out.to(a.dtype)


@torch.library.custom_op("manylabel::conv1x1_input_gradient", mutates_args=())
def input_gradient(grad: Tensor, branch: Tensor, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """[x > 0] · (grad + branch @ weight), a map as grad, and its sums over the pixels [C].

    The gradient of what a ReLU was given, where its output x went through a residual connection, whose gradient is
    grad, and a 1×1 convolution of weight [K, C], whose gradient is branch [N, K, H, W]. Nothing is checked.
    """
    y, dtype = empty_map(grad), torch.promote_types(grad.dtype, torch.float32)
    if not takes_triton(grad):
        if _compiled_passes(grad):
            summed = matmul(_dense(rows(branch)), weight)
            return y, conv1x1_cpu.masked(channels_last(grad), map_like(summed, grad), x, y)
        summed = torch.addmm(rows(grad), rows(branch), weight)
        torch.ops.aten.threshold_backward.grad_input(map_like(summed, x), x, 0, grad_input=y)
        return y, y.sum((0, 2, 3), dtype=dtype)
    tiles = triton.cdiv(len(rows(grad)), _launch(rows(branch)).blocks["BLOCK_ROWS"])
    sums = torch.empty((tiles, grad.shape[1]), dtype=torch.float32, device=grad.device)
    _product(grad, rows(branch), weight.t(), None, x, y, sums, 1.0, False)
    return y, sums.sum(0)


@torch.library.custom_op("manylabel::relu_backward_and_sums", mutates_args=())
def backward(grad: Tensor, y: Tensor, with_sums: bool) -> tuple[Tensor, Tensor]:
    """g, and its sums over the pixels [C], or nothing [0]."""
    out = empty_map(y)
    nothing = y.new_empty(0, dtype=torch.promote_types(y.dtype, torch.float32))
    if not takes_triton(y):
        if _compiled_passes(y):
            found = conv1x1_cpu.masked(channels_last(grad), None, y, out)
            return out, found if with_sums else nothing
        torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=out)
        return out, out.sum((0, 2, 3), dtype=nothing.dtype) if with_sums else nothing
    grad = channels_last(grad)
    n, channels, h, w = y.shape
    tiles = triton.cdiv(n * h * w, CONV1X1_MASK.blocks["BLOCK_ROWS"])
    sums = torch.empty((tiles, channels), dtype=torch.float32, device=y.device) if with_sums else None
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        grid = tiles * triton.cdiv(channels, CONV1X1_MASK.blocks["BLOCK_CHANNELS"])
        _conv1x1_residual_bwd_kernel[(grid,)](
            grad, y, out, sums, row_pitch(grad), n * h * w, channels, **CONV1X1_MASK.options
        )
    return out, nothing if sums is None else sums.sum(0)


@forward.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool) -> Tensor:
    return empty_map(x)


@scaled_product.register_fake
def _(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@input_gradient.register_fake
def _(grad: Tensor, branch: Tensor, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_map(grad), grad.new_empty(grad.shape[1], dtype=torch.promote_types(grad.dtype, torch.float32))


@backward.register_fake
def _(grad: Tensor, y: Tensor, with_sums: bool) -> tuple[Tensor, Tensor]:
    sums = y.new_empty(y.shape[1] if with_sums else 0, dtype=torch.promote_types(y.dtype, torch.float32))
    return empty_map(y), sums


@declares("conv1x1_residual_relu")
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool) -> list[Pass]:
    return [Pass(size(x, branch, weight, bias), size(x))]


@declares("scaled_product")
def _(a: Tensor, b: Tensor, scale: float) -> list[Pass]:
    return [Pass(size(a, b), a.shape[0] * b.shape[1] * a.dtype.itemsize, library=True)]


@declares("conv1x1_input_gradient")
def _(grad: Tensor, branch: Tensor, weight: Tensor, x: Tensor) -> list[Pass]:
    n, channels, h, w = grad.shape
    parts = 4 * channels * triton.cdiv(n * h * w, _launch(rows(branch)).blocks["BLOCK_ROWS"])
    return [Pass(size(grad, branch, weight, x), size(grad) + parts), Pass(parts, 4 * channels, library=True)]


@declares("relu_backward_and_sums")
def _(grad: Tensor, y: Tensor, with_sums: bool) -> list[Pass]:
    n, channels, h, w = y.shape
    parts = 4 * channels * triton.cdiv(n * h * w, CONV1X1_MASK.blocks["BLOCK_ROWS"])
    if not with_sums:
        return [Pass(size(grad, y), size(y))]
    return [Pass(size(grad, y), size(y) + parts), Pass(parts, 4 * channels, library=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, branch, weight, bias, ctx.scale, relu = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    _, for_branch, for_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(weight if for_branch else None, branch if for_weight else None, output if relu else None)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, branch, y = ctx.saved_tensors
    _, for_branch, for_weight, for_bias, *_ = ctx.needs_input_grad
    if y is not None:
        grad, sums = backward(grad, y, for_bias)
    elif for_bias:
        sums = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
    pixels = rows(grad) if for_branch or for_weight else grad
    grad_branch = map_like(scaled_product(pixels, weight, ctx.scale), grad) if for_branch else None
    grad_weight = scaled_product(pixels.t(), rows(branch), ctx.scale) if for_weight else None
    grad_bias = (sums * ctx.scale).to(ctx.bias_dtype) if for_bias else None
    return grad, grad_branch, grad_weight, grad_bias, None, None


forward.register_autograd(_gradients, setup_context=_setup_context)


def _check(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floats("x", x)
    check_channels_last("x", x)
    check_tensor("branch", branch)
    check_channels_last("branch", branch)
    (n, c, h, w), k = x.shape, branch.shape[1]
    _check_operand("branch", branch, [(n, k, h, w)], x.dtype, x)
    _check_operand("weight", weight, [(c, k, 1, 1), (c, k)], torch.float32, x)
    if not weight.is_contiguous():
        raise ValueError(f"weight has strides {weight.stride()}; it takes contiguous memory")
    if bias is not None:
        _check_operand("bias", bias, [(c,)], torch.float32, x)
        if not bias.is_contiguous():
            raise ValueError(f"bias has strides {bias.stride()}; it takes contiguous memory")


def _check_operand(name: str, value: Tensor, shapes: list[tuple[int, ...]], dtype: torch.dtype, x: Tensor) -> None:
    """Of one of these shapes, of this dtype or that of x, and on the device of x."""
    check_tensor(name, value)
    if tuple(value.shape) not in shapes:
        takes = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {tuple(value.shape)}; for x of {tuple(x.shape)} it takes {takes}")
    if value.dtype not in (x.dtype, dtype):
        others = "" if dtype == x.dtype else f" and {dtype}"
        raise ValueError(f"{name} is {value.dtype}; it takes the dtype of x, {x.dtype}{others}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}; it takes the device of x, {x.device}")


def conv1x1_residual_relu(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None, scale: float, relu: bool = True
) -> Tensor:
    """relu(x + scale · (conv1×1(branch, weight) + bias)), computed in float32 and rounded once on the way out.

    Args:
        x: [N, C, H, W] channels-last, float32, float16 or bfloat16, on the CPU float64 too. A channel slice of a
            wider channels-last map will do.
        branch: [N, K, H, W] channels-last, or a channel slice, in dtype and device of x.
        weight: [C, K, 1, 1] or [C, K] contiguous, in the dtype of x or float32. A float32 weight beside half inputs
            is rounded to their dtype first, as autocast does it, and its gradient comes back in float32.
        bias: [C] contiguous, in the dtype of x or float32, which is used as it is; None is 0.
        scale: a finite Python number, 0 or more; no gradient.
        relu: False leaves the ReLU out.

    Returns:
        A new channels-last tensor with the shape and dtype of x. NaN comes through, as in torch.relu, and the
        gradient at 0 is 0. Only the gradients that are wanted are computed. A gradient that arrives in another layout
        is copied to channels-last first. Autocast changes no dtype: float32 inputs are computed in float32, on a GPU
        in TF32 where torch.backends.cuda.matmul allows it.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes. No map is copied to fit.

    Source: the scaled residual of Szegedy et al. 2016, arXiv:1602.07261, section 3.3, with the linear 1×1
        convolution before it, figures 10 to 13.
    """
    _check(x, branch, weight, bias)
    check_number("scale", scale, low=0)
    check_flag("relu", relu)
    y: Tensor = forward(x, branch, weight.flatten(1).to(x.dtype), bias, scale, relu)
    return y
