"""Products of matrices, by the library that is fastest where they are.

On a CPU torch hands float32 products to MKL, which uses but half of the vector registers of processors that are not
Intel's; oneDNN, which has the convolutions, uses all. A product is a 1×1 convolution of a map one pixel high, or the
gradient of its weight.
"""

import torch
from torch import Tensor

_FEWEST = 1 << 24  # multiplications, below which a convolution's preparations cost more than they gain
_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their dtype, whatever autocast says, for a [M, K] and b [K, N] of one dtype on one device."""
    if torch.compiler.is_compiling():
        return torch.mm(a, b)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        with torch.autocast(a.device.type, enabled=False):
            return torch.mm(a, b)
    work = a.shape[0] * a.shape[1] * b.shape[1]
    if _ONEDNN and a.is_cpu and a.dtype == torch.float32 and work >= _FEWEST:
        if a.is_contiguous():
            return _rows_product(a, b)
        if a.t().is_contiguous() and b.is_contiguous():
            return _columns_product(a.t(), b)
    return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]))  # autocast leaves the out= form as it is


def _as_map(rows: Tensor) -> Tensor:
    """[M, K] as a channels-last map [1, K, 1, M]."""
    return rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)


def _rows_product(a: Tensor, b: Tensor) -> Tensor:
    weight = b.t().unsqueeze(2).unsqueeze(3)
    # Not conv2d, which autocast would have in half precision.
    y: Tensor = torch.ops.aten.mkldnn_convolution(_as_map(a), weight, None, [0, 0], [1, 1], [1, 1], 1)
    return y.permute(0, 2, 3, 1).reshape(a.shape[0], b.shape[1])


def _columns_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ @ b, for a [K, M]."""
    weight = a.new_empty(a.shape[1], b.shape[1], 1, 1)  # only its shape counts
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    grads = torch.ops.aten.convolution_backward(_as_map(a), _as_map(b), weight, None, *options)
    y: Tensor = grads[1].flatten(1)
    return y
