"""float32 and bfloat16 elements for compiled CPU passes; numba, which has no bfloat16, sees its bits as uint16."""

from functools import cache
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BITS, _HALF = ir.IntType(32), ir.IntType(16)

PASSED = (torch.float32, torch.bfloat16)  # dtypes that the passes take


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16; without them it is emulated, slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@intrinsic  # type: ignore[untyped-decorator]
def widened(_context: Any, element: Any) -> Any:
    """An element as float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if element == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], _BITS), _BITS(16)), ir.FloatType())

    return types.float32(element), generate


@intrinsic  # type: ignore[untyped-decorator]
def narrowed(_context: Any, array: Any, _value: Any) -> Any:
    """A float32 as an element of the array, rounded to the nearest, ties to even; NaN stays one."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value = arguments[1]
        if array.dtype == types.float32:
            return value
        whole = builder.bitcast(value, _BITS)
        odd = builder.and_(builder.lshr(whole, _BITS(16)), _BITS(1))
        rounded = builder.lshr(builder.add(builder.add(whole, _BITS(0x7FFF)), odd), _BITS(16))
        rounded = builder.select(builder.fcmp_unordered("uno", value, value), _BITS(0x7FC0), rounded)
        return builder.trunc(rounded, _HALF)

    return array.dtype(array, types.float32), generate
