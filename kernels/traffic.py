"""What an operator launches on a GPU and what each launch moves between memory and the chip, by declaration.

torch's code generator sees an operator of torch.library as one launch that reads its inputs and writes its outputs
once. What it really does is declared beside the operator, and the tests hold that against the loads and stores that
its Triton kernels make in the interpreter.

The convention: each launch reads every byte that it touches once, however many programs read it, since what several
programs share (weights, a channel's statistics) comes from the cache; and it writes every byte once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch.

    Attributes:
        read, written: bytes.
        library: whether it is torch's or a vendor's kernel, not one of ours.
    """

    read: int
    written: int
    library: bool = False


Declaration = Callable[..., list[Pass]]
DECLARED: dict[str, Declaration] = {}  # by the operator's name, "manylabel::..."


def declares(operator: str) -> Callable[[Declaration], Declaration]:
    """Marks the function of an operator's arguments, fake tensors or real ones, that says what it launches."""

    def register(declaration: Declaration) -> Declaration:
        DECLARED[f"manylabel::{operator}"] = declaration
        return declaration

    return register


def size(*tensors: Tensor | None) -> int:
    """Bytes of the elements of tensors; what lies between the elements of a slice does not count."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors if tensor is not None)


def passes(operator: str, arguments: tuple[Any, ...]) -> list[Pass]:
    """What a call launches, in its order."""
    import_all()
    return DECLARED[operator](*arguments)


def import_all() -> None:
    """Declarations stand beside their operators."""
    from kernels import asymmetric, batch_norm, bce, conv1x1, pixels, pool, residual  # noqa: F401
