"""Memory that a training step on the CPU frees and takes again."""

import ctypes

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
