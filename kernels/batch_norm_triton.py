"""The Triton kernels of kernels.batch_norm, whose formulas they follow, and their launches.

Each takes several maps of one batch, height and width in one launch, as tuples of pointers: a program finds its map and
its channels of it by its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import row_pitch
from kernels.maps import empty_map
from kernels.traffic import Pass
from kernels.tuning import (
    BATCH_NORM,
    BATCH_NORM_COMBINE,
    BATCH_NORM_NARROW,
    BATCH_NORM_PROGRAMS,
    BATCH_NORM_SUMS,
    Launch,
)


@triton.jit
def _pick(pointers, which):  # type: ignore[no-untyped-def]
    pointer = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        if which == i:
            pointer = pointers[i]
    return pointer


@triton.jit
def _pick_size(sizes, which):  # type: ignore[no-untyped-def]
    # A size of 1 arrives as a constant, which a branch may not replace by a variable: 0 makes it one.
    size = sizes[0] + tl.zeros((), tl.int32)
    for i in tl.static_range(1, len(sizes)):
        if which == i:
            size = sizes[i] + tl.zeros((), tl.int32)
    return size


@triton.jit  # type: ignore[untyped-decorator]
def _statistics_kernel(  # type: ignore[no-untyped-def]
    x_ptrs,
    x_pitches,
    widths,
    offsets,
    part_ptr,
    rows,
    rows_each,
    total,
    TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    chunk, which = tl.program_id(0), tl.program_id(1) // TILES
    x_ptr, pitch, width = _pick(x_ptrs, which), _pick_size(x_pitches, which), _pick_size(widths, which)
    column = (tl.program_id(1) % TILES) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < width
    first = chunk.to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    # Seen from the first row the values are small, and so is what the sum over a tile loses.
    origin = tl.load(x_ptr + first * pitch + column, mask=wanted, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    m2 = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in tl.range(first, last, BLOCK_ROWS, num_stages=STAGES):
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
    at = chunk * 2 * total + _pick_size(offsets, which) + column
    tl.store(part_ptr + at, origin + mean, mask=wanted)
    tl.store(part_ptr + at + total, m2, mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_statistics_kernel(  # type: ignore[no-untyped-def]
    part_ptr, statistics_ptr, rows, rows_each, total, chunks, eps, CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    column = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < total
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk < chunks)[:, None] & wanted[None, :]
    at = chunk[:, None] * (2 * total) + column[None, :]
    means = tl.load(part_ptr + at, mask=inside, other=0.0)
    m2s = tl.load(part_ptr + at + total, mask=inside, other=0.0)
    first = chunk.to(tl.int64) * rows_each
    n = tl.maximum(tl.minimum(first + rows_each, rows) - first, 0).to(tl.float32)[:, None]
    # Seen from the first program's mean the others' are small, so that their weighted sum loses no digit.
    origin = tl.load(part_ptr + column, mask=wanted, other=0.0)
    apart = tl.where(inside, means - origin[None, :], 0.0)
    shift = tl.sum(apart * (n / rows), 0)
    apart -= shift[None, :]
    m2 = tl.sum(m2s + apart * apart * n, 0)
    tl.store(statistics_ptr + column, origin + shift, mask=wanted)
    tl.store(statistics_ptr + total + column, 1.0 / tl.sqrt_rn(m2 / rows + eps), mask=wanted)
    tl.store(statistics_ptr + 2 * total + column, m2 / (rows - 1), mask=wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _rstd(ptr, column, wanted, eps, FROM_VARIANCE: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(ptr + column, mask=wanted, other=1.0)
    return 1.0 / tl.sqrt_rn(value + eps) if FROM_VARIANCE else value


@triton.jit  # type: ignore[untyped-decorator]
def _normalize_kernel(  # type: ignore[no-untyped-def]
    x_ptrs,
    weight_ptrs,
    bias_ptrs,
    mean_ptrs,
    spread_ptrs,
    y_ptrs,
    residual_ptr,  # None: no residual connection
    x_pitches,
    y_pitches,
    residual_pitch,
    widths,
    rows,
    eps,
    scale,
    FROM_VARIANCE: tl.constexpr,
    RELU: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    which = tl.program_id(1) // TILES
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(1) % TILES) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < _pick_size(widths, which)
    inside = (row < rows)[:, None] & wanted[None, :]
    rstd = _rstd(_pick(spread_ptrs, which), column, wanted, eps, FROM_VARIANCE)
    slope = tl.load(_pick(weight_ptrs, which) + column, mask=wanted) * rstd
    mean = tl.load(_pick(mean_ptrs, which) + column, mask=wanted)
    bias = tl.load(_pick(bias_ptrs, which) + column, mask=wanted)
    x_at = row[:, None] * _pick_size(x_pitches, which) + column[None, :]
    x = tl.load(_pick(x_ptrs, which) + x_at, mask=inside).to(tl.float32)
    y = tl.fma(x - mean[None, :], slope[None, :], bias[None, :])
    if residual_ptr is not None:
        y = y * scale
        y += tl.load(residual_ptr + row[:, None] * residual_pitch + column[None, :], mask=inside).to(tl.float32)
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # not y > 0: a NaN must come through
    y_ptr = _pick(y_ptrs, which) + row[:, None] * _pick_size(y_pitches, which) + column[None, :]
    tl.store(y_ptr, y.to(y_ptr.dtype.element_ty), mask=inside)


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
    grad_ptrs,
    x_ptrs,
    y_ptr,  # None: the mask is made from x
    weight_ptrs,
    bias_ptrs,
    mean_ptrs,
    spread_ptrs,
    part_ptr,
    grad_pitches,
    x_pitches,
    y_pitch,
    widths,
    offsets,
    rows,
    rows_each,
    total,
    eps,
    FROM_VARIANCE: tl.constexpr,
    RELU: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    chunk, which = tl.program_id(0), tl.program_id(1) // TILES
    column = (tl.program_id(1) % TILES) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < _pick_size(widths, which)
    rstd = _rstd(_pick(spread_ptrs, which), column, wanted, eps, FROM_VARIANCE)[None, :]
    slope = tl.load(_pick(weight_ptrs, which) + column, mask=wanted)[None, :] * rstd
    mean = tl.load(_pick(mean_ptrs, which) + column, mask=wanted)[None, :]
    bias = tl.load(_pick(bias_ptrs, which) + column, mask=wanted)[None, :]
    x_ptr, x_pitch = _pick(x_ptrs, which), _pick_size(x_pitches, which)
    grad_ptr, grad_pitch = _pick(grad_ptrs, which), _pick_size(grad_pitches, which)
    first = chunk.to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    sums = tl.zeros([BLOCK_CHANNELS], tl.float32)
    products = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in tl.range(first, last, BLOCK_ROWS, num_stages=STAGES):
        row = (start + tl.arange(0, BLOCK_ROWS).to(tl.int64))[:, None]
        inside = (row < last) & wanted[None, :]
        x = tl.load(x_ptr + row * x_pitch + column[None, :], mask=inside, other=0.0).to(tl.float32)
        centred = x - mean
        at_grad, at_y = row * grad_pitch + column[None, :], row * y_pitch + column[None, :]
        grad = _masked_gradient(grad_ptr, y_ptr, at_grad, at_y, inside, centred, slope, bias, RELU)
        sums += tl.sum(grad, 0)
        products += tl.sum(tl.where(inside, grad * centred * rstd, 0.0), 0)
    at = chunk * 2 * total + _pick_size(offsets, which) + column
    tl.store(part_ptr + at, sums, mask=wanted)
    tl.store(part_ptr + at + total, products, mask=wanted)


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
    grad_ptrs,
    x_ptrs,
    y_ptr,  # None: the mask is made from x
    weight_ptrs,
    bias_ptrs,
    mean_ptrs,
    spread_ptrs,
    sums_ptr,  # None: running statistics
    grad_x_ptrs,
    grad_residual_ptr,  # None: no residual connection
    grad_pitches,
    x_pitches,
    y_pitch,
    grad_x_pitches,
    widths,
    offsets,
    rows,
    total,
    eps,
    scale,
    FROM_VARIANCE: tl.constexpr,
    RELU: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    which = tl.program_id(1) // TILES
    row = (tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = (tl.program_id(1) % TILES) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = column < _pick_size(widths, which)
    inside = (row < rows) & wanted[None, :]
    rstd = _rstd(_pick(spread_ptrs, which), column, wanted, eps, FROM_VARIANCE)[None, :]
    slope = tl.load(_pick(weight_ptrs, which) + column, mask=wanted)[None, :] * rstd
    mean = tl.load(_pick(mean_ptrs, which) + column, mask=wanted)[None, :]
    bias = tl.load(_pick(bias_ptrs, which) + column, mask=wanted)[None, :]
    x_at = row * _pick_size(x_pitches, which) + column[None, :]
    centred = tl.load(_pick(x_ptrs, which) + x_at, mask=inside, other=0.0).to(tl.float32) - mean
    at_grad, at_y = row * _pick_size(grad_pitches, which) + column[None, :], row * y_pitch + column[None, :]
    grad = _masked_gradient(_pick(grad_ptrs, which), y_ptr, at_grad, at_y, inside, centred, slope, bias, RELU)
    at = row * _pick_size(grad_x_pitches, which) + column[None, :]
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + at, grad.to(grad_residual_ptr.dtype.element_ty), mask=inside)
    grad *= scale
    if sums_ptr is not None:
        sums_at = sums_ptr + _pick_size(offsets, which) + column
        total_grad = tl.load(sums_at, mask=wanted)[None, :] / rows
        product = tl.load(sums_at + total, mask=wanted)[None, :] / rows
        grad = grad - total_grad - centred * rstd * product
    grad_x_ptr = _pick(grad_x_ptrs, which) + at
    tl.store(grad_x_ptr, (slope * grad).to(grad_x_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Grid:
    """How programs share the rows and channels of several maps.

    Attributes:
        launch, sums: rows of the tuning table, where maps are written and where sums over the rows are made.
        rows: N·H·W.
        widths, offsets: channels of each map, and where they begin in the concatenation.
        total: channels of all maps.
        chunks, rows_each: programs that share the rows where sums are made, and rows of each.
    """

    launch: Launch
    sums: Launch
    rows: int
    widths: tuple[int, ...]
    offsets: tuple[int, ...]
    total: int
    chunks: int
    rows_each: int

    @property
    def reduction(self) -> tuple[tuple[int, int], dict[str, int]]:
        """Programs that make sums, and their options."""
        tiles = _tiles(self.widths, self.sums)
        return (self.chunks, tiles * len(self.widths)), {"TILES": tiles, **self.sums.options}

    @property
    def elementwise(self) -> tuple[tuple[int, int], dict[str, int]]:
        """Programs that write a map, and their options."""
        tiles = _tiles(self.widths, self.launch)
        programs = triton.cdiv(self.rows, self.launch.blocks["BLOCK_ROWS"]), tiles * len(self.widths)
        return programs, {"TILES": tiles, **self.launch.options}

    def combine(self, columns: int) -> tuple[tuple[int], dict[str, int]]:
        """Programs and options where the programs' sums are joined."""
        programs = triton.cdiv(columns, BATCH_NORM_COMBINE.blocks["BLOCK_CHANNELS"])
        return (programs,), {"CHUNKS": triton.next_power_of_2(self.chunks), **BATCH_NORM_COMBINE.options}


def _tiles(widths: Sequence[int], launch: Launch) -> int:
    """Programs that share the channels of the widest map."""
    tiles: int = triton.cdiv(max(widths), launch.blocks["BLOCK_CHANNELS"])
    return tiles


def launches(widths: Sequence[int]) -> tuple[Launch, Launch]:
    """Rows of the tuning table for maps of these widths: where maps are written, and where sums are made."""
    narrow = max(widths) <= BATCH_NORM_NARROW.blocks["BLOCK_CHANNELS"]
    return BATCH_NORM_NARROW if narrow else BATCH_NORM, BATCH_NORM_SUMS


def grid_of(xs: Sequence[Tensor]) -> Grid:
    widths = tuple(x.shape[1] for x in xs)
    edges = (0, *accumulate(widths))
    launch, sums = launches(widths)
    n, _, h, w = xs[0].shape
    row_tiles = triton.cdiv(n * h * w, sums.blocks["BLOCK_ROWS"])
    each = triton.cdiv(row_tiles, max(1, BATCH_NORM_PROGRAMS // (_tiles(widths, sums) * len(xs))))
    return Grid(
        launch,
        sums,
        n * h * w,
        widths,
        edges[:-1],
        edges[-1],
        chunks=triton.cdiv(row_tiles, each),
        rows_each=each * sums.blocks["BLOCK_ROWS"],
    )


def _pitches(maps: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(row_pitch(x) for x in maps)


def statistics(xs: Sequence[Tensor], eps: float) -> Tensor:
    """Means, 1 / standard deviations and unbiased variances of the batch, [3, ΣC]."""
    with torch.cuda.device_of(xs[0]):  # type: ignore[no-untyped-call]
        return _statistics(xs, eps)


def _statistics(xs: Sequence[Tensor], eps: float) -> Tensor:
    grid, device = grid_of(xs), xs[0].device
    parts = torch.empty((grid.chunks, 2 * grid.total), dtype=torch.float32, device=device)
    statistics = torch.empty((3, grid.total), dtype=torch.float32, device=device)
    programs, options = grid.reduction
    _statistics_kernel[programs](
        *(tuple(xs), _pitches(xs), grid.widths, grid.offsets, parts, grid.rows, grid.rows_each, grid.total), **options
    )
    combining, options = grid.combine(grid.total)
    _combine_statistics_kernel[combining](
        parts, statistics, grid.rows, grid.rows_each, grid.total, grid.chunks, eps, **options
    )
    return statistics


def forward(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    ys: Sequence[Tensor],
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> Tensor:
    """Writes ys; the statistics [3, ΣC] in training, else [3, 0]."""
    with torch.cuda.device_of(xs[0]):  # type: ignore[no-untyped-call]
        statistics = _statistics(xs, eps) if training else xs[0].new_empty((3, 0), dtype=torch.float32)
        means, spreads = of_each(xs, statistics, running, training)
        grid = grid_of(xs)
        programs, options = grid.elementwise
        _normalize_kernel[programs](
            *(tuple(xs), tuple(weights), tuple(biases), means, spreads, tuple(ys), residual),
            *(_pitches(xs), _pitches(ys), 0 if residual is None else row_pitch(residual)),
            *(grid.widths, grid.rows, eps, scale),
            FROM_VARIANCE=not training,
            RELU=relu,
            **options,
        )
    return statistics


def of_each(
    xs: Sequence[Tensor], statistics: Tensor, running: Sequence[Tensor], training: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Means and spreads [C] of each map: 1 / standard deviations of the batch, or running variances."""
    if not training:
        return tuple(running[: len(xs)]), tuple(running[len(xs) :])
    widths = [x.shape[1] for x in xs]
    mean, rstd = statistics[0], statistics[1]
    return mean.split_with_sizes(widths), rstd.split_with_sizes(widths)


def backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    means: Sequence[Tensor],
    spreads: Sequence[Tensor],
    y: Tensor | None,
    places: Sequence[Tensor],
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """Writes the gradients of xs to their places; the sums, and the gradient of the residual where there is y."""
    grid, device = grid_of(xs), xs[0].device
    parts = torch.empty((grid.chunks, 2 * grid.total), dtype=torch.float32, device=device)
    sums = torch.empty((2, grid.total), dtype=torch.float32, device=device)
    grad_residual = None if y is None else empty_map(y)
    inputs = (tuple(grads), tuple(xs), y, tuple(weights), tuple(biases), tuple(means), tuple(spreads))
    pitches = (_pitches(grads), _pitches(xs), 0 if y is None else row_pitch(y))
    modes = {"FROM_VARIANCE": not training, "RELU": relu}
    with torch.cuda.device_of(xs[0]):  # type: ignore[no-untyped-call]
        programs, options = grid.reduction
        _sums_kernel[programs](
            *(*inputs, parts, *pitches, grid.widths, grid.offsets, grid.rows, grid.rows_each, grid.total, eps),
            **(modes | options),
        )
        combining, options = grid.combine(2 * grid.total)
        _combine_sums_kernel[combining](parts, sums, 2 * grid.total, grid.chunks, scale, **options)
        programs, options = grid.elementwise
        _grad_x_kernel[programs](
            *(*inputs, sums if training else None, tuple(places), grad_residual),
            *(*pitches, _pitches(places), grid.widths, grid.offsets, grid.rows, grid.total, eps, scale),
            **(modes | options),
        )
    return sums, grad_residual


def sum_passes(grid: Grid, read: int, rows: int) -> list[Pass]:
    """The sums of the programs, and these joined to [rows, ΣC]."""
    parts = 4 * 2 * grid.total * grid.chunks
    return [Pass(read, parts), Pass(parts, 4 * rows * grid.total)]
