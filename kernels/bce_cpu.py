"""sigmoid_bce on the CPU: one compiled pass over the logits, vectorised, where torch's own operations take twelve.

The formulas are those of kernels.bce. exp and log1p are polynomials, as a call of the C library for each element would
not vectorise.
"""

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from kernels.threads import OPTIONS, Parallel, address, bits, next_part

_BLOCK = 2048  # elements worked on at once
_PART = 1 << 16  # elements a part: a tenth of a millisecond, several times what handing it over costs

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)


@njit(inline="always")
def _exp_of_negative(t):  # type: ignore[no-untyped-def]
    """exp(t) for t ≤ 0, to a unit in the last place: 2^k · exp(r), |r| ≤ ln 2 / 2 (Cephes, expf)."""
    t = np.float32(-104.0) if t < np.float32(-104.0) else t  # exp is 0 from here on; a NaN stays
    k = np.floor(t * _LOG2_E + np.float32(0.5))
    r = t - k * _LN2_HIGH - k * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    # In two halves: the whole power is below the smallest normal number where the result is.
    half = np.floor(k * np.float32(0.5))
    first = np.int32((half + np.float32(127.0)) * np.float32(2**23)).view(np.float32)
    second = np.int32((k - half + np.float32(127.0)) * np.float32(2**23)).view(np.float32)
    return p * first * second


@njit(inline="always")
def _log1p(e):  # type: ignore[no-untyped-def]
    """log(1 + e) for e in [0, 1]: 2·atanh(s), s = e / (2 + e), as a series."""
    s = e / (np.float32(2.0) + e)
    q = s * s
    p = np.float32(1 / 11) + q * np.float32(1 / 13)
    p = np.float32(1 / 7) + q * (np.float32(1 / 9) + q * p)
    p = np.float32(1 / 3) + q * (np.float32(1 / 5) + q * p)
    return np.float32(2.0) * s * (np.float32(1.0) + q * p)


@njit(fastmath={"reassoc", "nsz"})
def _sum(values):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for j in range(values.size):
        total += values[j]
    return total


@njit(error_model="numpy", fastmath={"contract"})
def _block(x, y, highest, weight, smoothing, factor, loss, grad):  # type: ignore[no-untyped-def]
    one, zero, half = np.float32(1.0), np.float32(0.0), np.float32(0.5)
    for j in range(x.size):
        v = x[j]
        t = np.float32(y[j])
        t = highest if t > highest else t
        t = t * (one - smoothing) + half * smoothing
        w = t * weight[j]
        e = _exp_of_negative(-abs(v))
        log1p_e = _log1p(e)
        above = zero if v < zero else v
        below = zero if v > zero else -v
        loss[j] = (one - t) * (above + log1p_e) + w * (below + log1p_e)
        large = one / (one + e)
        small = e * large
        p = small if v < zero else large
        q = large if v < zero else small
        grad[j] = ((one - t) * p - w * q) * factor


@njit(**OPTIONS)
def _rows(x, y, weight, mask, smoothing, factor, loss, grad):  # type: ignore[no-untyped-def]
    """Losses and gradients of some rows; the sum of the losses. Without mask, losses or gradients these are empty."""
    labels = weight.size
    rows = x.size // labels
    # Whole rows at once, as flat memory: enough of them that what a call costs does not show.
    at_once = max(1, min(rows, _BLOCK // labels))
    weights = np.empty(at_once * labels, np.float32)
    for row in range(at_once):
        weights[row * labels : (row + 1) * labels] = weight
    # Any byte but 0 is a positive, as a boolean's may be.
    highest = np.float32(1.0 if y.itemsize == 1 else np.inf)
    spare = np.empty((2, at_once * labels), np.float32)
    total = 0.0
    for first in range(0, rows, at_once):
        last = min(rows, first + at_once)
        here, n = slice(first * labels, last * labels), (last - first) * labels
        losses = loss[here] if loss.size else spare[0, :n]
        grads = grad[here] if grad.size else spare[1, :n]
        _block(x[here], y[here], highest, weights[:n], smoothing, factor, losses, grads)
        if mask.size:
            for row in range(first, last):
                if not mask[row]:
                    own = slice((row - first) * labels, (row - first + 1) * labels)
                    losses[own] = np.float32(0.0)
                    grads[own] = np.float32(0.0)
        total += _sum(losses)
    return total


@njit(**OPTIONS)
def _parts(block, d, y):  # type: ignore[no-untyped-def]
    parts, rows, labels = d[1], d[5], d[6]
    n = rows * labels
    x, weight = carray(address(d[8]), (n,), np.float32), carray(address(d[10]), (labels,), np.float32)
    mask = carray(address(d[11]), (rows if d[11] else 0,), np.uint8)
    loss = carray(address(d[12]), (n if d[12] else 0,), np.float32)
    grad = carray(address(d[13]), (n if d[13] else 0,), np.float32)
    totals = carray(address(d[14]), (parts,), np.float64)
    smoothing = np.float32(np.int64(d[15]).view(np.float64))
    factor = np.float32(np.int64(d[16]).view(np.float64))
    while True:
        part = next_part(block)
        if part >= parts:
            break
        first, last = rows * part // parts, rows * (part + 1) // parts
        here = slice(first * labels, last * labels)
        totals[part] = _rows(x[here], y[here], weight, mask[first:last], smoothing, factor, loss[here], grad[here])


@Parallel
def _loss(block):  # type: ignore[no-untyped-def]
    d = carray(block, (17,))
    n = d[5] * d[6]
    if d[7] == 1:
        _parts(block, d, carray(address(d[9]), (n,), np.uint8))
    else:
        _parts(block, d, carray(address(d[9]), (n,), np.float32))


def loss_and_gradient(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    smoothing: float,
    factor: float,
    loss: Tensor | None,
    grad: Tensor | None,
) -> float:
    """The sum of the losses; losses [N, L] and gradients [N, L] are written where there is room for them.

    Args:
        x: logits [N, L], not empty, float32, contiguous as all that follow.
        y: targets [N, L], uint8 or float32.
        weight: of positives [L], float32.
        mask: [N], uint8, 0 where a sample is left out.
        smoothing: of labels.
        factor: what the gradients are multiplied by.
        loss, grad: float32.
    """
    rows, labels = x.shape
    # The machine has no say in it, so the same input gives the same bits.
    parts = max(1, min(rows, x.numel() // _PART))
    totals = torch.empty(parts, dtype=torch.float64)
    pointers = (0 if t is None else t.data_ptr() for t in (x, y, weight, mask, loss, grad, totals))
    _loss(parts, rows, labels, y.itemsize, *pointers, bits(smoothing), bits(factor))
    total: float = sum(totals.tolist())
    return total
