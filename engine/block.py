"""A residual Inception block, forward and backward, in as few passes over memory as its parts allow.

    h     = conv1×1(x, head)                                    all branches' first convolutions, merged into one
    u     = relu(norm(h_b)), relu(norm(conv(u))), ...           along each branch
    mixed = relu(norm(·)) of each branch's last convolution     written side by side, nothing is concatenated
    y     = relu(x + scale · (conv1×1(mixed, tail) + bias))     the join in the epilogue of the product

The backward pass is written out, since autograd cannot know what belongs together: the gradients of the merged
convolution's slices are written side by side, and its product with the weights is added to the residual connection's
gradient where that lies, in the epilogue of the product.

Source: Szegedy et al. 2016, arXiv:1602.07261, figures 10, 11 and 13; Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from kernels import batch_norm, conv1x1

Padding = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change from call to call.

    Attributes:
        chains: of each branch, the paddings of the convolutions after its first, which is 1×1.
        scale: of the branches beside the residual connection.
        relu: whether the block ends with one.
        eps: of the norms.
    """

    chains: tuple[tuple[Padding, ...], ...]
    scale: float
    relu: bool
    eps: float

    def units(self, branch: int) -> list[int]:
        """Numbers of a branch's norms, in its order. The first of all branches come first, then branch after branch."""
        first = len(self.chains) + sum(len(chain) for chain in self.chains[:branch])
        return [branch, *range(first, first + len(self.chains[branch]))]


class _Norms:
    """The norms of a block by number: what they are given, what they make of it, and by which vectors."""

    def __init__(self, plan: Plan, training: bool, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.plan, self.training = plan, training
        self.weights, self.biases = list(weights), list(biases)
        self.raw: dict[int, Tensor] = {}
        self.out: dict[int, Tensor] = {}
        self.mean: dict[int, Tensor] = {}
        self.spread: dict[int, Tensor] = {}
        self.grad_weight: dict[int, Tensor] = {}
        self.grad_bias: dict[int, Tensor] = {}

    def forward(self, units: list[int], running: Sequence[Tensor], joined: bool) -> tuple[list[Tensor], Tensor]:
        """Normalises what these were given; the maps, and the statistics of the batch."""
        xs = [self.raw[i] for i in units]
        weights, biases = [self.weights[i] for i in units], [self.biases[i] for i in units]
        half = len(running) // 2
        own = [running[i] for i in units] + [running[half + i] for i in units]
        ys, statistics = batch_norm.forward(
            xs, weights, biases, own, None, self.training, self.plan.eps, True, 1.0, joined
        )
        means, spreads = batch_norm.of_each(xs, statistics, own, self.training)
        self.mean.update(zip(units, means, strict=True))
        self.spread.update(zip(units, spreads, strict=True))
        parts = [ys[0][:, part] for part in batch_norm.slices(xs)] if joined else ys
        self.out.update(zip(units, parts, strict=True))
        return ys, statistics

    def backward(self, units: list[int], grads: list[Tensor], joined: bool) -> list[Tensor]:
        """Gradients of what these were given, and those of their weights and biases."""
        xs, ys = [self.raw[i] for i in units], [self.out[i] for i in units]
        vectors = [[of[i] for i in units] for of in (self.weights, self.biases, self.mean, self.spread)]
        grad_xs: list[Tensor]
        grad_xs, sums, _ = batch_norm.backward(
            grads, xs, ys, *vectors, self.training, self.plan.eps, True, False, 1.0, joined
        )
        for i, part in zip(units, batch_norm.slices(xs), strict=True):
            self.grad_bias[i], self.grad_weight[i] = sums[0, part], sums[1, part]
        return grad_xs


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        training: bool,
        x: Tensor,
        head: Tensor,
        tail: Tensor,
        bias: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """`rest`: weights of the other convolutions; weights, biases, running means and variances of the norms.

        Returns y and the statistics of each norm of the batch, [3, C], by number.
        """
        branches = range(len(plan.chains))
        chained = sum(map(len, plan.chains))
        count = chained + len(plan.chains)
        convs, vectors = rest[:chained], rest[chained:]
        norms = _Norms(plan, training, vectors[:count], vectors[count : 2 * count])
        running = vectors[2 * count :]
        found: dict[int, Tensor] = {}

        def normalize(units: list[int], joined: bool) -> list[Tensor]:
            ys, statistics = norms.forward(units, running, joined)
            if training:
                parts = batch_norm.slices([norms.raw[i] for i in units])
                found.update({i: statistics[:, part] for i, part in zip(units, parts, strict=True)})
            return ys

        h = conv2d(x, head)
        norms.raw.update(enumerate(torch.split(h, [len(norms.weights[b]) for b in branches], 1)))
        normalize([b for b in branches if plan.chains[b]], joined=False)
        for b in branches:
            units = plan.units(b)
            for i, unit in enumerate(units[1:]):
                conv = convs[unit - len(plan.chains)]
                norms.raw[unit] = conv2d(norms.out[units[i]], conv, padding=plan.chains[b][i])
                if unit != units[-1]:
                    normalize([unit], joined=False)
        last = [plan.units(b)[-1] for b in branches]
        (mixed,) = normalize(last, joined=True)
        y = conv1x1.forward(x, mixed, tail.flatten(1), bias, plan.scale, plan.relu)
        inner = [i for i in range(count) if i not in last]
        ctx.plan, ctx.training = plan, training
        ctx.save_for_backward(
            *(x, h, mixed, y, head, tail, *convs, *vectors[: 2 * count]),
            *(norms.raw[i] for i in range(len(plan.chains), count)),
            *(norms.out[i] for i in inner),
            *(norms.mean[i] for i in range(count)),
            *(norms.spread[i] for i in range(count)),
        )
        statistics = tuple(found[i] for i in range(count)) if training else ()
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        branches = range(len(plan.chains))
        chained = sum(map(len, plan.chains))
        count = chained + len(plan.chains)
        last = [plan.units(b)[-1] for b in branches]
        inner = [i for i in range(count) if i not in last]
        x, h, mixed, y, head, tail, *saved = ctx.saved_tensors
        sizes = [chained, count, count, chained, len(inner), count, count]
        edges = pairwise(accumulate(sizes, initial=0))
        convs, weights, biases, raws, outs, means, spreads = (saved[a:b] for a, b in edges)
        norms = _Norms(plan, ctx.training, weights, biases)
        widths = [len(weights[b]) for b in branches]
        norms.raw.update({**dict(enumerate(torch.split(h, widths, 1))), **dict(enumerate(raws, len(branches)))})
        norms.out.update(zip(inner, outs, strict=True))
        norms.out.update(zip(last, torch.split(mixed, [len(weights[i]) for i in last], 1), strict=True))
        norms.mean.update(enumerate(means))
        norms.spread.update(enumerate(spreads))

        grad_x, grad_mixed, grad_tail, grad_bias = _tail_backward(grad, y, mixed, tail, plan)
        at_last = dict(zip(last, torch.split(grad_mixed, [len(weights[i]) for i in last], 1), strict=True))
        grad_convs: dict[int, Tensor] = {}
        grads: dict[int, Tensor] = {b: at_last[b] for b in branches if b in at_last}
        ends = [i for i in last if i >= len(branches)]
        grad_raw = dict(zip(ends, norms.backward(ends, [at_last[i] for i in ends], joined=False), strict=True))
        for b in branches:
            units = plan.units(b)
            for i in range(len(units) - 1, 0, -1):
                conv = units[i] - len(branches)
                grads[units[i - 1]], grad_convs[conv] = _conv_backward(
                    grad_raw[units[i]], norms.out[units[i - 1]], convs[conv], plan.chains[b][i - 1]
                )
                if i > 1:
                    (grad_raw[units[i - 1]],) = norms.backward([units[i - 1]], [grads[units[i - 1]]], joined=False)
        (grad_h,) = norms.backward(list(branches), [grads[b] for b in branches], joined=True)
        rows_h, rows_x = conv1x1.rows(grad_h), conv1x1.rows(x)
        room = conv1x1.rows(grad_x)
        product = (rows_h, head.flatten(1))
        # What _tail_backward made with a ReLU is nobody else's, and takes the sum.
        added = room.addmm_(*product) if plan.relu else torch.addmm(room, *product)
        grad_head = torch.mm(rows_h.t(), rows_x).view_as(head)
        return (
            *(None, None, conv1x1.map_like(added, x), grad_head, grad_tail, grad_bias),
            *(grad_convs[i] for i in range(chained)),
            *(norms.grad_weight[i] for i in range(count)),
            *(norms.grad_bias[i] for i in range(count)),
            *[None] * (2 * count),
        )


def _tail_backward(
    grad: Tensor, y: Tensor, mixed: Tensor, tail: Tensor, plan: Plan
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the residual connection, of the mixed branches, of the last convolution's weight and bias."""
    if plan.relu:
        grad, sums = conv1x1.backward(grad, y, True)
    else:
        sums = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
    rows = conv1x1.rows(grad)
    grad_mixed = conv1x1.map_like(conv1x1.scaled_product(rows, tail.flatten(1), plan.scale), grad)
    grad_tail = conv1x1.scaled_product(rows.t(), conv1x1.rows(mixed), plan.scale).view_as(tail)
    return grad, grad_mixed, grad_tail, sums * plan.scale


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return grad_x, grad_weight


def inception_residual(
    plan: Plan,
    training: bool,
    x: Tensor,
    head: Tensor,
    convs: Sequence[Tensor],
    tail: Tensor,
    bias: Tensor,
    norms: Sequence[Sequence[Tensor]],
) -> tuple[Tensor, list[Tensor]]:
    """A residual Inception block.

    Args:
        plan: its structure.
        training: whether the norms take the batch's statistics.
        x: [N, C, H, W] channels-last, float32, float16 or bfloat16.
        head: [ΣC_b, C, 1, 1] in the dtype of x, the branches' first convolutions side by side.
        convs: weights of the other convolutions of the branches, branch after branch, in the dtype of x.
        tail: [C, K, 1, 1] in the dtype of x.
        bias: [C] float32.
        norms: weights, biases, running means and running variances, float32, of the branches' first norms, then of
            the others as in convs.

    Returns:
        y as x, and in training the statistics [3, C] of each norm as kernels.batch_norm has them.
    """
    y, *statistics = _Block.apply(plan, training, x, head, tail, bias, *convs, *(v for kind in norms for v in kind))
    return y, statistics
