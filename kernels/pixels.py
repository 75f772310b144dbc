"""Bytes to normalised pictures in one pass, for pipelines that hand over uint8.

    out[n, c, h, w] = (pixels[n, h, w, c] - mean[c]) / std[c]

Interleaved bytes [N, H, W, C] and a channels-last map [N, C, H, W] lie in memory in the same order, so the kernel
reads and writes flat memory.

Bytes moved for n elements of b bytes: n·(1 + b).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import FLOATS, check_list, check_number, check_tensor
from kernels.launch import takes_triton
from kernels.traffic import Pass, declares, size
from kernels.tuning import NORMALIZE


def normalize_reference(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    shift, size = (torch.tensor(values, dtype=torch.float64, device=pixels.device) for values in (mean, std))
    return ((pixels.double() - shift) / size).permute(0, 3, 1, 2).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _normalize_kernel(  # type: ignore[no-untyped-def]
    pixels_ptr, out_ptr, mean_0, mean_1, mean_2, by_0, by_1, by_2, n, BLOCK: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = first + lane < n
    pixels = tl.load(pixels_ptr + first + lane, mask=inside).to(tl.float32)
    channel = ((first % 3).to(tl.int32) + lane) % 3
    mean = tl.where(channel == 0, mean_0, tl.where(channel == 1, mean_1, mean_2))
    by = tl.where(channel == 0, by_0, tl.where(channel == 1, by_1, by_2))
    tl.store(out_ptr + first + lane, ((pixels - mean) * by).to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("manylabel::normalize", mutates_args=())
def _forward(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    out = _allocate(pixels, dtype)
    if not pixels.numel():
        return out
    by = [1 / s for s in std]
    if takes_triton(pixels):
        with torch.cuda.device_of(pixels):  # type: ignore[no-untyped-call]
            grid = (triton.cdiv(pixels.numel(), NORMALIZE.blocks["BLOCK"]),)
            _normalize_kernel[grid](pixels, out, *mean, *by, pixels.numel(), **NORMALIZE.options)
        return out
    # Whole rows of pixels beside rows of constants: torch is slow where only three numbers lie side by side.
    n, height, width, _ = pixels.shape
    shift, factor = (torch.tensor(values, dtype=torch.float32).repeat(width) for values in (mean, by))
    rows = out.permute(0, 2, 3, 1).view(n * height, 3 * width)
    work = rows if dtype == torch.float32 else torch.empty(rows.shape)
    work.copy_(pixels.view(rows.shape)).sub_(shift).mul_(factor)
    if work is not rows:
        rows.copy_(work)
    return out


@_forward.register_fake
def _(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    return _allocate(pixels, dtype)


@declares("normalize")
def _(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> list[Pass]:
    return [Pass(size(pixels), pixels.numel() * dtype.itemsize)]


def _allocate(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(pixels.shape, dtype=dtype, device=pixels.device).permute(0, 3, 1, 2)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """(pixels - mean) / std, computed in float32 and rounded once.

    Args:
        pixels: uint8 [N, H, W, 3], contiguous.
        mean, std: three numbers each, on the scale of the bytes; std above 0.
        dtype: float32, float16 or bfloat16.

    Returns:
        [N, 3, H, W] in channels-last memory, which takes no gradient.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    check_tensor("pixels", pixels)
    if pixels.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"pixels is on {pixels.device}; it takes cpu and cuda")
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels is {pixels.dtype}; it takes uint8")
    if pixels.dim() != 4 or pixels.shape[3] != 3:
        raise ValueError(f"pixels has shape {tuple(pixels.shape)}; it takes [N, H, W, 3]")
    if not pixels.is_contiguous():
        raise ValueError(f"pixels has strides {pixels.stride()}; it takes contiguous memory")
    for name, values in (("mean", mean), ("std", std)):
        check_list(name, values)
        if len(values) != 3:
            raise ValueError(f"{name} has {len(values)} numbers; it takes three, one a channel")
        for value in values:
            check_number(name, value, low=1e-6 if name == "std" else -float("inf"))
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; it takes float32, float16, bfloat16")
    out: Tensor = _forward(pixels, [float(m) for m in mean], [float(s) for s in std], dtype)
    return out
