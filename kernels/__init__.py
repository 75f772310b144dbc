"""Fused operations with kernels of their own: Triton on a GPU, compiled passes on the CPU, plain torch for the rest.

Gradients are those of reverse mode. Forward mode and the transforms of torch.func are refused, second derivatives too
but for those of max_pool on the CPU.

Importing the package loads no torch: an operation comes, and torch with it, when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.asymmetric import asymmetric_loss
    from kernels.batch_norm import batch_norm_relu, batch_norm_relu_concat
    from kernels.bce import sigmoid_bce
    from kernels.conv1x1 import conv1x1_residual_relu
    from kernels.pixels import normalize
    from kernels.pool import max_pool
    from kernels.residual import residual_add_relu

__all__ = [
    "asymmetric_loss",
    "batch_norm_relu",
    "batch_norm_relu_concat",
    "conv1x1_residual_relu",
    "max_pool",
    "normalize",
    "residual_add_relu",
    "sigmoid_bce",
]

_HOME = {
    "asymmetric_loss": "kernels.asymmetric",
    "batch_norm_relu": "kernels.batch_norm",
    "batch_norm_relu_concat": "kernels.batch_norm",
    "conv1x1_residual_relu": "kernels.conv1x1",
    "max_pool": "kernels.pool",
    "normalize": "kernels.pixels",
    "residual_add_relu": "kernels.residual",
    "sigmoid_bce": "kernels.bce",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    # Kept in the namespace, so that the next look-up is an ordinary one.
    globals()[name] = operation = getattr(import_module(_HOME[name]), name)
    return operation


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
