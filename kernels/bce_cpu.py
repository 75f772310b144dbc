"""sigmoid_bce on the CPU: one compiled pass over the logits, vectorised, where torch's own operations take twelve.

The formulas are those of kernels.bce. exp and log1p are polynomials, as a call of the C library for each element would
not vectorise.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 2048  # elements worked on at once
_WORTH_A_THREAD = 65_536  # elements, a tenth of a millisecond: several times what handing them over costs

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
def _block(x, y, weight, smoothing, kept, loss, grad):  # type: ignore[no-untyped-def]
    one, zero, half = np.float32(1.0), np.float32(0.0), np.float32(0.5)
    for j in range(x.size):
        v = x[j]
        t = np.float32(y[j]) * (one - smoothing) + half * smoothing
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
        grad[j] = ((one - t) * p - w * q) * kept


def _compiled(function: Any) -> Any:
    """Compiled on the first call. Kept on disk, unless there is no place that may be written to."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


@_compiled
def _rows(x, y, weight, mask, smoothing, kept, loss, grad):  # type: ignore[no-untyped-def]
    rows, labels = x.shape
    # Whole rows at once, as flat memory: enough of them that what a call costs does not show.
    at_once = max(1, min(rows, _BLOCK // max(1, labels)))
    weights = np.empty((at_once, labels), np.float32)
    weights[:] = weight
    spare = np.empty((2, at_once, labels), np.float32)
    total = 0.0
    for first in range(0, rows, at_once):
        last = min(rows, first + at_once)
        n = last - first
        losses = loss[first:last] if loss.size else spare[0, :n]
        grads = grad[first:last] if grad.size else spare[1, :n]
        _block(
            x[first:last].ravel(),
            y[first:last].ravel(),
            weights[:n].ravel(),
            smoothing,
            kept,
            losses.ravel(),
            grads.ravel(),
        )
        if mask.size:
            for row in range(n):
                if not mask[first + row]:
                    losses[row] = 0
                    grads[row] = 0
        total += _sum(losses.ravel())
    return total


def loss_and_gradient(
    x: NDArray[np.float32],
    y: NDArray[np.uint8] | NDArray[np.float32],
    weight: NDArray[np.float32],
    mask: NDArray[np.uint8],
    smoothing: float,
    kept: float,
    loss: NDArray[np.float32],
    grad: NDArray[np.float32],
    threads: int,
) -> float:
    """Loss and gradient, on several cores where there is enough to do.

    Args:
        x, y: logits and targets [N, L].
        weight: of positives [L].
        mask: [N], 0 where a sample is left out; empty where all count.
        smoothing: of labels.
        kept: what the gradient is multiplied by.
        loss: [N, L], written; empty [0, L] where the sum is enough.
        grad: [N, L], written; empty [0, L] where none is wanted.
        threads: at most.

    Returns:
        The sum of the losses.
    """
    factors = np.float32(smoothing), np.float32(kept)
    parts = max(1, min(threads, x.size // _WORTH_A_THREAD))
    if parts == 1:
        return float(_rows(x, y, weight, mask, *factors, loss, grad))
    edges = [len(x) * i // parts for i in range(parts + 1)]

    def part(first: int, last: int) -> float:
        own = slice(first, last)
        return float(_rows(x[own], y[own], weight, mask[own], *factors, loss[own], grad[own]))

    others = _pool(threads).map(part, edges[1:-1], edges[2:])
    return part(edges[0], edges[1]) + sum(others)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sigmoid_bce")


# A forked process would have the pool without its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
