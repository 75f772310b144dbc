"""Batch norm, ReLU and, where wanted, a residual connection or a concatenation, for channels-last maps.

    x̂      = (x - mean) · rstd                   mean and variance of each channel over N, H and W, or the running ones
    y      = relu(weight · x̂ + bias)             or relu(residual + scale · (weight · x̂ + bias))
    g      = grad · [y > 0], times scale with a residual
    grad_x = weight · rstd · (g - Σg / n - x̂ · Σ(g · x̂) / n)         with running statistics weight · rstd · g

A channels-last map is n = N·H·W rows of C channels. Statistics are made in one pass: each program takes the mean and
the sum of squared deviations of its rows, tile by tile, and joins them by the formula of Chan et al., so that nothing
cancels however far the mean is from 0. A second, small kernel joins the programs' results in a fixed order. The
backward pass reads everything twice: once for the two sums, once for grad_x. The mask is made anew from x, or taken
from y where there is a residual.

Several maps normalise into the channel slices of one output, so that an Inception concatenation copies nothing.

Bytes moved for n·C elements of b bytes: forward 3·n·C·b (x twice, y), with running statistics 2; backward 5·n·C·b
(grad and x twice, grad_x); a residual adds one forward and three backward (y twice, its gradient).

Source: Ioffe and Szegedy 2015 (arXiv:1502.03167); Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample
Variance", equation 2.1.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import (
    check_channels_last,
    check_floats,
    check_number,
    check_operand,
    is_channels_last,
    row_pitch,
)
from kernels.launch import takes_triton
from kernels.tuning import BATCH_NORM, BATCH_NORM_COMBINE, BATCH_NORM_NARROW, BATCH_NORM_PROGRAMS, Launch


def batch_norm_relu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = y if residual is None else residual + scale * y
    return torch.relu(y) if relu else y


@triton.jit  # type: ignore[untyped-decorator]
def _statistics_kernel(  # type: ignore[no-untyped-def]
    x_ptr, mean_ptr, m2_ptr, rows, channels, pitch, rows_each, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    chunk = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    first = chunk.to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    # Seen from the first row the values are small, and so is what the sum over a tile loses.
    origin = tl.load(x_ptr + first * pitch + column, mask=wanted, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    m2 = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (row < last)[:, None] & wanted[None, :]
        x = tl.load(x_ptr + row[:, None] * pitch + column[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin[None, :], 0.0)
        n = tl.minimum(last - start, BLOCK_ROWS).to(tl.float32)
        tile_mean = tl.sum(x, 0) / n
        deviation = tl.where(inside, x - tile_mean[None, :], 0.0)
        apart = tile_mean - mean
        together = count + n
        mean += apart * (n / together)
        m2 += tl.sum(deviation * deviation, 0) + apart * apart * (count * n / together)
        count = together
    at = chunk * channels + column
    tl.store(mean_ptr + at, origin + mean, mask=wanted)
    tl.store(m2_ptr + at, m2, mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_statistics_kernel(  # type: ignore[no-untyped-def]
    part_mean_ptr,
    part_m2_ptr,
    mean_ptr,
    rstd_ptr,
    var_ptr,
    rows,
    channels,
    rows_each,
    chunks,
    eps,
    CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & wanted[None, :]
    at = chunk[:, None] * channels + column[None, :]
    means = tl.load(part_mean_ptr + at, mask=inside, other=0.0)
    m2s = tl.load(part_m2_ptr + at, mask=inside, other=0.0)
    first = chunk.to(tl.int64) * rows_each
    n = tl.maximum(tl.minimum(first + rows_each, rows) - first, 0).to(tl.float32)[:, None]
    # Seen from the first program's mean the others' are small, so that their weighted sum loses no digit.
    origin = tl.load(part_mean_ptr + column, mask=wanted, other=0.0)
    apart = tl.where(inside, means - origin[None, :], 0.0)
    shift = tl.sum(apart * (n / rows), 0)
    apart -= shift[None, :]
    m2 = tl.sum(m2s + apart * apart * n, 0)
    tl.store(mean_ptr + column, origin + shift, mask=wanted)
    tl.store(rstd_ptr + column, 1.0 / tl.sqrt_rn(m2 / rows + eps), mask=wanted)
    tl.store(var_ptr + column, m2 / (rows - 1), mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _normalize_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,  # None: no residual connection
    y_ptr,
    rows,
    channels,
    x_pitch,
    residual_pitch,
    y_pitch,
    scale,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    inside = (row < rows)[:, None] & wanted[None, :]
    slope = tl.load(weight_ptr + column, mask=wanted) * tl.load(rstd_ptr + column, mask=wanted)
    mean = tl.load(mean_ptr + column, mask=wanted)
    bias = tl.load(bias_ptr + column, mask=wanted)
    x = tl.load(x_ptr + row[:, None] * x_pitch + column[None, :], mask=inside).to(tl.float32)
    y = tl.fma(x - mean[None, :], slope[None, :], bias[None, :])
    if residual_ptr is not None:
        y = y * scale
        y += tl.load(residual_ptr + row[:, None] * residual_pitch + column[None, :], mask=inside).to(tl.float32)
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # not y > 0: a NaN must come through
    tl.store(y_ptr + row[:, None] * y_pitch + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _masked_gradient(  # type: ignore[no-untyped-def]
    grad_ptr, y_ptr, at_grad, at_y, inside, centred, slope, bias, RELU: tl.constexpr
):
    grad = tl.load(grad_ptr + at_grad, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        if y_ptr is not None:
            y = tl.load(y_ptr + at_y, mask=inside, other=0.0).to(tl.float32)
        else:
            # The forward pass's arithmetic to the bit, which an fma leaves no compiler to choose, and its rounding:
            # what fell to 0 there has no gradient.
            y = tl.fma(centred, slope, bias).to(grad_ptr.dtype.element_ty).to(tl.float32)
        grad = tl.where(y <= 0, 0.0, grad)
    return grad


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    y_ptr,  # None: the mask is made from x
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    part_ptr,
    rows,
    channels,
    grad_pitch,
    x_pitch,
    y_pitch,
    rows_each,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    chunk = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    rstd = tl.load(rstd_ptr + column, mask=wanted)[None, :]
    slope = tl.load(weight_ptr + column, mask=wanted)[None, :] * rstd
    mean = tl.load(mean_ptr + column, mask=wanted)[None, :]
    bias = tl.load(bias_ptr + column, mask=wanted)[None, :]
    first = chunk.to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    product = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = (start + tl.arange(0, BLOCK_ROWS).to(tl.int64))[:, None]
        inside = (row < last) & wanted[None, :]
        x = tl.load(x_ptr + row * x_pitch + column[None, :], mask=inside, other=0.0).to(tl.float32)
        centred = x - mean
        at_grad, at_y = row * grad_pitch + column[None, :], row * y_pitch + column[None, :]
        grad = _masked_gradient(grad_ptr, y_ptr, at_grad, at_y, inside, centred, slope, bias, RELU)
        total += tl.sum(grad, 0)
        product += tl.sum(tl.where(inside, grad * centred * rstd, 0.0), 0)
    at = chunk * 2 * channels + column
    tl.store(part_ptr + at, total, mask=wanted)
    tl.store(part_ptr + at + channels, product, mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_sums_kernel(  # type: ignore[no-untyped-def]
    part_ptr, sums_ptr, columns, chunks, scale, CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < columns
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & wanted[None, :]
    parts = tl.load(part_ptr + chunk[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tl.store(sums_ptr + column, tl.sum(parts, 0) * scale, mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _grad_x_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    y_ptr,  # None: the mask is made from x
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,  # None: running statistics
    grad_x_ptr,
    grad_residual_ptr,  # None: no residual connection
    rows,
    channels,
    grad_pitch,
    x_pitch,
    y_pitch,
    scale,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < channels
    inside = (row < rows) & wanted[None, :]
    rstd = tl.load(rstd_ptr + column, mask=wanted)[None, :]
    slope = tl.load(weight_ptr + column, mask=wanted)[None, :] * rstd
    mean = tl.load(mean_ptr + column, mask=wanted)[None, :]
    bias = tl.load(bias_ptr + column, mask=wanted)[None, :]
    x = tl.load(x_ptr + row * x_pitch + column[None, :], mask=inside, other=0.0).to(tl.float32)
    centred = x - mean
    at_grad, at_y = row * grad_pitch + column[None, :], row * y_pitch + column[None, :]
    grad = _masked_gradient(grad_ptr, y_ptr, at_grad, at_y, inside, centred, slope, bias, RELU)
    at = row * channels + column[None, :]
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + at, grad.to(grad_residual_ptr.dtype.element_ty), mask=inside)
    grad *= scale
    if sums_ptr is not None:
        total = tl.load(sums_ptr + column, mask=wanted)[None, :] / rows
        product = tl.load(sums_ptr + channels + column, mask=wanted)[None, :] / rows
        grad = grad - total - centred * rstd * product
    tl.store(grad_x_ptr + at, (slope * grad).to(grad_x_ptr.dtype.element_ty), mask=inside)


def _row_count(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _launch(x: Tensor) -> Launch:
    return BATCH_NORM_NARROW if x.shape[1] <= BATCH_NORM_NARROW.blocks["BLOCK_CHANNELS"] else BATCH_NORM


def _chunks(x: Tensor) -> tuple[int, int, int]:
    """Programs that share the rows, rows of each, and programs that share the channels."""
    tile = _launch(x).blocks
    columns = triton.cdiv(x.shape[1], tile["BLOCK_CHANNELS"])
    tiles = triton.cdiv(_row_count(x), tile["BLOCK_ROWS"])
    each = triton.cdiv(tiles, max(1, BATCH_NORM_PROGRAMS // columns))
    return triton.cdiv(tiles, each), each * tile["BLOCK_ROWS"], columns


def _statistics(x: Tensor, eps: float, mean: Tensor, rstd: Tensor, var: Tensor) -> None:
    """Mean, 1 / standard deviation and unbiased variance of the batch, into [C] each."""
    (chunks, each, columns), channels = _chunks(x), x.shape[1]
    parts = torch.empty((2, chunks, channels), dtype=torch.float32, device=x.device)
    _statistics_kernel[(chunks, columns)](
        x, parts[0], parts[1], _row_count(x), channels, row_pitch(x), each, **_launch(x).options
    )
    grid = (triton.cdiv(channels, BATCH_NORM_COMBINE.blocks["BLOCK_CHANNELS"]),)
    _combine_statistics_kernel[grid](
        *(parts[0], parts[1], mean, rstd, var, _row_count(x), channels, each, chunks, eps),
        CHUNKS=triton.next_power_of_2(chunks),
        **BATCH_NORM_COMBINE.options,
    )


def _slices(xs: Sequence[Tensor]) -> list[slice]:
    """Channels of each map in their concatenation."""
    edges = [0]
    for x in xs:
        edges.append(edges[-1] + x.shape[1])
    return [slice(a, b) for a, b in pairwise(edges)]


def _into(
    y: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residual: Tensor | None,
    statistics: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> None:
    """Writes y; statistics [3, ΣC] are mean, 1 / standard deviation and variance, made here in training."""
    for x, weight, bias, part in zip(xs, weights, biases, _slices(xs), strict=True):
        mean, rstd, var = statistics[:, part]
        out = y[:, part]
        if not takes_triton(x):
            out.copy_(_plain(x, weight, bias, residual, mean, rstd, var, training, eps, relu, scale))
            continue
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            if training:
                _statistics(x, eps, mean, rstd, var)
            rows, channels = _row_count(x), x.shape[1]
            tile = _launch(x).blocks
            grid = (triton.cdiv(rows, tile["BLOCK_ROWS"]), triton.cdiv(channels, tile["BLOCK_CHANNELS"]))
            pitches = (row_pitch(x), 0 if residual is None else row_pitch(residual), row_pitch(out))
            _normalize_kernel[grid](
                *(x, weight, bias, mean, rstd, residual, out, rows, channels, *pitches, scale),
                RELU=relu,
                **_launch(x).options,
            )


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)  # torch's kernel is many times slower on a slice
    if training:
        # With a momentum of 1 the running statistics are the batch's, unbiased variance included.
        y, batch_mean, batch_rstd = torch.native_batch_norm(x, weight, bias, mean, var, True, 1.0, eps)
        mean.copy_(batch_mean)
        rstd.copy_(batch_rstd)
    else:
        y = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
    if residual is not None:
        y = torch.addcmul(residual, y, y.new_ones(()), value=scale)
    return y.relu_() if relu else y


def _prepare(xs: Sequence[Tensor], running: Sequence[Tensor], training: bool, eps: float) -> Tensor:
    """Room for the statistics [3, ΣC]; the running ones, all means first, where these are used."""
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    if training:
        return torch.zeros((3, sum(x.shape[1] for x in xs)), dtype=dtype, device=xs[0].device)
    mean, var = torch.cat(list(running[: len(xs)])), torch.cat(list(running[len(xs) :]))
    return torch.stack((mean, (var + eps).rsqrt(), var))


def _run(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    statistics = _prepare(xs, running, training, eps)
    if len(xs) == 1 and not takes_triton(xs[0]) and xs[0].numel():
        mean, rstd, var = statistics
        y = _plain(xs[0], weights[0], biases[0], residual, mean, rstd, var, training, eps, relu, scale)
        return y.contiguous(memory_format=torch.channels_last), statistics
    y = _allocate(xs)
    if y.numel():
        _into(y, xs, weights, biases, residual, statistics, training, eps, relu, scale)
    return y, statistics


# One map has an operator of its own: the dispatcher takes a millisecond to go through lists.
@torch.library.custom_op("manylabel::batch_norm_relu", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    running = [] if running_mean is None or running_var is None else [running_mean, running_var]
    return _run([x], [weight], [bias], running, residual, training, eps, relu, scale)


@torch.library.custom_op("manylabel::batch_norm_relu_concat", mutates_args=())
def _forward_concat(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return _run(xs, weights, biases, running, None, training, eps, True, 1.0)


@torch.library.custom_op("manylabel::batch_norm_relu_into", mutates_args=("out",))
def _forward_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> Tensor:
    running = [] if running_mean is None or running_var is None else [running_mean, running_var]
    statistics = _prepare([x], running, training, eps)
    if out.numel():
        _into(out, [x], [weight], [bias], residual, statistics, training, eps, relu, scale)
    return statistics


def _allocate(xs: Sequence[Tensor]) -> Tensor:
    n, _, h, w = xs[0].shape
    channels = sum(x.shape[1] for x in xs)
    return torch.empty((n, h, w, channels), dtype=xs[0].dtype, device=xs[0].device).permute(0, 3, 1, 2)


def _run_backward(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    y: Tensor,
    statistics: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    with_residual: bool,
    scale: float,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the maps, of weights and biases [2, ΣC] (biases first), and of the residual (or an empty one)."""
    grad_xs: list[Tensor] = []
    sums = torch.zeros((2, statistics.shape[1]), dtype=statistics.dtype, device=statistics.device)
    grad_residual = _allocate([y]) if with_residual else y.new_empty(0)
    if not y.numel():
        return [_allocate([x]) for x in xs], sums, grad_residual
    if not is_channels_last(grad):
        grad = grad.contiguous(memory_format=torch.channels_last)
    for x, weight, bias, part in zip(xs, weights, biases, _slices(xs), strict=True):
        mean, rstd, var = statistics[:, part]
        g = grad[:, part]
        if not takes_triton(x):
            x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
            g = torch.ops.aten.threshold_backward(g, y[:, part], 0) if relu else g
            if with_residual:
                grad_residual.copy_(g)
                g = g * scale
            found = torch.ops.aten.native_batch_norm_backward(
                g, x, weight, mean, var, mean, rstd, training, eps, [True, True, True]
            )
            grad_xs.append(found[0].contiguous(memory_format=torch.channels_last))
            sums[0, part], sums[1, part] = found[2], found[1]
            continue
        launch, (chunks, each, columns) = _launch(x), _chunks(x)
        rows, channels = _row_count(x), x.shape[1]
        masks, grad_x = y[:, part] if with_residual else None, _allocate([x])
        grad_xs.append(grad_x)
        parts = torch.empty((chunks, 2 * channels), dtype=torch.float32, device=x.device)
        own = torch.empty((2 * channels,), dtype=torch.float32, device=x.device)
        pitches = (row_pitch(g), row_pitch(x), row_pitch(y))
        inputs = (g, x, masks, weight, bias, mean, rstd)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _sums_kernel[(chunks, columns)](
                *(*inputs, parts, rows, channels, *pitches, each), RELU=relu, **launch.options
            )
            _combine_sums_kernel[(triton.cdiv(2 * channels, BATCH_NORM_COMBINE.blocks["BLOCK_CHANNELS"]),)](
                *(parts, own, 2 * channels, chunks, scale),
                CHUNKS=triton.next_power_of_2(chunks),
                **BATCH_NORM_COMBINE.options,
            )
            _grad_x_kernel[(triton.cdiv(rows, launch.blocks["BLOCK_ROWS"]), columns)](
                *inputs,
                own if training else None,
                grad_x,
                grad_residual if with_residual else None,
                *(rows, channels, *pitches, scale),
                RELU=relu,
                **launch.options,
            )
        sums[:, part] = own.view(2, channels)
    return grad_xs, sums, grad_residual


@torch.library.custom_op("manylabel::batch_norm_relu_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    statistics: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    with_residual: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads, sums, grad_residual = _run_backward(
        grad, [x], [weight], [bias], y, statistics, training, eps, relu, with_residual, scale
    )
    return grads[0], sums, grad_residual


@torch.library.custom_op("manylabel::batch_norm_relu_concat_backward", mutates_args=())
def _backward_concat(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    y: Tensor,
    statistics: Tensor,
    training: bool,
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    return _run_backward(grad, xs, weights, biases, y, statistics, training, eps, True, False, 1.0)[:2]


def _fake_statistics(xs: Sequence[Tensor]) -> Tensor:
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    return xs[0].new_empty((3, sum(x.shape[1] for x in xs)), dtype=dtype)


@_forward.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _allocate([x]), _fake_statistics([x])


@_forward_concat.register_fake
def _(xs: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return _allocate(xs), _fake_statistics(xs)


@_forward_into.register_fake
def _(out: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _fake_statistics([x])


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics, *_, with_residual, _ = rest
    grad_residual = _allocate([y]) if with_residual else y.new_empty(0)
    return _allocate([x]), torch.empty_like(statistics[:2]), grad_residual


@_backward_concat.register_fake
def _(grad: Tensor, xs: Sequence[Tensor], *rest: Any) -> tuple[list[Tensor], Tensor]:
    _, _, _, statistics, *_ = rest
    return [_allocate([x]) for x in xs], torch.empty_like(statistics[:2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, _, residual, *ctx.options = inputs
    ctx.with_residual = residual is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *options, scale = ctx.options
    grad_x, sums, grad_residual = _backward(grad, *ctx.saved_tensors, *options, ctx.with_residual, scale)
    residual = grad_residual if ctx.with_residual else None
    return grad_x, sums[1], sums[0], None, None, residual, None, None, None, None


def _setup_context_concat(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    xs, weights, biases, running, *ctx.options = inputs
    ctx.maps, ctx.running = len(xs), len(running)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*xs, *weights, *biases, *output)


def _gradients_concat(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *inputs, y, statistics = ctx.saved_tensors
    k = ctx.maps
    xs, weights, biases = inputs[:k], inputs[k : 2 * k], inputs[2 * k :]
    grad_xs, sums = _backward_concat(grad, xs, weights, biases, y, statistics, *ctx.options)
    grad_biases, grad_weights = ([row[part] for part in _slices(xs)] for row in sums)
    return grad_xs, grad_weights, grad_biases, [None] * ctx.running, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
_forward_concat.register_autograd(_gradients_concat, setup_context=_setup_context_concat)


def _check_map(name: str, x: Tensor, like: Tensor) -> None:
    check_floats(name, x)
    check_channels_last(name, x)
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"{name} is {x.dtype} on {x.device}; it takes {like.dtype} on {like.device}")
    if (x.shape[0], *x.shape[2:]) != (like.shape[0], *like.shape[2:]):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; N, H and W must be those of {tuple(like.shape)}")


def _check_vector(name: str, v: Tensor, x: Tensor) -> None:
    dtype = torch.promote_types(x.dtype, torch.float32)
    if v.dtype != dtype:
        raise ValueError(f"{name} is {v.dtype}; for {x.dtype} maps it takes {dtype}")
    check_operand(name, v, x.shape[1:2], "maps", x)


def _check(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    if not xs:
        raise ValueError("xs is empty; it takes one map or more")
    vectors = {"weight": weights, "bias": biases, "running_mean": running_means, "running_var": running_vars}
    kept = bool(running_means or running_vars)
    if not (kept or training):
        raise ValueError("running_mean and running_var are None; without training they are needed")
    for name, given in vectors.items():
        if len(given) != len(xs) and (kept or name in ("weight", "bias")):
            raise ValueError(f"{name}: {len(given)} given; it takes one for each of {len(xs)} maps")
    for i, x in enumerate(xs):
        _check_map("x" if len(xs) == 1 else f"xs[{i}]", x, xs[0])
        for name, given in vectors.items():
            if given:
                _check_vector(name if len(xs) == 1 else f"{name}[{i}]", given[i], x)
    check_number("eps", eps, low=1e-12)
    check_number("momentum", momentum, 0, 1)
    if training and _row_count(xs[0]) == 1:
        raise ValueError(f"x has shape {tuple(xs[0].shape)}; training takes more than one value a channel")


def _keep(running_means: Sequence[Tensor], running_vars: Sequence[Tensor], statistics: Tensor, momentum: float) -> None:
    """Moves the running statistics towards those of the batch, all maps' in one launch."""
    parts = _slices([mean[None] for mean in running_means])
    batch = [statistics[row, part] for row in (0, 2) for part in parts]
    with torch.no_grad():
        torch._foreach_lerp_([*running_means, *running_vars], batch, momentum)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(x)) or relu(residual + scale · batch_norm(x)), as torch.nn.BatchNorm2d and torch.relu.

    Args:
        x: [N, C, H, W] in channels-last memory, a channel slice of a wider map too; float32, float16 or bfloat16,
            on the CPU float64 too.
        weight, bias: [C], float32 (float64 for float64 maps).
        running_mean, running_var: [C] of the same dtype; in training they move towards the batch's, unbiased variance
            included. None, both, keeps none.
        training: whether the batch's statistics normalise, or the running ones.
        momentum: share of the batch in the running statistics, in [0, 1].
        eps: added to the variance, above 0.
        relu: False leaves the ReLU out.
        residual: shape, dtype and layout as x; its gradient comes back.
        scale: of the normalised map beside a residual, 0 or more; no gradient.
        out: a channels-last map, or a channel slice of one, that receives the result; takes no gradient.

    Returns:
        A new channels-last map in the dtype of x, or `out`. Computed in float32 and rounded once. NaN comes through.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    means = [] if running_mean is None else [running_mean]
    variances = [] if running_var is None else [running_var]
    _check([x], [weight], [bias], means, variances, training, momentum, eps)
    check_number("scale", scale, low=0)
    if residual is not None:
        _check_map("residual", residual, x)
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}; it takes that of x, {tuple(x.shape)}")
    elif scale != 1:
        raise ValueError(f"scale is {scale}; without a residual it takes 1")
    y: Tensor
    arguments = (x, weight, bias, running_mean, running_var, residual, training, eps, relu, scale)
    if out is None:
        y, statistics = _forward(*arguments)
    else:
        _check_out(out, x, (x, weight, bias, residual))
        y, statistics = out, _forward_into(out, *arguments)
    if training and means and x.numel():
        _keep(means, variances, statistics, momentum)
    return y


def _check_out(out: Tensor, x: Tensor, inputs: Sequence[Tensor | None]) -> None:
    _check_map("out", out, x)
    if out.shape != x.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; it takes that of x, {tuple(x.shape)}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        raise ValueError("out takes no gradient; batch_norm_relu_concat writes slices of one map and has one")


def batch_norm_relu_concat(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running_means: Sequence[Tensor] | None,
    running_vars: Sequence[Tensor] | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Concatenation over channels of relu(batch_norm(x)) of several maps, each written to its place at once.

    Args:
        xs: maps [N, C_i, H, W] as batch_norm_relu takes them, equal in N, H, W, dtype and device.
        weights, biases, running_means, running_vars: one of each a map, as batch_norm_relu takes them.
        training, momentum, eps: as there.

    Returns:
        [N, ΣC_i, H, W] in channels-last memory.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    means, variances = list(running_means or []), list(running_vars or [])
    _check(xs, weights, biases, means, variances, training, momentum, eps)
    y: Tensor
    y, statistics = _forward_concat(list(xs), list(weights), list(biases), [*means, *variances], training, eps)
    if training and means and y.numel():
        _keep(means, variances, statistics, momentum)
    return y
