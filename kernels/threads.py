"""Compiled functions on torch's own threads.

A pool of threads beside torch's would fight it for the cores: OpenMP's threads go on spinning for a while after each
operation. So these functions run in the team of threads that torch itself uses, by the call that GCC compiles a
parallel region to. Starting one takes two microseconds.
"""

import ctypes
import os
import struct
from array import array
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}  # of the compiler; NaN stays NaN

_BLOCK = types.CPointer(types.int64)
_WORD = ir.IntType(64)
_LIBRARIES = ("libgomp.so.1", "libiomp5.so", "libomp.so.5", "libomp.so")
_SPINS = 2000  # a few microseconds, before a waiting thread lets others have its core
_yield_core = types.ExternalFunction("sched_yield", types.int32())


@intrinsic  # type: ignore[untyped-decorator]
def address(_context: Any, _number: Any) -> Any:
    """A number as a pointer, for numba.carray."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _count(_context: Any, _block: Any, _word: Any) -> Any:
    """Adds one to a word of the block; what it was before."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), _WORD(1), "acq_rel")

    return types.int64(_BLOCK, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _look(_context: Any, _block: Any, _word: Any) -> Any:
    """A word of the block, as it is now."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "acquire", 8)

    return types.int64(_BLOCK, types.int64), generate


@njit  # type: ignore[untyped-decorator]
def next_part(block: Any) -> Any:
    """Takes the next part of the work for the calling thread; the work is done when it is not below block[1]."""
    return _count(block, 0)


@njit  # type: ignore[untyped-decorator]
def was_last(block: Any) -> Any:
    """Says that a part is done; whether all are."""
    return _count(block, 2) + 1 == block[1]


@njit  # type: ignore[untyped-decorator]
def release(block: Any) -> None:
    """Lets the threads that wait for the end of the first half go on."""
    _count(block, 3)


@njit  # type: ignore[untyped-decorator]
def wait(block: Any) -> None:
    spins = 0
    while _look(block, 3) == 0:
        spins += 1
        if spins > _SPINS:
            _yield_core()


@njit  # type: ignore[untyped-decorator]
def next_of_second(block: Any) -> Any:
    """As next_part, in the second half."""
    return _count(block, 4)


class Parallel:
    """A function of a block of 64-bit numbers that does parts of a work, compiled on its first call.

    The block is [parts taken, parts, parts done, released, parts of the second half taken, *numbers]. Each thread takes
    parts until none is left, so the result does not depend on how many threads there are. The compiled code is kept on
    disk, where that may be written to.
    """

    FIRST = 5  # place of the first number

    def __init__(self, function: Callable[[Any], None]) -> None:
        self.function = function

    @cached_property
    def compiled(self) -> Any:
        signature = types.void(_BLOCK)
        try:
            return cfunc(signature, cache=True, **OPTIONS)(self.function)
        except RuntimeError:
            return cfunc(signature, **OPTIONS)(self.function)

    @cached_property
    def alone(self) -> Any:
        """The compiled function, for the calling thread."""
        compiled = self.compiled
        function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
        function.owner = compiled  # has the code that the address leads to
        return function

    def __call__(self, parts: int, *numbers: int) -> None:
        """Does all parts; pointers are numbers, and so are floats by `bits`."""
        block = array("q", (0, parts, 0, 0, 0, *numbers))
        start, _ = block.buffer_info()
        threads = 1 if parts == 1 else min(parts, torch.get_num_threads())
        if threads == 1 or _parallel_region is None:
            self.alone(start)
        else:
            _parallel_region(self.compiled.address, start, threads, 0)


def bits(value: float) -> int:
    """A float64 as the number that has its bits."""
    number: int = struct.unpack("q", struct.pack("d", value))[0]
    return number


def _find_parallel_region() -> Any:
    """The function of the OpenMP library that torch has loaded; None where there is none of those known."""
    for name in _LIBRARIES:
        try:
            function = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
        return function
    return None


_parallel_region = _find_parallel_region()
