"""The Triton kernels in Triton's interpreter, on CPU tensors.

Triton decides for the interpreter when a kernel is defined, so these tests need a process that starts with
TRITON_INTERPRET=1: test_interpreter.py starts it, and the names of these files keep them out of every other run.
The interpreter truncates where a GPU rounds a float32 to bfloat16; the tolerance leaves room for that.
"""

import inspect
from functools import cache
from types import SimpleNamespace
from typing import Any

from triton.runtime import interpreter

from kernels.launch import INTERPRETED

assert INTERPRETED, "start the process with TRITON_INTERPRET=1"


@cache
def _names(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if interpreter.tl.core.is_builtin(member)]


def _builtins(package: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(package, name)) for name in _names(package)]


# Triton searches its language for builtins anew for each call of a function, a quarter of the time.
interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": _builtins})
