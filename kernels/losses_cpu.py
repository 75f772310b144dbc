"""The losses on the CPU: one compiled pass over the logits, vectorised, where torch's own operations take a dozen.

The formulas are those of kernels.bce and kernels.asymmetric. Exponentials and logarithms are polynomials, as a call of
the C library for each element would not vectorise.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from kernels.threads import OPTIONS, Parallel, address, bits, next_part

_BLOCK = 2048  # elements worked on at once
_PART = 1 << 16  # elements a part: a tenth of a millisecond, several times what handing it over costs

_FORMULA: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}  # of the compiler

_LOG2_E = np.float32(1.4426950408889634)
_LN2 = np.float32(0.6931471805599453)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_ROOT_HALF = np.int32(0x3F3504F3)  # the bits of √½


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
def _two_atanh(s):  # type: ignore[no-untyped-def]
    """2 · atanh(s), which is log((1 + s) / (1 - s)), for |s| ≤ 1/3, as a series."""
    q = s * s
    p = np.float32(1 / 11) + q * np.float32(1 / 13)
    p = np.float32(1 / 7) + q * (np.float32(1 / 9) + q * p)
    p = np.float32(1 / 3) + q * (np.float32(1 / 5) + q * p)
    return np.float32(2.0) * s * (np.float32(1.0) + q * p)


@njit(inline="always")
def _log1p(e):  # type: ignore[no-untyped-def]
    """log(1 + e) for e in [0, 1]."""
    return _two_atanh(e / (np.float32(2.0) + e))


@njit(inline="always")
def _split(v):  # type: ignore[no-untyped-def]
    """k and f with v = f / 2^k, f from √½ to √2, for v in (0, 1], the smallest numbers too."""
    above = np.int32(np.float32(v * np.float32(2**24)).view(np.int32) - _ROOT_HALF)
    f = np.int32((above & np.int32(0x7FFFFF)) + _ROOT_HALF).view(np.float32)
    return np.float32(np.int32(24 - (above >> 23))), f


@njit(inline="always")
def _minus_log(v):  # type: ignore[no-untyped-def]
    """-log(v) for v in (0, 1]; that of a NaN is some number."""
    k, f = _split(v)
    one = np.float32(1.0)
    return k * _LN2 + _two_atanh((one - f) / (one + f))


@njit(inline="always")
def _parts_of_sigmoid(v):  # type: ignore[no-untyped-def]
    """p, 1 - p, -log p and -log(1 - p) of p = sigmoid(v)."""
    one, zero = np.float32(1.0), np.float32(0.0)
    e = _exp_of_negative(-abs(v))
    log1p_e = _log1p(e)
    large = one / (one + e)
    small = e * large
    p = small if v < zero else large
    q = large if v < zero else small
    return p, q, (zero if v > zero else -v) + log1p_e, (zero if v < zero else v) + log1p_e


@njit(**_FORMULA)
def _bce(x, y, constants, factor, loss, grad):  # type: ignore[no-untyped-def]
    weight, smoothing = constants
    one, half = np.float32(1.0), np.float32(0.5)
    for j in range(x.size):
        t = y[j] * (one - smoothing) + half * smoothing
        w = t * weight[j]
        p, q, minus_log_p, minus_log_q = _parts_of_sigmoid(x[j])
        loss[j] = (one - t) * minus_log_q + w * minus_log_p
        grad[j] = ((one - t) * p - w * q) * factor


@njit(**_FORMULA)
def _powers(base, gamma, out):  # type: ignore[no-untyped-def]
    """base to the power of gamma, for base from 0 to 1; the exponents of the paper take a product or two."""
    if gamma == np.float32(0.0):
        out[:] = np.float32(1.0)
    elif gamma == np.float32(1.0):
        out[:] = base
    elif gamma == np.float32(2.0):
        for j in range(base.size):
            out[j] = base[j] * base[j]
    elif gamma == np.float32(4.0):
        for j in range(base.size):
            square = base[j] * base[j]
            out[j] = square * square
    else:
        for j in range(base.size):
            power = _exp_of_negative(-gamma * _minus_log(base[j]))
            out[j] = np.float32(0.0) if base[j] == np.float32(0.0) else power


# What the asymmetric loss keeps of some elements between its loops. The distances are constants: so the compiler sees
# that none is another, and vectorises. In one loop each element would wait for one polynomial after the other.
_CHUNK = 512
_P, _Q, _MINUS_LOG_P, _R, _MINUS_LOG_NOT_R, _POS, _NEG, _SLOPE = (i * _CHUNK for i in range(8))


@njit(**_FORMULA)
def _sigmoids(x, kept):  # type: ignore[no-untyped-def]
    """p, q, -log p and, as where the margin is 0, r = p and -log(1 - r)."""
    for j in range(x.size):
        p, q, minus_log_p, minus_log_q = _parts_of_sigmoid(x[j])
        kept[_P + j], kept[_Q + j], kept[_MINUS_LOG_P + j] = p, q, minus_log_p
        kept[_R + j], kept[_MINUS_LOG_NOT_R + j] = p, minus_log_q


@njit(**_FORMULA)
def _slopes(n, gamma, kept):  # type: ignore[no-untyped-def]
    """The factor of r^γ- in the gradient, where the margin is 0."""
    for j in range(n):
        q = kept[_Q + j]
        q_log_q = np.float32(0.0) if q == np.float32(0.0) else q * kept[_MINUS_LOG_NOT_R + j]
        kept[_SLOPE + j] = kept[_P + j] + gamma * q_log_q


@njit(**_FORMULA)
def _beyond_margin(n, margin, gamma, kept):  # type: ignore[no-untyped-def]
    """r, -log(1 - r) and the factor of r^γ- in the gradient, where the margin is above 0."""
    one, zero = np.float32(1.0), np.float32(0.0)
    for j in range(n):
        p, q = kept[_P + j], kept[_Q + j]
        r, not_r = p - margin, q + margin
        r = zero if r <= zero else r
        not_r = one if not_r > one else not_r
        # By the smaller of the two: the other has lost its last digits.
        k, f = _split(not_r)
        near = r < np.float32(0.5)
        s = (r if near else one - f) / (not_r + (not_r + r) if near else one + f)
        minus_log_not_r = (zero if near else k * _LN2) + _two_atanh(s)
        # As r goes to 0, -log(1 - r) / r goes to 1. q / (1 - r) is 1 at most, where 1 / (1 - r) may be infinite.
        slope = p * (q / not_r + gamma * q * (minus_log_not_r / (one if r == zero else r)))
        kept[_R + j], kept[_MINUS_LOG_NOT_R + j] = r, minus_log_not_r
        kept[_SLOPE + j] = zero if r == zero else slope


@njit(**_FORMULA)
def _asymmetric_chunk(y, gamma_pos, factor, kept, loss, grad):  # type: ignore[no-untyped-def]
    one, zero = np.float32(1.0), np.float32(0.0)
    for j in range(y.size):
        t, p, minus_log_p = y[j], kept[_P + j], kept[_MINUS_LOG_P + j]
        pos, neg = t * kept[_POS + j], (one - t) * kept[_NEG + j]
        loss[j] = pos * minus_log_p + neg * kept[_MINUS_LOG_NOT_R + j]
        p_log_p = zero if p == zero else p * minus_log_p
        grad[j] = (neg * kept[_SLOPE + j] - pos * (kept[_Q + j] + gamma_pos * p_log_p)) * factor


@njit(**_FORMULA)
def _asymmetric(x, y, constants, factor, loss, grad):  # type: ignore[no-untyped-def]
    gamma_pos, gamma_neg, margin = constants
    kept = np.empty(8 * _CHUNK, np.float32)
    for first in range(0, x.size, _CHUNK):
        last = min(x.size, first + _CHUNK)
        n, here = last - first, slice(first, last)
        _sigmoids(x[here], kept)
        if margin > np.float32(0.0):
            _beyond_margin(n, margin, gamma_neg, kept)
        else:
            _slopes(n, gamma_neg, kept)
        _powers(kept[_Q : _Q + n], gamma_pos, kept[_POS : _POS + n])
        _powers(kept[_R : _R + n], gamma_neg, kept[_NEG : _NEG + n])
        _asymmetric_chunk(y[here], gamma_pos, factor, kept, loss[here], grad[here])


@njit(fastmath={"reassoc", "nsz"})
def _sum(values):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for j in range(values.size):
        total += values[j]
    return total


@njit(inline="always")
def _float(word):  # type: ignore[no-untyped-def]
    return np.float32(np.int64(word).view(np.float64))


@njit(**OPTIONS)
def _as_numbers(given, out):  # type: ignore[no-untyped-def]
    """Any byte but 0 is a positive, as a boolean's may be."""
    for j in range(given.size):
        out[j] = np.float32(given[j] != 0)


def _parts(formula: Any) -> Any:
    """What a thread does of a pass with this formula. Compiled for each, as a formula given to it would be called by
    its address, which is of no use to another process that finds the compiled code on disk."""

    @njit(**OPTIONS)
    def rows_of(constants, labels, at_once, x, given, y, mask, factor, loss, grad):  # type: ignore[no-untyped-def]
        """Losses and gradients of some rows; the sum of the losses. Without mask, losses or gradients these are
        empty, and so is one of the targets, which are given as bytes or as numbers y."""
        rows = x.size // labels
        spare = np.empty((3, at_once * labels), np.float32)
        total = 0.0
        for first in range(0, rows, at_once):
            last = min(rows, first + at_once)
            here, n = slice(first * labels, last * labels), (last - first) * labels
            _as_numbers(given[here], spare[0])
            targets = y[here] if y.size else spare[0, :n]
            losses = loss[here] if loss.size else spare[1, :n]
            grads = grad[here] if grad.size else spare[2, :n]
            formula(x[here], targets, constants, factor, losses, grads)
            if mask.size:
                for row in range(first, last):
                    if not mask[row]:
                        own = slice((row - first) * labels, (row - first + 1) * labels)
                        losses[own] = np.float32(0.0)
                        grads[own] = np.float32(0.0)
            total += _sum(losses)
        return total

    @njit(**OPTIONS)
    def parts_of(block, d, constants):  # type: ignore[no-untyped-def]
        parts, rows, labels, at_once = d[1], d[5], d[6], d[7]
        n = rows * labels
        x = carray(address(d[8]), (n,), np.float32)
        given = carray(address(d[9]), (n if d[9] else 0,), np.uint8)
        y = carray(address(d[10]), (n if d[10] else 0,), np.float32)
        mask = carray(address(d[11]), (rows if d[11] else 0,), np.uint8)
        loss = carray(address(d[12]), (n if d[12] else 0,), np.float32)
        grad = carray(address(d[13]), (n if d[13] else 0,), np.float32)
        totals = carray(address(d[14]), (parts,), np.float64)
        factor = _float(d[15])
        while True:
            part = next_part(block)
            if part >= parts:
                break
            first, last = rows * part // parts, rows * (part + 1) // parts
            here = slice(first * labels, last * labels)
            of_rows = mask[first:last]
            totals[part] = rows_of(
                constants, labels, at_once, x[here], given[here], y[here], of_rows, factor, loss[here], grad[here]
            )

    return parts_of


_bce_parts, _asymmetric_parts = _parts(_bce), _parts(_asymmetric)


@Parallel
def _bce_pass(block):  # type: ignore[no-untyped-def]
    d = carray(block, (18,))
    _bce_parts(block, d, (carray(address(d[16]), (d[6] * d[7],), np.float32), _float(d[17])))


@Parallel
def _asymmetric_pass(block):  # type: ignore[no-untyped-def]
    d = carray(block, (19,))
    _asymmetric_parts(block, d, (_float(d[16]), _float(d[17]), _float(d[18])))


def _at_once(x: Tensor) -> int:
    """Whole rows at once, as flat memory: enough of them that what a call costs does not show."""
    rows, labels = x.shape
    return max(1, min(rows, _BLOCK // labels))


def _run(
    work: Callable[..., None],
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    factor: float,
    loss: Tensor | None,
    grad: Tensor | None,
    *constants: int,
) -> float:
    rows, labels = x.shape
    # The machine has no say in it, so the same input gives the same bits.
    parts = max(1, min(rows, x.numel() // _PART))
    totals = torch.empty(parts, dtype=torch.float64)
    given, numbers = (y, None) if y.dtype == torch.uint8 else (None, y)
    pointers = (0 if t is None else t.data_ptr() for t in (x, given, numbers, mask, loss, grad, totals))
    work(parts, rows, labels, _at_once(x), *pointers, bits(factor), *constants)
    total: float = sum(totals.tolist())
    return total


def bce(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    factor: float,
    loss: Tensor | None,
    grad: Tensor | None,
    *,
    weight: Tensor | None,
    smoothing: float,
) -> float:
    """The sum of the losses; losses [N, L] and gradients [N, L] are written where there is room for them.

    Args:
        x: logits [N, L], not empty, float32, contiguous as all that follow.
        y: targets [N, L], uint8 or float32.
        mask: [N], uint8, 0 where a sample is left out.
        factor: what the gradients are multiplied by.
        loss, grad: float32.
        weight: of positives [L], float32; None is 1.
        smoothing: of labels.
    """
    weights = (x.new_ones(x.shape[1]) if weight is None else weight).repeat(_at_once(x))
    return _run(_bce_pass, x, y, mask, factor, loss, grad, weights.data_ptr(), bits(smoothing))


def asymmetric(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    factor: float,
    loss: Tensor | None,
    grad: Tensor | None,
    *,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
) -> float:
    """As bce, for the asymmetric loss."""
    return _run(_asymmetric_pass, x, y, mask, factor, loss, grad, bits(gamma_pos), bits(gamma_neg), bits(margin))
