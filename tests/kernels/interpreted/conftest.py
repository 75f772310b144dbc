"""The Triton kernels in Triton's interpreter, on CPU tensors.

Triton decides for the interpreter when a kernel is defined, so these tests need a process that starts with
TRITON_INTERPRET=1: test_interpreter.py starts it, and the names of these files keep them out of every other run.
The interpreter truncates where a GPU rounds a float32 to bfloat16; the tolerance leaves room for that.
"""

from kernels.launch import INTERPRETED

assert INTERPRETED, "start the process with TRITON_INTERPRET=1"
