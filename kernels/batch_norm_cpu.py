"""kernels.batch_norm on the CPU, whose formulas these passes follow: two passes forward, two backward.

torch's own operations take five, one of them for the ReLU and two for its mask. A map is rows of channels. Statistics
are taken block by block in float32, as deviations from the mean of the blocks before, and joined in float64 by the
formula of Chan et al., so that nothing cancels however far the mean is from 0. Both passes are one call: the thread
that finishes the last part of the first joins the sums of all parts, in their order, and lets the others go on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from kernels.bfloat16 import narrowed, widened
from kernels.rows import AT_ONCE, Rows
from kernels.threads import OPTIONS, Parallel, address, bits, next_of_second, next_part, release, wait, was_last

_VECTORS = 5  # for each element of a row: factor, offset, mean, and for the gradient the factor of x and a constant


@njit(**OPTIONS)
def _statistics_rows(x, pitch, first, last, mean, squares):  # type: ignore[no-untyped-def]
    """Mean and sum of squared deviations of some rows, float64."""
    width = mean.size
    shift, total, square = np.empty((3, width), np.float32)
    mean[:] = 0.0
    squares[:] = 0.0
    for start in range(first, last, AT_ONCE):
        end = min(last, start + AT_ONCE)
        n, before = end - start, start - first
        if before == 0:
            total[:] = np.float32(0.0)
            for row in range(start, end):
                here = x[row * pitch : row * pitch + width]
                for c in range(width):
                    total[c] += widened(here[c])
            for c in range(width):
                shift[c] = total[c] / np.float32(n)
        else:
            for c in range(width):
                shift[c] = mean[c]
        total[:] = np.float32(0.0)
        square[:] = np.float32(0.0)
        for row in range(start, end):
            here = x[row * pitch : row * pitch + width]
            for c in range(width):
                apart = widened(here[c]) - shift[c]
                total[c] += apart
                square[c] += apart * apart
        for c in range(width):
            of_block = np.float64(shift[c]) + np.float64(total[c]) / n
            apart64 = of_block - mean[c]
            mean[c] += apart64 * n / (n + before)
            own = np.float64(square[c]) - np.float64(total[c]) * total[c] / n
            squares[c] += own + apart64 * apart64 * before * n / (n + before)


@njit(**OPTIONS)
def _join_statistics(found, rows, eps, statistics):  # type: ignore[no-untyped-def]
    """Mean, 1 / standard deviation and unbiased variance of each channel, float32, from those of all parts."""
    parts, _, fold, channels = found.shape
    for c in range(channels):
        count, mean, squares = 0, 0.0, 0.0
        for part in range(parts):
            n = rows * (part + 1) // parts - rows * part // parts
            for pixel in range(fold):
                apart = found[part, 0, pixel, c] - mean
                mean += apart * n / (n + count)
                squares += found[part, 1, pixel, c] + apart * apart * count * n / (n + count)
                count += n
        statistics[0, c] = mean
        statistics[1, c] = 1.0 / np.sqrt(squares / count + eps)
        statistics[2, c] = squares / max(count - 1, 1)


@njit(**OPTIONS)
def _affine(weight, bias, mean, rstd, vectors):  # type: ignore[no-untyped-def]
    """The first three vectors, for each pixel of a row."""
    _, fold, channels = vectors.shape
    for c in range(channels):
        factor = weight[c] * rstd[c]
        for pixel in range(fold):
            vectors[0, pixel, c] = factor
            vectors[1, pixel, c] = np.float64(bias[c]) - np.float64(mean[c]) * factor
            vectors[2, pixel, c] = mean[c]


@njit(**OPTIONS)
def _rstd(spread, is_variance, eps):  # type: ignore[no-untyped-def]
    rstd = spread.copy()
    if is_variance:
        for c in range(spread.size):
            rstd[c] = 1.0 / np.sqrt(spread[c] + eps)
    return rstd


@njit(**OPTIONS)
def _normalize_rows(x, y, vectors, floor, x_pitch, y_pitch, first, last):  # type: ignore[no-untyped-def]
    factor, offset = vectors[0], vectors[1]
    width = factor.size
    for row in range(first, last):
        here, there = x[row * x_pitch : row * x_pitch + width], y[row * y_pitch : row * y_pitch + width]
        for c in range(width):
            value = widened(here[c]) * factor[c] + offset[c]
            there[c] = narrowed(there, floor if value < floor else value)


@njit(**OPTIONS)
def _forward(block, d, x, y):  # type: ignore[no-untyped-def]
    parts, training, rows, fold, channels, x_pitch, y_pitch = d[1], d[6], d[7], d[8], d[9], d[10], d[11]
    width, eps = fold * channels, np.int64(d[20]).view(np.float64)
    vectors = carray(address(d[18]), (_VECTORS, width), np.float32)
    weight, bias = carray(address(d[14]), (channels,), np.float32), carray(address(d[15]), (channels,), np.float32)
    floor = np.float32(0.0) if d[21] else np.float32(-np.inf)
    if training:
        found = carray(address(d[19]), (parts, 2, width), np.float64)
        while True:
            part = next_part(block)
            if part >= parts:
                break
            _statistics_rows(
                x, x_pitch, rows * part // parts, rows * (part + 1) // parts, found[part, 0], found[part, 1]
            )
            if was_last(block):
                statistics = carray(address(d[16]), (3, d[17]), np.float32)
                _join_statistics(found.reshape((parts, 2, fold, channels)), rows, eps, statistics)
                wide = vectors.reshape((_VECTORS, fold, channels))
                _affine(weight, bias, statistics[0, :channels], statistics[1, :channels], wide)
                release(block)
        wait(block)
    else:  # every thread for itself: all write the same
        mean, variance = (
            carray(address(d[16]), (channels,), np.float32),
            carray(address(d[17]), (channels,), np.float32),
        )
        _affine(weight, bias, mean, _rstd(variance, True, eps), vectors.reshape((_VECTORS, fold, channels)))
    while True:
        part = next_of_second(block)
        if part >= parts:
            break
        _normalize_rows(x, y, vectors, floor, x_pitch, y_pitch, rows * part // parts, rows * (part + 1) // parts)


@Parallel
def _normalize(block):  # type: ignore[no-untyped-def]
    d = carray(block, (22,))
    last, width = d[7] - 1, d[8] * d[9]
    x_size, y_size = last * d[10] + width, last * d[11] + width
    if d[5] == 2:
        _forward(block, d, carray(address(d[12]), (x_size,), np.uint16), carray(address(d[13]), (y_size,), np.uint16))
    else:
        _forward(block, d, carray(address(d[12]), (x_size,), np.float32), carray(address(d[13]), (y_size,), np.float32))


@njit(**OPTIONS)
def _sums_rows(grad, x, g_pitch, x_pitch, vectors, floor, first, last, sums, products):  # type: ignore[no-untyped-def]
    """Σg and Σ(g · (x - mean)) over some rows, float64."""
    factor, offset, mean = vectors[0], vectors[1], vectors[2]
    width = factor.size
    total, product = np.empty((2, width), np.float32)
    sums[:] = 0.0
    products[:] = 0.0
    for start in range(first, last, AT_ONCE):
        total[:] = np.float32(0.0)
        product[:] = np.float32(0.0)
        for row in range(start, min(last, start + AT_ONCE)):
            g_row = grad[row * g_pitch : row * g_pitch + width]
            x_row = x[row * x_pitch : row * x_pitch + width]
            for c in range(width):
                value = widened(x_row[c])
                g = np.float32(0.0) if value * factor[c] + offset[c] <= floor else widened(g_row[c])
                total[c] += g
                product[c] += g * (value - mean[c])
        for c in range(width):
            sums[c] += total[c]
            products[c] += product[c]


@njit(**OPTIONS)
def _coefficients(found, rstd, pixels, vectors, sums):  # type: ignore[no-untyped-def]
    """Gradients of bias and weight, and what the gradient of x takes: the other vectors."""
    parts, _, fold, channels = found.shape
    for c in range(channels):
        total, product = 0.0, 0.0
        for part in range(parts):
            for pixel in range(fold):
                total += found[part, 0, pixel, c]
                product += found[part, 1, pixel, c]
        sums[0, c] = total
        sums[1, c] = product * rstd[c]
        factor, mean = np.float64(vectors[0, 0, c]), np.float64(vectors[2, 0, c])
        of_x = -factor * rstd[c] * rstd[c] * product / pixels
        for pixel in range(fold):
            vectors[3, pixel, c] = of_x
            vectors[4, pixel, c] = -factor * total / pixels - of_x * mean


@njit(**OPTIONS)
def _gradient_rows(grad, x, out, g_pitch, x_pitch, out_pitch, vectors, floor, training, first, last):  # type: ignore[no-untyped-def]
    factor, offset, of_x, constant = vectors[0], vectors[1], vectors[3], vectors[4]
    width = factor.size
    for row in range(first, last):
        g_row, x_row = grad[row * g_pitch : row * g_pitch + width], x[row * x_pitch : row * x_pitch + width]
        out_row = out[row * out_pitch : row * out_pitch + width]
        for c in range(width):
            value = widened(x_row[c])
            g = np.float32(0.0) if value * factor[c] + offset[c] <= floor else widened(g_row[c])
            g *= factor[c]
            out_row[c] = narrowed(out_row, g + (value * of_x[c] + constant[c]) if training else g)


@njit(**OPTIONS)
def _backward(block, d, grad, x, out):  # type: ignore[no-untyped-def]
    parts, training, rows, fold, channels = d[1], d[6] != 0, d[7], d[8], d[9]
    width, eps = fold * channels, np.int64(d[24]).view(np.float64)
    vectors = carray(address(d[22]), (_VECTORS, width), np.float32)
    found = carray(address(d[23]), (parts, 2, width), np.float64)
    wide = vectors.reshape((_VECTORS, fold, channels))
    floor = np.float32(0.0) if d[25] else np.float32(np.nan)
    rstd = _rstd(carray(address(d[19]), (channels,), np.float32), not training, eps)
    # Every thread for itself: all write the same.
    weight, bias = carray(address(d[16]), (channels,), np.float32), carray(address(d[17]), (channels,), np.float32)
    _affine(weight, bias, carray(address(d[18]), (channels,), np.float32), rstd, wide)
    while True:
        part = next_part(block)
        if part >= parts:
            break
        first, last = rows * part // parts, rows * (part + 1) // parts
        _sums_rows(grad, x, d[10], d[11], vectors, floor, first, last, found[part, 0], found[part, 1])
        if was_last(block):
            sums = carray(address(d[20]), (2, d[21]), np.float32)
            _coefficients(found.reshape((parts, 2, fold, channels)), rstd, rows * fold, wide, sums)
            release(block)
    wait(block)
    while True:
        part = next_of_second(block)
        if part >= parts:
            break
        first, last = rows * part // parts, rows * (part + 1) // parts
        _gradient_rows(grad, x, out, d[10], d[11], d[12], vectors, floor, training, first, last)


@Parallel
def _gradients(block):  # type: ignore[no-untyped-def]
    d = carray(block, (26,))
    last, width = d[7] - 1, d[8] * d[9]
    g_size, x_size, out_size = (last * d[10] + width, last * d[11] + width, last * d[12] + width)
    if d[5] == 2:
        g, x = carray(address(d[13]), (g_size,), np.uint16), carray(address(d[14]), (x_size,), np.uint16)
        _backward(block, d, g, x, carray(address(d[15]), (out_size,), np.uint16))
    else:
        gf, xf = carray(address(d[13]), (g_size,), np.float32), carray(address(d[14]), (x_size,), np.float32)
        _backward(block, d, gf, xf, carray(address(d[15]), (out_size,), np.float32))


def _room(rows: Rows) -> tuple[Tensor, int, int]:
    """Memory, which is to be held meanwhile, and where in it the vectors lie and two sums of each part."""
    sums = rows.parts * 2 * rows.width
    room = torch.empty(sums + (_VECTORS * rows.width + 1) // 2, dtype=torch.float64)
    start = room.data_ptr()
    return room, start + sums * room.itemsize, start


def normalize(x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, eps: float, relu: bool, y: Tensor) -> None:
    """Normalises x by the batch's statistics, with a ReLU or without, into a map y; both may be channel slices.

    Mean, 1 / standard deviation and unbiased variance are written to `statistics` [3, C], whose rows may be apart.
    """
    _run(x, weight, bias, (statistics.data_ptr(), statistics.stride(0)), 1, eps, relu, y)


def normalize_by(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, relu: bool, y: Tensor
) -> None:
    """As normalize, by the statistics given."""
    _run(x, weight, bias, (mean.data_ptr(), variance.data_ptr()), 0, eps, relu, y)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[int, int],
    training: int,
    eps: float,
    relu: bool,
    y: Tensor,
) -> None:
    rows = Rows.of(x, y)
    _held, vectors, found = _room(rows)
    _normalize(
        *(rows.parts, x.itemsize, training, rows.count, rows.fold, rows.channels, *rows.pitches),
        *(x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr(), *statistics),
        *(vectors, found, bits(eps), int(relu)),
    )


def gradients(
    grad: Tensor,
    x: Tensor,
    vectors: Sequence[Tensor],
    training: bool,
    eps: float,
    relu: bool,
    out: Tensor,
    sums: Tensor,
) -> None:
    """The gradient of x to a map `out`, those of bias and weight to `sums` [2, C], whose rows may be apart.

    `vectors`: weight, bias, mean and spread, in training 1 / standard deviation, else the variance.
    """
    rows = Rows.of(grad, x, out)
    _held, wide, found = _room(rows)
    _gradients(
        *(rows.parts, grad.itemsize, int(training), rows.count, rows.fold, rows.channels, *rows.pitches),
        *(grad.data_ptr(), x.data_ptr(), out.data_ptr(), *(v.data_ptr() for v in vectors)),
        *(sums.data_ptr(), sums.stride(0), wide, found, bits(eps), int(relu)),
    )
