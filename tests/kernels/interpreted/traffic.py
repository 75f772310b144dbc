"""What operators declare to launch and move, against what their kernels do in the interpreter."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from triton.runtime import interpreter

from kernels import traffic
from kernels.traffic import Pass

CHANNELS_LAST = torch.channels_last
traffic.import_all()


class Meter:
    """Bytes that each launch touches, every byte once."""

    def __init__(self) -> None:
        self.launches: list[tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]] = []

    def passes(self) -> list[Pass]:
        def distinct(touched: list[np.ndarray[Any, Any]]) -> int:
            return len(np.unique(np.concatenate(touched))) if touched else 0

        return [Pass(distinct(read), distinct(written)) for read, written in self.launches]


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    meter = Meter()
    builder, grid = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, grid.__call__

    def touched(pointers: Any, mask: Any) -> np.ndarray[Any, Any]:
        width = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        kept = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)].ravel()
        return (kept[:, None] + np.arange(width, dtype=kept.dtype)).ravel()

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        meter.launches[-1][0].append(touched(pointers, mask))
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        meter.launches[-1][1].append(touched(pointers, mask))
        return store(self, pointers, value, mask, *rest)

    def counted_call(self: Any, *arguments: Any, **options: Any) -> Any:
        meter.launches.append(([], []))
        return call(self, *arguments, **options)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    monkeypatch.setattr(grid, "__call__", counted_call)
    return meter


def feature_map(channels: int, dtype: torch.dtype = torch.bfloat16, height: int = 9, width: int = 7) -> Tensor:
    return torch.rand(2, channels, height, width).to(dtype).contiguous(memory_format=CHANNELS_LAST)


def vectors(*widths: int) -> list[Tensor]:
    return [torch.rand(width) + 0.5 for width in widths]


def loss(rows: int, labels: int, *options: Any) -> tuple[Any, ...]:
    return (torch.randn(rows, labels), torch.rand(rows, labels) < 0.5, *options)


X, XS = feature_map(24), [feature_map(8), feature_map(40)]
VECTORS = [vectors(8, 40) for _ in range(4)]
MASK = torch.ones(7, dtype=torch.bool)
ROWS = torch.randn(126, 24).bfloat16()
TRAINING, EVAL = (None, True, 1e-3, True, 1.0, True), (None, False, 1e-3, True, 1.0, False)
RUNNING = [*VECTORS[2], *VECTORS[3]]
GRADIENT = (XS, XS, XS, *VECTORS)
ALONE = ([X], [X], [X], *([v] for v in vectors(24, 24, 24, 24)))
CALLS: dict[str, tuple[Any, ...]] = {
    "residual_add_relu": (X, X, 0.17, True),
    "residual_add_relu_backward": (X, X, 0.17),
    "sigmoid_bce": loss(7, 20, vectors(20)[0], MASK, 0.1, "mean", True),
    "sigmoid_bce of several programs": loss(7, 601, None, None, 0.0, "sum", True),
    "sigmoid_bce without reduction": loss(7, 601, None, None, 0.0, "none", False),
    "scale_gradient": (torch.randn(7, 20), torch.rand(()), torch.randn(7, 20).bfloat16()),
    "asymmetric_loss": loss(7, 20, MASK, 0.0, 4.0, 0.05, "mean", True),
    "asymmetric_loss of several programs": loss(7, 601, None, 0.0, 4.0, 0.0, "mean", False),
    "normalize": (torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8), [1.0] * 3, [2.0] * 3, torch.bfloat16),
    "max_pool": (X,),
    "max_pool of even sizes": (feature_map(24, height=8, width=6),),
    "max_pool_backward": (feature_map(24, height=4, width=3), feature_map(24, torch.uint8, 4, 3), 9, 7),
    "conv1x1_residual_relu": (X, feature_map(40), torch.randn(24, 40).bfloat16(), vectors(24)[0], 0.1, True),
    "conv1x1_input_gradient": (X, feature_map(40), torch.randn(40, 24).bfloat16(), X),
    "relu_backward_and_sums": (X, X, True),
    "relu_backward_and_sums without sums": (X, X, False),
    "batch_norm_relu": (XS, *VECTORS[:2], RUNNING, *TRAINING),
    "batch_norm_relu with running statistics": (XS, *VECTORS[:2], RUNNING, *EVAL),
    "batch_norm_relu with a residual": ([X], *(vectors(24) for _ in range(2)), vectors(24, 24), X, *TRAINING[1:]),
    "batch_norm_relu_into": (X.clone(), X, *vectors(24, 24), vectors(24, 24), *TRAINING[:-1]),
    "batch_norm_relu_backward": (*GRADIENT, True, 1e-3, True, False, 1.0, True),
    "batch_norm_relu_backward with running statistics": (*GRADIENT, False, 1e-3, True, False, 1.0, False),
    "batch_norm_relu_backward with a residual": (*ALONE, True, 1e-3, True, True, 0.2, True),
}


@pytest.mark.parametrize("name", CALLS)
def test_declaration(meter: Meter, name: str) -> None:
    # Each argument has memory of its own, however often a case names it.
    operator, arguments = name.split()[0], tree_map_only(Tensor, Tensor.clone, CALLS[name])
    getattr(torch.ops.manylabel, operator)(*arguments)
    declared = traffic.passes(f"manylabel::{operator}", arguments)
    assert meter.passes() == [Pass(p.read, p.written) for p in declared if not p.library]


def test_every_operator_declares() -> None:
    operators = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("manylabel::")}
    assert operators == set(traffic.DECLARED)
    of_libraries = {"scaled_product"}
    assert operators == {f"manylabel::{name.split()[0]}" for name in CALLS} | {f"manylabel::{n}" for n in of_libraries}
