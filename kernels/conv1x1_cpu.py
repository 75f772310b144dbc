"""What kernels.conv1x1 does beside its products, on the CPU: one pass each over the maps."""

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from kernels.bfloat16 import narrowed, widened
from kernels.rows import AT_ONCE, Rows
from kernels.threads import OPTIONS, Parallel, address, bits, next_part


@njit(**OPTIONS)
def _join_rows(x, product, y, pitches, bias, scale, floor, first, last):  # type: ignore[no-untyped-def]
    width = bias.size
    for row in range(first, last):
        x_row = x[row * pitches[0] : row * pitches[0] + width]
        p_row = product[row * pitches[1] : row * pitches[1] + width]
        y_row = y[row * pitches[2] : row * pitches[2] + width]
        for c in range(width):
            value = widened(x_row[c]) + scale * (widened(p_row[c]) + bias[c])
            y_row[c] = narrowed(y_row, floor if value < floor else value)


@Parallel
def _join(block):  # type: ignore[no-untyped-def]
    d = carray(block, (18,))
    parts, product_item, rows, width, item = d[1], d[5], d[6], d[7], d[17]
    pitches = (d[8], d[9], d[10])
    x_size, p_size, y_size = ((rows - 1) * d[8] + width, (rows - 1) * d[9] + width, (rows - 1) * d[10] + width)
    x, y = carray(address(d[11]), (x_size,), np.uint16), carray(address(d[13]), (y_size,), np.uint16)
    xf, yf = carray(address(d[11]), (x_size,), np.float32), carray(address(d[13]), (y_size,), np.float32)
    bias = carray(address(d[14]), (width,), np.float32)
    scale = np.float32(np.int64(d[15]).view(np.float64))
    floor = np.float32(0.0) if d[16] else np.float32(-np.inf)
    while True:
        part = next_part(block)
        if part >= parts:
            break
        first, last = rows * part // parts, rows * (part + 1) // parts
        if item == 4:
            wide = carray(address(d[12]), (p_size,), np.float32)
            _join_rows(xf, wide, yf, pitches, bias, scale, floor, first, last)
        elif product_item == 4:
            wide = carray(address(d[12]), (p_size,), np.float32)
            _join_rows(x, wide, y, pitches, bias, scale, floor, first, last)
        else:
            half = carray(address(d[12]), (p_size,), np.uint16)
            _join_rows(x, half, y, pitches, bias, scale, floor, first, last)


@njit(**OPTIONS)
def _mask_rows(grad, product, mask, out, pitches, added, first, last, sums):  # type: ignore[no-untyped-def]
    width = sums.size
    sums[:] = 0.0
    total = np.empty(width, np.float32)
    for start in range(first, last, AT_ONCE):
        total[:] = np.float32(0.0)
        for row in range(start, min(last, start + AT_ONCE)):
            g_row = grad[row * pitches[0] : row * pitches[0] + width]
            p_row = product[row * pitches[1] : row * pitches[1] + width]
            m_row = mask[row * pitches[2] : row * pitches[2] + width]
            out_row = out[row * pitches[3] : row * pitches[3] + width]
            for c in range(width):
                value = widened(g_row[c])
                if added:
                    value += widened(p_row[c])
                value = np.float32(0.0) if widened(m_row[c]) <= np.float32(0.0) else value
                out_row[c] = narrowed(out_row, value)
                total[c] += value
        for c in range(width):
            sums[c] += total[c]


@Parallel
def _mask(block):  # type: ignore[no-untyped-def]
    d = carray(block, (18,))
    parts, item, rows, width, added = d[1], d[5], d[6], d[7], d[16] != 0
    pitches = (d[8], d[9], d[10], d[11])
    last_row = rows - 1
    sizes = (last_row * d[8] + width, last_row * d[9] + width, last_row * d[10] + width, last_row * d[11] + width)
    sums = carray(address(d[17]), (parts, width), np.float64)
    while True:
        part = next_part(block)
        if part >= parts:
            break
        first, last = rows * part // parts, rows * (part + 1) // parts
        if item == 2:
            g, p = carray(address(d[12]), (sizes[0],), np.uint16), carray(address(d[13]), (sizes[1],), np.uint16)
            m, out = carray(address(d[14]), (sizes[2],), np.uint16), carray(address(d[15]), (sizes[3],), np.uint16)
            _mask_rows(g, p, m, out, pitches, added, first, last, sums[part])
        else:
            gf, pf = carray(address(d[12]), (sizes[0],), np.float32), carray(address(d[13]), (sizes[1],), np.float32)
            mf, of = carray(address(d[14]), (sizes[2],), np.float32), carray(address(d[15]), (sizes[3],), np.float32)
            _mask_rows(gf, pf, mf, of, pitches, added, first, last, sums[part])


def join(x: Tensor, product: Tensor, bias: Tensor | None, scale: float, relu: bool, y: Tensor) -> None:
    """x + scale · (product + bias), with a ReLU or without, to a map y.

    Maps are channels-last and float32 or bfloat16; beside bfloat16 the product is either. bias is [C].
    """
    rows = Rows.of(x, product, y)
    wide = torch.zeros(rows.width) if bias is None else bias.float().repeat(rows.fold)
    _join(
        *(rows.parts, product.itemsize, rows.count, rows.width, *rows.pitches),
        *(x.data_ptr(), product.data_ptr(), y.data_ptr(), wide.data_ptr(), bits(scale), int(relu)),
        x.itemsize,
    )


def masked(grad: Tensor, product: Tensor | None, mask: Tensor, out: Tensor) -> Tensor:
    """[mask > 0] · (grad + product) to a map `out`, all alike; its sums over the pixels [C], float32."""
    maps = (grad, grad if product is None else product, mask, out)
    rows = Rows.of(*maps)
    sums = torch.empty((rows.parts, rows.width), dtype=torch.float64)
    added = int(product is not None)
    pointers = (m.data_ptr() for m in maps)
    _mask(rows.parts, grad.itemsize, rows.count, rows.width, *rows.pitches, *pointers, added, sums.data_ptr())
    return sums.view(-1, rows.channels).sum(0).float()
