"""The largest of each 3×3 window, every second pixel, no padding: the pooling of Inception networks, channels-last.

    y[i, j]      = max over a, b in 0..2 of x[2i + a, 2j + b]             tap = 3a + b of the first that is the largest
    grad_x[k, l] = Σ over the windows that hold it of grad[i, j] · [tap[i, j] = 3 (k - 2i) + (l - 2j)]

The tap takes a byte where torch keeps a 64-bit index, and the backward kernel gathers from the four windows or fewer
that a pixel is in: every gradient is written once, nothing is cleared before and no atomics are needed.

Bytes moved for n elements of x of b bytes and m of y: forward n·b + m·(b + 1); backward the same.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_channels_last, check_floats, row_pitch
from kernels.launch import takes_triton
from kernels.maps import channels_last, empty_map
from kernels.traffic import Pass, declares, size
from kernels.tuning import MAX_POOL


def max_pool_reference(x: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(x, 3, 2)


@triton.jit  # type: ignore[untyped-decorator]
def _max_pool_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    tap_ptr,
    x_pitch,
    height,
    width,
    out_height,
    out_width,
    rows,
    channels,
    INDEX: tl.constexpr,  # type of a row's number: divisions in 64 bits take several times as long
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    image, i, j = row // out_width // out_height, row // out_width % out_height, row % out_width
    corner = (image.to(tl.int64) * height + 2 * i) * width + 2 * j
    best = tl.full([BLOCK_ROWS, BLOCK_CHANNELS], float("-inf"), tl.float32)
    tap = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.int32)
    for a in tl.static_range(3):
        for b in tl.static_range(3):
            at = (corner + a * width + b) * x_pitch
            x = tl.load(x_ptr + (at[:, None] + column[None, :]), mask=inside, other=0.0).to(tl.float32)
            larger = (x > best) | (x != x)  # a NaN must come through
            best, tap = tl.where(larger, x, best), tl.where(larger, 3 * a + b, tap)
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    tl.store(y_ptr + at, best.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(tap_ptr + at, tap.to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _max_pool_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    tap_ptr,
    grad_x_ptr,
    grad_pitch,
    height,
    width,
    out_height,
    out_width,
    rows,
    channels,
    INDEX: tl.constexpr,  # type of a row's number: divisions in 64 bits take several times as long
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    image, down, right = row // width // height, row // width % height, row % width
    total = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    for up in tl.static_range(2):
        for left in tl.static_range(2):
            i, j = down // 2 - up, right // 2 - left
            a, b = down - 2 * i, right - 2 * j
            holds = (row < rows) & (i >= 0) & (j >= 0) & (i < out_height) & (j < out_width) & (a < 3) & (b < 3)
            inside = holds[:, None] & wanted[None, :]
            window = (image.to(tl.int64) * out_height + i) * out_width + j
            tap = tl.load(tap_ptr + (window[:, None] * channels + column[None, :]), mask=inside, other=255)
            grad = tl.load(grad_ptr + (window[:, None] * grad_pitch + column[None, :]), mask=inside, other=0.0)
            total += tl.where(tap.to(INDEX) == (3 * a + b)[:, None], grad.to(tl.float32), 0.0)
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    inside = (row < rows)[:, None] & wanted[None, :]
    tl.store(grad_x_ptr + at, total.to(grad_x_ptr.dtype.element_ty), mask=inside)


def _pooled(x: Tensor) -> tuple[int, int]:
    """Height and width of the result."""
    return (x.shape[2] - 1) // 2, (x.shape[3] - 1) // 2


def _grid(x: Tensor) -> tuple[int, int]:
    n, channels, h, w = x.shape
    tile = MAX_POOL.blocks
    return triton.cdiv(n * h * w, tile["BLOCK_ROWS"]), triton.cdiv(channels, tile["BLOCK_CHANNELS"])


def _index(rows: int) -> Any:
    """The narrowest type for the number of a row, and of those that only fill up the last tile."""
    return tl.int32 if rows + MAX_POOL.blocks["BLOCK_ROWS"] < 1 << 31 else tl.int64


def _taps(x: Tensor) -> list[Tensor]:
    """What each of the nine places of all windows holds."""
    h, w = (2 * pixels - 1 for pixels in _pooled(x))
    return [x[:, :, a : a + h : 2, b : b + w : 2] for a in range(3) for b in range(3)]


@torch.library.custom_op("manylabel::max_pool", mutates_args=())
def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the tap of each window."""
    n, channels, h, w = x.shape
    y, tap = (empty_map(x, size=_pooled(x), dtype=dtype) for dtype in (x.dtype, torch.uint8))
    if takes_triton(x):
        rows = n * y.shape[2] * y.shape[3]
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _max_pool_fwd_kernel[_grid(y)](
                x, y, tap, row_pitch(x), h, w, *y.shape[2:], rows, channels, INDEX=_index(rows), **MAX_POOL.options
            )
    elif x.numel():
        values, taps = torch.stack(_taps(x)).max(0)
        y.copy_(values)
        tap.copy_(taps)
    return y, tap


@torch.library.custom_op("manylabel::max_pool_backward", mutates_args=())
def _backward(grad: Tensor, tap: Tensor, height: int, width: int) -> Tensor:
    grad_x = empty_map(grad, size=(height, width))
    n, channels, h, w = grad.shape
    if not takes_triton(grad):
        grad_x.zero_()
        for number, place in enumerate(_taps(grad_x)):
            place += grad * (tap == number)
        return grad_x
    grad = channels_last(grad)
    rows = n * height * width
    with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]
        _max_pool_bwd_kernel[_grid(grad_x)](
            *(grad, tap, grad_x, row_pitch(grad), height, width, h, w, rows, channels),
            INDEX=_index(rows),
            **MAX_POOL.options,
        )
    return grad_x


@_forward.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_map(x, size=_pooled(x)), empty_map(x, size=_pooled(x), dtype=torch.uint8)


@_backward.register_fake
def _(grad: Tensor, tap: Tensor, height: int, width: int) -> Tensor:
    return empty_map(grad, size=(height, width))


@declares("max_pool")
def _(x: Tensor) -> list[Pass]:
    # The last row and column of an even height and width are in no window.
    (n, channels, _, _), (h, w), item = x.shape, _pooled(x), x.dtype.itemsize
    return [Pass(n * channels * (2 * h + 1) * (2 * w + 1) * item, n * channels * h * w * (item + 1))]


@declares("max_pool_backward")
def _(grad: Tensor, tap: Tensor, height: int, width: int) -> list[Pass]:
    n, channels, _, _ = grad.shape
    return [Pass(size(grad, tap), n * channels * height * width * grad.dtype.itemsize)]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y: Tensor
        y, tap = _forward(x)
        ctx.size = x.shape[2:]
        ctx.save_for_backward(tap)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad_x: Tensor = _backward(grad, *ctx.saved_tensors, *ctx.size)
        return grad_x


def max_pool(x: Tensor) -> Tensor:
    """The largest of each 3×3 window, every second pixel in both directions, without padding.

    Args:
        x: [N, C, H, W] in channels-last memory, a channel slice of a wider map too, H and W at least 3; float32,
            float16 or bfloat16, on the CPU float64 too.

    Returns:
        [N, C, (H - 1) // 2, (W - 1) // 2] in channels-last memory. NaN comes through. The gradient goes to the first of
        several largest. On the CPU it is torch's own operation.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    check_floats("x", x)
    check_channels_last("x", x)
    if not x.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it takes one channel or more")
    if min(x.shape[2:]) < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; H and W must be 3 or more")
    if not takes_triton(x):
        return max_pool_reference(x)
    y: Tensor = _MaxPool.apply(x)
    return y
