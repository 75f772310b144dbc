"""Batch norm over several processes: with one in the group it is batch norm, gradients included. That several are as
one is in tests/engine/test_ranks.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine.model import Conv, InceptionResidual, Reduction
from kernels.batch_norm_ranks import synchronised


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def results(
    module: torch.nn.Module, x: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, gradients and running statistics of a training pass."""
    own = x.clone().requires_grad_()
    for parameter in module.parameters():
        parameter.grad = None
    for name, buffer in module.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.0)
    with synchronised(group):
        y = module(own)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weights).sum().backward()  # outside: the backward pass follows the forward pass
    grads = [own.grad, *(p.grad for p in module.parameters())]
    return y.detach(), [g for g in grads if g is not None], [b.clone() for b in module.buffers()]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "mean"),
    [(torch.float64, 1e-9, 20), (torch.float32, 2e-4, 20), (torch.bfloat16, 5e-2, 0)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("kind", ["block", "reduction"])
def test_one_process_is_batch_norm(
    group: dist.ProcessGroup, kind: str, dtype: torch.dtype, tolerance: float, mean: float
) -> None:
    """Joined maps, slices of merged convolutions and single maps, whose mean may be far from 0."""
    torch.manual_seed(3)
    branches: list[list[Conv]] = [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, 3, 1, 1)]]
    strided: list[list[Conv]] = [[(8, 3, 2, 0)], [(8, 1, 1, 0), (8, 3, 2, 0)]]
    module = InceptionResidual(16, branches, 0.2) if kind == "block" else Reduction(16, strided)
    module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype == torch.float64:
        module.double()
    x = (torch.randn(4, 16, 9, 9, dtype=torch.float64) + mean).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    y, grads, running = results(module, x, None)
    y_2, grads_2, running_2 = results(module, x, group)
    for one, other in zip([y, *grads, *running], [y_2, *grads_2, *running_2], strict=True):
        scale = max(1.0, one.double().abs().max().item())
        assert (one.double() - other.double()).abs().max().item() < tolerance * scale


def test_evaluation_takes_the_running_statistics(group: dist.ProcessGroup) -> None:
    module = InceptionResidual(16, [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, 3, 1, 1)]], 0.2).eval()
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    plain = module(x)
    with synchronised(group):
        assert torch.equal(module(x), plain)
