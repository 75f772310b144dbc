"""Residual Inception blocks, forward and backward, in as few passes over memory as their parts allow.

    h     = conv1×1(x, head)                                    all branches' first convolutions, merged into one
    u     = relu(norm(h_b)), relu(norm(conv(u))), ...           along each branch
    mixed = relu(norm(·)) of each branch's last convolution     written side by side, nothing is concatenated
    y     = relu(x + scale · (conv1×1(mixed, tail) + bias))     the join in the epilogue of the product

The backward pass is written out, since autograd cannot know what belongs together: the gradients of the merged
convolution's slices are written side by side; its product with the weights takes the residual connection's gradient,
the mask of the ReLU before it and the sums of the bias before that in its epilogue.

Source: Szegedy et al. 2016, arXiv:1602.07261, figures 10, 11 and 13; Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from kernels import batch_norm_ranks, conv1x1
from kernels.batch_norm import own_backward, own_forward
from kernels.batch_norm_triton import of_each
from kernels.launch import past_dispatcher
from kernels.products import matmul

# Autograd asks nothing of them here: the backward pass is written out.
_join, _join_backward = past_dispatcher(conv1x1.forward), past_dispatcher(conv1x1.backward)
_product, _input_gradient = past_dispatcher(conv1x1.scaled_product), past_dispatcher(conv1x1.input_gradient)

Padding = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not change from call to call.

    The norms of a block are numbered: the first of all branches come first, then branch after branch.

    Attributes:
        chains: of each branch, the paddings of the convolutions after its first, which is 1×1.
        scale: of the branches beside the residual connection.
        relu: whether the block ends with one.
        eps: of the norms.
        chained: convolutions after the branches' first ones and before the last.
        norms: how many there are.
        units: numbers of each branch's norms, in its order.
        last: numbers of the norms that make the mixed map.
        inner: numbers of the others.
    """

    chains: tuple[tuple[Padding, ...], ...]
    scale: float
    relu: bool
    eps: float
    chained: int = field(init=False)
    norms: int = field(init=False)
    units: tuple[tuple[int, ...], ...] = field(init=False)
    last: tuple[int, ...] = field(init=False)
    inner: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        edges = list(accumulate(map(len, self.chains), initial=len(self.chains)))
        units = tuple((branch, *range(*edge)) for branch, edge in enumerate(pairwise(edges)))
        last = tuple(numbers[-1] for numbers in units)
        found = {"chained": edges[-1] - len(self.chains), "norms": edges[-1], "units": units, "last": last}
        found["inner"] = tuple(i for i in range(edges[-1]) if i not in last)
        for name, value in found.items():
            object.__setattr__(self, name, value)


class _Norms:
    """The norms of a block by number: what they are given, what they make of it, and by which vectors."""

    def __init__(
        self,
        plan: Plan,
        training: bool,
        group: batch_norm_ranks.Group,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
    ) -> None:
        self.plan, self.training, self.group = plan, training, group
        self.weights, self.biases = list(weights), list(biases)
        self.raw: dict[int, Tensor] = {}
        self.out: dict[int, Tensor] = {}
        self.mean: dict[int, Tensor] = {}
        self.spread: dict[int, Tensor] = {}
        self.grad_weight: dict[int, Tensor] = {}
        self.grad_bias: dict[int, Tensor] = {}

    def forward(self, units: Sequence[int], running: Sequence[Tensor], joined: bool) -> tuple[list[Tensor], Tensor]:
        """Normalises what these were given; the maps, and the statistics of the batch."""
        xs = [self.raw[i] for i in units]
        weights, biases = [self.weights[i] for i in units], [self.biases[i] for i in units]
        half = len(running) // 2
        own = [running[i] for i in units] + [running[half + i] for i in units]
        options = (self.training, self.plan.eps, True, 1.0, joined)
        ys, statistics = batch_norm_ranks.forward(own_forward, self.group, xs, weights, biases, own, None, *options)
        means, spreads = of_each(xs, statistics, own, self.training)
        self.mean.update(zip(units, means, strict=True))
        self.spread.update(zip(units, spreads, strict=True))
        parts = ys[0].split_with_sizes([x.shape[1] for x in xs], 1) if joined else ys
        self.out.update(zip(units, parts, strict=True))
        return ys, statistics

    def backward(self, units: Sequence[int], grads: list[Tensor], joined: bool) -> list[Tensor]:
        """Gradients of what these were given, and those of their weights and biases."""
        xs, ys = [self.raw[i] for i in units], [self.out[i] for i in units]
        vectors = [[of[i] for i in units] for of in (self.weights, self.biases, self.mean, self.spread)]
        grad_xs: list[Tensor]
        own: Sequence[Any] = (*vectors, self.training, self.plan.eps, True, False, 1.0, joined)
        grad_xs, sums, _ = batch_norm_ranks.backward(own_backward, self.group, grads, xs, ys, *own)
        for i, part in zip(units, sums.split_with_sizes([x.shape[1] for x in xs], 1), strict=True):
            self.grad_bias[i], self.grad_weight[i] = part.unbind()
        return grad_xs


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Weights and vectors of one block, in the order in which autograd is given them."""

    head: Tensor
    tail: Tensor
    bias: Tensor
    convs: Sequence[Tensor]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    running: Sequence[Tensor]

    @staticmethod
    def count(plan: Plan) -> int:
        return 3 + plan.chained + 4 * plan.norms

    @staticmethod
    def of(plan: Plan, tensors: Sequence[Tensor]) -> "_Tensors":
        head, tail, bias, *rest = tensors
        n = plan.norms
        convs, vectors = rest[: plan.chained], rest[plan.chained :]
        return _Tensors(head, tail, bias, convs, vectors[:n], vectors[n : 2 * n], vectors[2 * n :])


def _forward(
    plan: Plan, training: bool, group: batch_norm_ranks.Group, x: Tensor, given: _Tensors
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """y, what the backward pass needs, and in training the statistics of the norms."""
    branches = range(len(plan.chains))
    norms = _Norms(plan, training, group, given.weights, given.biases)
    found: dict[int, Tensor] = {}

    def normalize(units: Sequence[int], joined: bool) -> list[Tensor]:
        ys, statistics = norms.forward(units, given.running, joined)
        if training:
            found.update(
                zip(units, statistics.split_with_sizes([norms.weights[i].shape[0] for i in units], 1), strict=True)
            )
        return ys

    h = conv2d(x, given.head)
    norms.raw.update(enumerate(h.split_with_sizes([norms.weights[b].shape[0] for b in branches], 1)))
    normalize([b for b in branches if plan.chains[b]], joined=False)
    for b in branches:
        units = plan.units[b]
        for i, unit in enumerate(units[1:]):
            conv = given.convs[unit - len(plan.chains)]
            norms.raw[unit] = conv2d(norms.out[units[i]], conv, padding=plan.chains[b][i])
            if unit != units[-1]:
                normalize([unit], joined=False)
    (mixed,) = normalize(plan.last, joined=True)
    y = _join(x, mixed, given.tail.flatten(1), given.bias, plan.scale, plan.relu)
    everyone = range(plan.norms)
    saved = [x, h, mixed, y, given.head, given.tail, *given.convs, *given.weights, *given.biases]
    saved += [norms.raw[i] for i in everyone[len(branches) :]] + [norms.out[i] for i in plan.inner]
    saved += [norms.mean[i] for i in everyone] + [norms.spread[i] for i in everyone]
    return y, saved, [found[i] for i in everyone] if training else []


def _saved_count(plan: Plan) -> int:
    return 6 + 2 * plan.chained + 4 * plan.norms + len(plan.inner)


def _backward(
    plan: Plan,
    training: bool,
    group: batch_norm_ranks.Group,
    grad: Tensor,
    sums: Tensor,
    everything: Sequence[Tensor],
    first: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The gradient of x, its sums over the pixels, and the gradients of the block's own tensors, that of the bias yet
    without the scale.

    `grad` is that of what the ReLU was given, `sums` [C] its sums over the pixels. So is the gradient of x, unless this
    is the first block: x came out of the ReLU of the block before.
    """
    branches, n = range(len(plan.chains)), plan.norms
    x, h, mixed, _, head, tail, *saved = everything
    sizes = [plan.chained, n, n, plan.chained, len(plan.inner), n, n]
    edges = pairwise(accumulate(sizes, initial=0))
    convs, weights, biases, raws, outs, means, spreads = (saved[a:b] for a, b in edges)
    norms = _Norms(plan, training, group, weights, biases)
    last_widths = [weights[i].shape[0] for i in plan.last]
    norms.raw.update(enumerate(h.split_with_sizes([weights[b].shape[0] for b in branches], 1)))
    norms.raw.update(enumerate(raws, len(branches)))
    norms.out.update(zip(plan.inner, outs, strict=True))
    norms.out.update(zip(plan.last, mixed.split_with_sizes(last_widths, 1), strict=True))
    norms.mean.update(enumerate(means))
    norms.spread.update(enumerate(spreads))

    rows = conv1x1.rows(grad)
    grad_mixed = conv1x1.map_like(_product(rows, tail.flatten(1), plan.scale), grad)
    grad_tail = _product(rows.t(), conv1x1.rows(mixed), plan.scale).view_as(tail)
    grads = dict(zip(plan.last, grad_mixed.split_with_sizes(last_widths, 1), strict=True))
    ends = [i for i in plan.last if i >= len(branches)]
    grad_raw = dict(zip(ends, norms.backward(ends, [grads[i] for i in ends], joined=False), strict=True))
    grad_convs: dict[int, Tensor] = {}
    for b in branches:
        units = plan.units[b]
        for i in range(len(units) - 1, 0, -1):
            before, conv = units[i - 1], units[i] - len(branches)
            grads[before], grad_convs[conv] = _conv_backward(
                grad_raw[units[i]], norms.out[before], convs[conv], plan.chains[b][i - 1]
            )
            if i > 1:
                (grad_raw[before],) = norms.backward([before], [grads[before]], joined=False)
    (grad_h,) = norms.backward(list(branches), [grads[b] for b in branches], joined=True)
    grad_head = matmul(conv1x1.rows(grad_h).t(), conv1x1.rows(x)).view_as(head)
    if first:
        grad_x, sums_x = conv1x1.map_like(torch.addmm(rows, conv1x1.rows(grad_h), head.flatten(1)), x), None
    else:
        grad_x, sums_x = _input_gradient(grad, grad_h, head.flatten(1), x)
    own = [grad_head, grad_tail, sums, *(grad_convs[i] for i in range(plan.chained))]
    own += [norms.grad_weight[i] for i in range(n)] + [norms.grad_bias[i] for i in range(n)]
    return grad_x, sums_x, own


class _Stage(torch.autograd.Function):
    """Blocks one after the other. Together, since a block's backward pass ends with the ReLU of the one before."""

    @staticmethod
    def forward(ctx: Any, plans: tuple[Plan, ...], training: bool, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        saved, statistics = [], []
        group = batch_norm_ranks.current_group()
        at = 0
        for plan in plans:
            given = _Tensors.of(plan, tensors[at : at + _Tensors.count(plan)])
            x, kept, found = _forward(plan, training, group, x, given)
            saved += kept
            statistics += found
            at += _Tensors.count(plan)
        ctx.plans, ctx.training, ctx.group = plans, training, group
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)  # no zeros for the statistics
        return x, *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        plans: tuple[Plan, ...] = ctx.plans
        if grad is None:  # nobody asked for that of y
            return None, None, None, *[None] * sum(_Tensors.count(plan) for plan in plans)
        edges = list(accumulate((_saved_count(plan) for plan in plans), initial=0))
        saved = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)  # the kernels below do not look
        own: list[list[Tensor | None]] = []
        sums: Tensor | None = None
        for number in reversed(range(len(plans))):
            plan, everything = plans[number], saved[edges[number] : edges[number + 1]]
            if sums is None and plan.relu:
                grad, sums = _join_backward(grad, everything[3], True)
            elif sums is None:
                sums = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))
            grad, sums, grads = _backward(plan, ctx.training, ctx.group, grad, sums, everything, first=number == 0)
            own.insert(0, [*grads, *[None] * (2 * plan.norms)])
        biases = torch._foreach_mul([one[2] for one in own], [plan.scale for plan in plans])  # type: ignore[misc]
        for one, bias in zip(own, biases, strict=True):
            one[2] = bias
        return None, None, grad, *(g for grads in own for g in grads)


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: Padding) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return grad_x, grad_weight


def inception_stage(
    plans: tuple[Plan, ...], training: bool, x: Tensor, tensors: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Residual Inception blocks one after the other.

    Args:
        plans: of each block. Only the last may be without a ReLU.
        training: whether the norms take the batch's statistics.
        x: [N, C, H, W], channels-last or else copied, float32, float16 or bfloat16, on the CPU float64 too.
        tensors: of each block, `head` [ΣC_b, C, 1, 1], its branches' first convolutions side by side; `tail`
            [C, K, 1, 1]; its bias [C]; the other convolutions, branch after branch; then weights, biases, running means
            and running variances of the norms, first those of the branches' first convolutions, then as the others. All
            but the vectors are in the dtype of x; these are float32 beside half precision.

    Returns:
        y as x, and in training the statistics [3, C] of every norm as kernels.batch_norm has them.
    """
    x = x.contiguous(memory_format=torch.channels_last)  # the kernels below do not look
    y, *statistics = _Stage.apply(plans, training, x, *(t for own in tensors for t in own))
    return y, statistics
