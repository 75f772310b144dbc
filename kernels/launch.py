"""Where an operation runs: as its Triton kernel or as plain torch."""

import torch
import triton
from torch import Tensor

# TRITON_INTERPRET=1 at import makes the kernels run on CPU tensors too.
INTERPRETED: bool = triton.knobs.runtime.interpret


def takes_triton(x: Tensor) -> bool:
    """Whether the kernel runs on x. An empty tensor has nothing to launch: plain torch gives it what is due."""
    return x.numel() > 0 and (x.is_cuda or (INTERPRETED and x.dtype != torch.float64))
