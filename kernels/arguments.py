"""Checks of arguments that the operations share. A ValueError names the argument, what it is and what it takes."""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT32_MAX = torch.finfo(torch.float32).max


def check_tensor(name: str, x: object) -> None:
    """A tensor with elements of its own in memory, which asks for no other derivative than reverse mode's."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is {_kind(x)}; it takes a tensor")
    if x.layout != torch.strided:
        raise ValueError(f"{name} is {x.layout}; it takes torch.strided")
    # torch.library would drop a tangent without a word.
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        raise ValueError(f"{name} has a tangent; forward-mode differentiation is not computed, only reverse mode")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ValueError(f"{name} is in a transform of torch.func, as vmap or grad; it takes a plain tensor")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_kind(value)}; it takes True or False")


def check_list(name: str, values: object) -> None:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {_kind(values)}; it takes a list or a tuple")


def _kind(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory alike."""
    if a.stride() == b.stride() or a.numel() == 0:
        return True
    # The stride of a dimension of one element is arbitrary.
    return all(s == t or size == 1 for s, t, size in zip(a.stride(), b.stride(), a.shape, strict=True))


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of the dimensions."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def check_floats(name: str, x: Tensor) -> None:
    """On the CPU or a GPU, of a float dtype; float64 only on the CPU."""
    check_tensor(name, x)
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} is on {x.device}; it takes cpu and cuda")
    if x.dtype not in FLOATS and (x.dtype != torch.float64 or x.is_cuda):
        raise ValueError(f"{name} is {x.dtype}; it takes float32, float16, bfloat16, on the CPU float64")


def check_dense(name: str, x: Tensor) -> None:
    if not is_dense(x):
        raise ValueError(f"{name} has strides {x.stride()}; for {tuple(x.shape)} it takes memory without gaps")


def check_channels_last(name: str, x: Tensor) -> None:
    """[N, C, H, W] with the channels side by side in memory; a channel slice of a wider map is one too."""
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it takes four dimensions, [N, C, H, W]")
    if x.numel() == 0 or is_channels_last(x):
        return
    raise ValueError(f"{name} has strides {x.stride()}; it takes channels-last memory")


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] is rows of C elements with one distance between rows, in the order N, H, W."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    n, c, h, w = x.shape
    if c > 1 and x.stride(1) != 1:
        return False
    pitch = row_pitch(x)
    expected = ((n, h * w * pitch), (h, w * pitch), (w, pitch))
    found = (x.stride(0), x.stride(2), x.stride(3))
    return pitch >= c and all(size == 1 or stride == due for (size, due), stride in zip(expected, found, strict=True))


def row_pitch(x: Tensor) -> int:
    """Elements from one pixel of a channels-last map to the next."""
    n, c, h, w = x.shape
    if w > 1:
        return x.stride(3)
    if h > 1:
        return x.stride(2)
    return x.stride(0) // (h * w) if n > 1 and h * w else c


def check_like(name: str, x: Tensor, other: str, like: Tensor) -> None:
    """Shape, dtype, device and layout of another argument."""
    check_tensor(name, x)
    if x.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it takes that of {other}, {tuple(like.shape)}")
    if x.dtype != like.dtype:
        raise ValueError(f"{name} is {x.dtype}; it takes the dtype of {other}, {like.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; it takes the device of {other}, {like.device}")
    if not same_layout(x, like):
        raise ValueError(f"{name} has strides {x.stride()}; it takes those of {other}, {like.stride()}")


def check_apart(name: str, x: Tensor, other: str, y: Tensor) -> None:
    """No element in common with another argument; of two channel slices of one map none is."""
    if _overlap(x, y):
        raise ValueError(f"{name} shares memory with {other}; it takes memory of its own")


def _overlap(a: Tensor, b: Tensor) -> bool:
    if not (a.numel() and b.numel()):
        return False
    (first, end), (other_first, other_end) = _span(a), _span(b)
    if end <= other_first or other_end <= first:
        return False
    if a.dim() != 4 or b.dim() != 4 or (a.itemsize, row_pitch(a)) != (b.itemsize, row_pitch(b)):
        return True
    # Rows at one distance: what counts is where the channels lie in it.
    pitch, apart = row_pitch(a) * a.itemsize, other_first - first
    return apart % pitch < a.shape[1] * a.itemsize or -apart % pitch < b.shape[1] * b.itemsize


def _span(x: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor that is not empty and of that behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.itemsize


def check_operand(name: str, x: Tensor, shape: tuple[int, ...], other: str, like: Tensor) -> None:
    """Of this shape, contiguous, on the device of another argument."""
    check_tensor(name, x)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; for these {other} it takes {tuple(shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; it takes the device of {other}, {like.device}")
    if not x.is_contiguous():
        raise ValueError(f"{name} has strides {x.stride()}; it takes contiguous memory")


def check_constant(name: str, x: Tensor, shape: tuple[int, ...], other: str, like: Tensor) -> None:
    """As check_operand, without a gradient."""
    check_operand(name, x, shape, other, like)
    if x.requires_grad:
        raise ValueError(f"{name} requires a gradient, which is not computed; it takes a detached tensor")


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite Python number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise ValueError(f"{name} is {_kind(value)}; it takes a Python number")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        raise ValueError(f"{name} is {value}; it takes a finite number that float32 can hold")
    if not low <= value <= high:
        span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
        raise ValueError(f"{name} is {value}; it takes a number {span}")
