"""kernels.batch_norm with the statistics of all processes' batches together, as if one process had them all.

    n = Σ n_r    mean = Σ n_r · mean_r / n    M = Σ (M_r + n_r · (mean_r - mean)²)    variance = M / n
    grad_x = weight · rstd · (g - Σg / n - x̂ · Σ(g · x̂) / n)

Each process (r) makes the statistics of its own rows; means and sums of squared deviations M_r are joined in float64 by
the formula of Chan et al., in the order of the processes, so that all have the same bits. The map is then normalised as
with running statistics. The backward pass is that of running statistics, whose sums are the gradients of this process's
weights and biases, and one pass more for what the sums of all processes add.

Beside kernels.batch_norm a gather of 2·C numbers forward, a sum of 2·C backward, and 3·n·C·b bytes backward.

Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", equation 2.1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import batch_norm_triton
from kernels.launch import takes_triton
from kernels.maps import slices

Group = dist.ProcessGroup | None
Forward = Callable[..., tuple[list[Tensor], Tensor]]
Backward = Callable[..., tuple[list[Tensor], Tensor, Tensor]]

_groups: list[Group] = [None]


@contextmanager
def synchronised(group: Group) -> Iterator[None]:
    """Batch norms in training take the statistics of a group's batches while this lasts; None: their own.

    The backward pass follows what the forward pass was; all processes of the group take part in both.
    """
    _groups.append(group)
    try:
        yield
    finally:
        _groups.pop()


def current_group() -> Group:
    """That of the innermost `synchronised`."""
    return _groups[-1]


def forward(
    own: Forward,
    group: Group,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
    joined: bool,
) -> tuple[list[Tensor], Tensor]:
    """What `own`, kernels.batch_norm.forward, gives for the rows of all processes."""
    if group is None or not training:
        return own(xs, weights, biases, running, residual, training, eps, relu, scale, joined)
    rows = xs[0].numel() // xs[0].shape[1]
    if takes_triton(xs[0]):
        statistics = batch_norm_triton.statistics(xs, eps)
    else:
        _, statistics = own(xs, weights, biases, running, residual, True, eps, relu, scale, joined)
    found = statistics.double()
    count = found.new_full((1,), rows)
    sent = torch.cat((count, found[0], found[2] * max(rows - 1, 1)))
    everyone = sent.new_empty(dist.get_world_size(group), len(sent))
    dist.all_gather_single(everyone.view(-1), sent, group)
    counts, means, squares = torch.split(everyone, [1, found.shape[1], found.shape[1]], 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    square = (squares + counts * (means - mean) ** 2).sum(0)
    variance = square / total
    joint = torch.stack((mean, (variance + eps).rsqrt(), square / (total - 1).clamp(min=1)))
    vectors = [v[part] for v in (mean.to(statistics.dtype), variance.to(statistics.dtype)) for part in slices(xs)]
    ys, _ = own(xs, weights, biases, vectors, residual, False, eps, relu, scale, joined)
    return ys, joint.to(statistics.dtype)


def backward(
    own: Backward,
    group: Group,
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    means: Sequence[Tensor],
    spreads: Sequence[Tensor],
    training: bool,
    eps: float,
    *options: Any,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What `own`, kernels.batch_norm.backward, gives, the gradients of xs for the rows of all processes.

    Raises:
        ValueError: with a residual.
    """
    if group is None or not training:
        return own(grads, xs, ys, weights, biases, means, spreads, training, eps, *options)
    _, with_residual, _, joined = options
    if with_residual:
        raise ValueError("statistics of several processes go without a residual")
    variances = [(spread.double() ** -2 - eps).clamp(min=0).to(spread.dtype) for spread in spreads]
    grad_xs, sums, nothing = own(grads, xs, ys, weights, biases, means, variances, False, eps, *options)
    rows = sums.new_full((1,), xs[0].numel() // xs[0].shape[1], dtype=torch.float64)
    total = torch.cat((rows, sums.double().view(-1)))
    dist.all_reduce(total, group=group)
    of_biases, of_weights = (total[1:] / total[0]).view(2, -1)
    parts = slices(xs)
    places = [grad_xs[0][:, part] for part in parts] if joined else grad_xs
    for place, x, weight, mean, spread, part in zip(places, xs, weights, means, spreads, parts, strict=True):
        factor, slope = weight.double() * spread.double(), of_weights[part] * spread.double()
        offset = factor * (of_biases[part] - mean.double() * slope)
        of_x, offset = ((-v).to(weight.dtype).view(1, -1, 1, 1) for v in (factor * slope, offset))
        place.copy_(torch.addcmul(place.to(weight.dtype) + offset, x.to(weight.dtype), of_x))
    return grad_xs, sums, nothing
