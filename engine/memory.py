"""Memory that training steps have freed: kept for the next step, or given back."""

import ctypes
import gc
from contextlib import suppress

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, for the next step, as the allocator on a GPU does.

    glibc would hand feature maps back to the system, which fills each page with zeros when the next step asks for it:
    a tenth of the step. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def give_freed_memory_back() -> None:
    """To the system or the GPU: what comes next runs in other processes."""
    gc.collect()  # a step holds its memory in a circle
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
