"""Batch norm, ReLU and, where wanted, a residual connection or a concatenation, for channels-last maps.

    x̂      = (x - mean) · rstd                   mean and variance of each channel over N, H and W, or the running ones
    y      = relu(weight · x̂ + bias)             or relu(residual + scale · (weight · x̂ + bias))
    g      = grad · [y > 0], times scale with a residual
    grad_x = weight · rstd · (g - Σg / n - x̂ · Σ(g · x̂) / n)         with running statistics weight · rstd · g

A channels-last map is n = N·H·W rows of C channels. Statistics are made in one pass: each program takes the mean and
the sum of squared deviations of its rows, tile by tile, and joins them by the formula of Chan et al., so that nothing
cancels however far the mean is from 0. A second, small kernel joins the programs' results in a fixed order. The
backward pass reads everything twice: once for the two sums, once for grad_x. The mask is made anew from x, or taken
from y where there is a residual.

Each kernel takes several maps of one height and width in one launch. They may be channel slices of one map, and so may
what they are normalised into and what their gradients are written to: an Inception concatenation copies nothing, and
convolutions that were merged into one have their outputs and gradients where they belong.

Bytes moved for n·C elements of b bytes: forward 3·n·C·b (x twice, y), with running statistics 2; backward 5·n·C·b
(grad and x twice, grad_x); a residual adds one forward and three backward (y twice, its gradient).

Source: Ioffe and Szegedy 2015 (arXiv:1502.03167); Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample
Variance", equation 2.1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import batch_norm_cpu, batch_norm_ranks, batch_norm_triton
from kernels.arguments import (
    check_apart,
    check_channels_last,
    check_constant,
    check_flag,
    check_floats,
    check_list,
    check_number,
    check_operand,
)
from kernels.batch_norm_triton import grid_of, of_each, sum_passes
from kernels.bfloat16 import PASSED
from kernels.launch import is_batched, past_dispatcher, takes_triton
from kernels.maps import channels_last, empty_map, slices
from kernels.traffic import DECLARED, Pass, declares, size


def batch_norm_relu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = y if residual is None else residual + scale * y
    return torch.relu(y) if relu else y


def _room(xs: Sequence[Tensor], joined: bool) -> list[Tensor]:
    """A map for each, or one for all."""
    return [empty_map(xs[0], sum(x.shape[1] for x in xs))] if joined else [empty_map(x) for x in xs]


def _places(maps: list[Tensor], xs: Sequence[Tensor], joined: bool) -> list[Tensor]:
    """Where each has its place in the maps of `_room`."""
    return list(maps[0].split_with_sizes([x.shape[1] for x in xs], 1)) if joined else maps


def _forward_torch(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> tuple[list[Tensor], Tensor]:
    """A result for each map, and the statistics as batch_norm_triton.forward has them."""
    kept, dtype = xs[0].dtype, torch.promote_types(xs[0].dtype, torch.float32)
    if residual is not None:  # joined before anything is rounded
        xs, residual = [x.to(dtype) for x in xs], residual.to(dtype)
    ys, found = [], []
    for i, (x, weight, bias) in enumerate(zip(xs, weights, biases, strict=True)):
        x = x.contiguous(memory_format=torch.channels_last)  # torch's kernel is many times slower on a slice
        if not x.numel():
            y = x.clone()  # nothing
            found.append(torch.zeros((3, len(weight)), dtype=dtype, device=x.device))
        elif training:
            # With a momentum of 1 the running statistics are the batch's, unbiased variance included.
            mean, var = (torch.zeros(len(weight), dtype=dtype) for _ in range(2))
            y, _, rstd = torch.native_batch_norm(x, weight, bias, mean, var, True, 1.0, eps)
            found.append(torch.stack((mean, rstd, var)))
        else:
            mean, var = running[i], running[len(xs) + i]
            y = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        if residual is not None:
            y = torch.addcmul(residual, y, y.new_ones(()), value=scale)
        ys.append((y.relu_() if relu else y).to(kept))
    if not training:
        return ys, torch.empty((3, 0), dtype=dtype, device=xs[0].device)
    return ys, found[0] if len(found) == 1 else torch.cat(found, 1)


def _compiled_passes(x: Tensor, residual: Tensor | None) -> bool:
    """Whether kernels.batch_norm_cpu has it."""
    return residual is None and not x.is_cuda and x.dtype in PASSED and x.numel() > 0


def _forward_cpu(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    places: Sequence[Tensor],
    training: bool,
    eps: float,
    relu: bool,
) -> Tensor:
    """Writes a result for each map to its place; the statistics as batch_norm_triton.forward has them."""
    parts = slices(xs)
    statistics = torch.empty((3, parts[-1].stop if training else 0), dtype=torch.float32)
    for i, (x, weight, bias, y) in enumerate(zip(xs, weights, biases, places, strict=True)):
        x = channels_last(x)
        if training:
            batch_norm_cpu.normalize(x, weight, bias, statistics[:, parts[i]], eps, relu, y)
        else:
            batch_norm_cpu.normalize_by(x, weight, bias, running[i], running[len(xs) + i], eps, relu, y)
    return statistics


# Lists, so that one launch takes several maps. Gradients are _Normalize's, not torch.library's, whose way through
# lists takes the dispatcher a millisecond.
@torch.library.custom_op("manylabel::batch_norm_relu", mutates_args=())
def forward(
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
    """A map for each of xs, or with `joined` their concatenation; and the statistics [3, ΣC] of the batch, in training.

    `running` has all means, then all variances. Nothing is checked.
    """
    if takes_triton(xs[0]) or _compiled_passes(xs[0], residual):
        ys = _room(xs, joined)
        places = _places(ys, xs, joined)
        if not takes_triton(xs[0]):
            return ys, _forward_cpu(xs, weights, biases, running, places, training, eps, relu)
        return ys, batch_norm_triton.forward(xs, weights, biases, running, residual, places, training, eps, relu, scale)
    ys, statistics = _forward_torch(xs, weights, biases, running, residual, training, eps, relu, scale)
    return [_join(ys)] if joined else ys, statistics


@torch.library.custom_op("manylabel::batch_norm_relu_into", mutates_args=("out",))
def _forward_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> Tensor:
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    given |= dict(zip(("running_mean", "running_var"), running, strict=False))
    for name, tensor in given.items():
        if tensor is not None:
            check_apart("out", out, name, tensor)
    options = (training, eps, relu, scale)
    if takes_triton(x):
        return batch_norm_triton.forward([x], [weight], [bias], running, residual, [out], *options)
    if _compiled_passes(x, residual):
        return _forward_cpu([x], [weight], [bias], running, [out], training, eps, relu)
    ys, statistics = _forward_torch([x], [weight], [bias], running, residual, *options)
    out.copy_(ys[0])
    return statistics


def _join(maps: list[Tensor]) -> Tensor:
    if len(maps) == 1:
        return maps[0].contiguous(memory_format=torch.channels_last)
    (joined,) = _room(maps, joined=True)  # torch.cat would convert under autocast
    for place, m in zip(_places([joined], maps, joined=True), maps, strict=True):
        place.copy_(m)
    return joined


@torch.library.custom_op("manylabel::batch_norm_relu_backward", mutates_args=())
def backward(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    means: Sequence[Tensor],
    spreads: Sequence[Tensor],
    training: bool,
    eps: float,
    relu: bool,
    with_residual: bool,
    scale: float,
    joined: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of xs, each or with `joined` as one map; of biases and weights, [2, ΣC]; of the residual, or nothing.

    `spreads` are 1 / standard deviations in training, else running variances. Nothing is checked.
    """
    options = (training, eps, relu, scale)
    nothing = xs[0].new_empty(0)
    if takes_triton(xs[0]):
        grads = [channels_last(g) for g in grads]
        grad_xs = _room(xs, joined)
        places = _places(grad_xs, xs, joined)
        y = ys[0] if with_residual else None
        sums, grad_residual = batch_norm_triton.backward(
            grads, xs, weights, biases, means, spreads, y, places, *options
        )
        return grad_xs, sums, nothing if grad_residual is None else grad_residual
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    sums = torch.zeros((2, sum(x.shape[1] for x in xs)), dtype=dtype, device=xs[0].device)
    if _compiled_passes(xs[0], ys[0] if with_residual else None):
        grad_xs = _room(xs, joined)
        own = zip(_places(grad_xs, xs, joined), slices(xs), strict=True)
        for g, x, (place, part), *vectors in zip(grads, xs, own, weights, biases, means, spreads, strict=True):
            g, x = channels_last(g), channels_last(x)
            batch_norm_cpu.gradients(g, x, vectors, training, eps, relu, place, sums[:, part])
        return grad_xs, sums, nothing
    grad_xs, grad_residual = [], nothing
    for g, x, y, weight, mean, spread, part in zip(grads, xs, ys, weights, means, spreads, slices(xs), strict=True):
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
        if not x.numel():
            grad_xs.append(torch.empty_like(x))
            grad_residual = empty_map(x) if with_residual else nothing
            continue
        g = torch.ops.aten.threshold_backward(g, y, 0) if relu else g
        if with_residual:
            grad_residual, g, x = g.clone(), g.to(dtype) * scale, x.to(dtype)
        saved = (mean, spread, mean, spread)
        grad_x, *grad_vectors = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, *saved, training, eps, [True, True, True]
        )
        grad_xs.append(grad_x.to(y.dtype))
        sums[1, part], sums[0, part] = grad_vectors
    return [_join(grad_xs)] if joined else grad_xs, sums, grad_residual


def _fake_vectors(xs: Sequence[Tensor], rows: int, channels: bool = True) -> Tensor:
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    return xs[0].new_empty((rows, sum(x.shape[1] for x in xs) if channels else 0), dtype=dtype)


@forward.register_fake
def _(xs: Sequence[Tensor], *rest: Any) -> tuple[list[Tensor], Tensor]:
    *_, training, _, _, _, joined = rest
    return _room(xs, joined), _fake_vectors(xs, 3, training)


@_forward_into.register_fake
def _(out: Tensor, x: Tensor, *rest: Any) -> Tensor:
    *_, training, _, _, _ = rest
    return _fake_vectors([x], 3, training)


@backward.register_fake
def _(grads: Sequence[Tensor], xs: Sequence[Tensor], *rest: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    *_, with_residual, _, joined = rest
    grad_residual = empty_map(xs[0]) if with_residual else xs[0].new_empty(0)
    return _room(xs, joined), _fake_vectors(xs, 2), grad_residual


@declares("batch_norm_relu")
def _(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    *_: Any,
) -> list[Pass]:
    grid = grid_of(xs)
    vectors = size(*weights, *biases) + 2 * 4 * grid.total
    normalize = Pass(size(*xs, residual) + vectors, size(*xs))
    return [*sum_passes(grid, size(*xs), 3), normalize] if training else [normalize]


@declares("batch_norm_relu_into")
def _(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> list[Pass]:
    declared: list[Pass] = DECLARED["manylabel::batch_norm_relu"]([x], [weight], [bias], *rest)
    return declared


@declares("batch_norm_relu_backward")
def _(grads: Sequence[Tensor], xs: Sequence[Tensor], ys: Sequence[Tensor], *rest: Any) -> list[Pass]:
    *_, training, _, _, with_residual, _, _ = rest
    grid = grid_of(xs)
    maps = size(*grads, *xs, *(ys if with_residual else []))
    vectors = 4 * 4 * grid.total
    used = 2 * 4 * grid.total if training else 0
    gradients = Pass(maps + vectors + used, size(*xs) * (2 if with_residual else 1))
    return [*sum_passes(grid, maps + vectors, 2), gradients]


# For what has its backward pass written out, so that autograd asks nothing of them.
own_forward, own_backward = past_dispatcher(forward), past_dispatcher(backward)


def _check_single(*grads: Tensor) -> None:
    if any(is_batched(grad) for grad in grads):
        raise RuntimeError("batch norm takes one gradient at a time: no is_grads_batched, no vectorize of jacobian")


class _Normalize(torch.autograd.Function):
    """The concatenation of normalised maps, and the statistics [3, ΣC]."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: int,
        training: bool,
        eps: float,
        relu: bool,
        scale: float,
        residual: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`tensors`: the maps, weights, biases, then running means and variances, where these are kept."""
        xs, weights, biases = (list(tensors[i * maps : (i + 1) * maps]) for i in range(3))
        running = list(tensors[3 * maps :])
        ctx.group = batch_norm_ranks.current_group()
        (y,), statistics = batch_norm_ranks.forward(
            own_forward, ctx.group, xs, weights, biases, running, residual, training, eps, relu, scale, True
        )
        ctx.maps, ctx.kept, ctx.scale = maps, len(running), scale
        ctx.options = (training, eps, relu, residual is not None)
        # In training the running statistics are no part of the gradients, and they move before these are made.
        ctx.save_for_backward(y, statistics, *tensors[: 3 * maps], *([] if training else running))
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _check_single(grad)
        y, statistics, *tensors = ctx.saved_tensors
        xs, weights, biases = (tensors[i * ctx.maps : (i + 1) * ctx.maps] for i in range(3))
        training, *_, with_residual = ctx.options
        means, spreads = of_each(xs, statistics, tensors[3 * ctx.maps :], training)
        parts = slices(xs)
        grads, ys = (list(m.split_with_sizes([x.shape[1] for x in xs], 1)) for m in (grad, y))
        vectors = (weights, biases, list(means), list(spreads))
        grad_xs, sums, grad_residual = batch_norm_ranks.backward(
            own_backward, ctx.group, grads, xs, ys, *vectors, *ctx.options, ctx.scale, False
        )
        grad_vectors = [sums[row, part] for row in (1, 0) for part in parts]
        residual = grad_residual if with_residual else None
        return None, None, None, None, None, residual, *grad_xs, *grad_vectors, *[None] * ctx.kept


def _normalize(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    residual: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    residual, *tensors = _each_once([residual, *xs, *weights, *biases, *running])
    y: Tensor
    y, statistics = _Normalize.apply(len(xs), training, eps, relu, scale, residual, *tensors)
    return y, statistics


def _each_once(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """A view in the place of each repetition: the compiler takes no tensor twice where gradients are our own."""
    if not torch.compiler.is_compiling():
        return list(tensors)
    found: list[Tensor | None] = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if tensor is not None and again else tensor)
    return found


class _NormalizeSplit(torch.autograd.Function):
    """The normalised channel slices of one map, each a map of its own, and the statistics [3, C]."""

    @staticmethod
    def forward(ctx: Any, maps: int, training: bool, eps: float, x: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        """`vectors`: weights, biases, then running means and variances, where these are kept."""
        weights, biases, running = list(vectors[:maps]), list(vectors[maps : 2 * maps]), list(vectors[2 * maps :])
        xs = list(x.split_with_sizes([len(weight) for weight in weights], 1))
        ctx.group = batch_norm_ranks.current_group()
        ys, statistics = batch_norm_ranks.forward(
            own_forward, ctx.group, xs, weights, biases, running, None, training, eps, True, 1.0, False
        )
        ctx.maps, ctx.kept, ctx.options = maps, len(running), (training, eps)
        saved = (*vectors[: 2 * maps], *([] if training else running))
        ctx.save_for_backward(x, statistics, *ys, *saved)
        ctx.mark_non_differentiable(statistics)
        return *ys, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _check_single(*grads[: ctx.maps])
        k, (training, eps) = ctx.maps, ctx.options
        x, statistics, *tensors = ctx.saved_tensors
        ys, weights, biases = (tensors[i * k : (i + 1) * k] for i in range(3))
        xs = list(x.split_with_sizes([len(weight) for weight in weights], 1))
        means, spreads = of_each(xs, statistics, tensors[3 * k :], training)
        vectors = (weights, biases, list(means), list(spreads))
        (grad,), sums, _ = batch_norm_ranks.backward(
            own_backward, ctx.group, list(grads[:k]), xs, ys, *vectors, training, eps, True, False, 1.0, True
        )
        return None, None, None, grad, *[sums[i, part] for i in (1, 0) for part in slices(xs)], *[None] * ctx.kept


def normalize_joined(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """batch_norm_relu_concat for a network that moves the running statistics of all its norms at once.

    `running` has all means, then all variances. Nothing is checked; the statistics [3, ΣC] of the batch come with the
    result: means, 1 / standard deviations, unbiased variances; [3, 0] without training.
    """
    return _normalize(xs, weights, biases, running, None, training, eps, True, 1.0)


def normalize_split(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running: Sequence[Tensor],
    training: bool,
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """As normalize_joined, the other way round: x [N, ΣC, H, W] is what merged convolutions gave."""
    tensors = _each_once([x, *weights, *biases, *running])
    *ys, statistics = _NormalizeSplit.apply(len(weights), training, eps, *tensors)
    return ys, statistics


def _check_map(name: str, x: Tensor, like: Tensor) -> None:
    check_floats(name, x)
    check_channels_last(name, x)
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"{name} is {x.dtype} on {x.device}; it takes {like.dtype} on {like.device}")
    if (x.shape[0], *x.shape[2:]) != (like.shape[0], *like.shape[2:]):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; N, H and W must be those of {tuple(like.shape)}")


def _check_vector(name: str, v: Tensor, x: Tensor) -> None:
    dtype = torch.promote_types(x.dtype, torch.float32)
    check = check_constant if name.startswith("running") else check_operand
    check(name, v, x.shape[1:2], "maps", x)
    if v.dtype != dtype:
        raise ValueError(f"{name} is {v.dtype}; for {x.dtype} maps it takes {dtype}")


def _check(given: Mapping[str, Sequence[Tensor]], training: bool, momentum: float, eps: float) -> None:
    """`given`: maps, weights, biases, running means and variances, or none of these, by their names for a number."""
    (of_map, xs), *vectors = given.items()
    check_flag("training", training)
    check_number("eps", eps, low=1e-12)
    check_number("momentum", momentum, 0, 1)
    for i, x in enumerate(xs):
        name = of_map.format(i)
        _check_map(name, x, xs[0])
        if not x.shape[1]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it takes one channel or more")
        for of_vector, values in vectors:
            if values:
                _check_vector(of_vector.format(i), values[i], x)
        if training and x.numel() == x.shape[1]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; training takes more than one value a channel")


def _check_running(names: tuple[str, str], given: tuple[object, object], training: bool) -> None:
    """Both or none, and both without training."""
    missing = [name for name, value in zip(names, given, strict=True) if value is None]
    if len(missing) == 1:
        raise ValueError(f"{missing[0]} is None; {names[0]} and {names[1]} go together")
    if missing and not training:
        raise ValueError(f"{names[0]} and {names[1]} are None; without training they are needed")


def move_running(running: Sequence[Tensor], statistics: Sequence[Tensor], momentum: float) -> None:
    """Moves running means, then variances, towards those [3, C] of each map's batch, all in one launch."""
    with torch.no_grad():
        means, _, variances = zip(*(s.unbind() for s in statistics), strict=True)
        torch._foreach_lerp_(list(running), [*means, *variances], momentum)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(x)) or relu(residual + scale · batch_norm(x)), as torch.nn.BatchNorm2d and torch.relu.

    Args:
        x: [N, C, H, W] in channels-last memory, a channel slice of a wider map too; float32, float16 or bfloat16,
            on the CPU float64 too.
        weight, bias: [C], float32 (float64 for float64 maps).
        running_mean, running_var: [C] of the same dtype; in training they move towards the batch's, unbiased variance
            included. None, both, keeps none.
        training: whether the batch's statistics normalise, or the running ones.
        momentum: share of the batch in the running statistics, in [0, 1].
        eps: added to the variance, above 0.
        relu: False leaves the ReLU out.
        residual: shape, dtype and layout as x; its gradient comes back.
        scale: of the normalised map beside a residual, 0 or more; no gradient.
        out: a channels-last map, or a channel slice of one, that receives the result; takes no gradient and shares no
            element with the other arguments.

    Returns:
        A new channels-last map in the dtype of x, or `out`. Computed in float32 and rounded once. NaN comes through.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    _check_running(("running_mean", "running_var"), (running_mean, running_var), training)
    means = [] if running_mean is None else [running_mean]
    variances = [] if running_var is None else [running_var]
    given = {"x": [x], "weight": [weight], "bias": [bias], "running_mean": means, "running_var": variances}
    _check(given, training, momentum, eps)
    check_number("scale", scale, low=0)
    check_flag("relu", relu)
    if residual is not None:
        _check_map("residual", residual, x)
        if residual.shape != x.shape:
            raise ValueError(f"residual has shape {tuple(residual.shape)}; it takes that of x, {tuple(x.shape)}")
    elif scale != 1:
        raise ValueError(f"scale is {scale}; without a residual it takes 1")
    y: Tensor
    if out is None:
        y, statistics = _normalize([x], [weight], [bias], [*means, *variances], residual, training, eps, relu, scale)
    else:
        _check_out(out, x, (x, weight, bias, residual))
        y, running = out, [*means, *variances]
        statistics = _forward_into(out, x, weight, bias, running, residual, training, eps, relu, scale)
    if training and means and x.numel():
        move_running([*means, *variances], [statistics], momentum)
    return y


def _check_out(out: Tensor, x: Tensor, inputs: Sequence[Tensor | None]) -> None:
    _check_map("out", out, x)
    if out.shape != x.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; it takes that of x, {tuple(x.shape)}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs)):
        raise ValueError("out takes no gradient; batch_norm_relu_concat writes slices of one map and has one")


def batch_norm_relu_concat(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    running_means: Sequence[Tensor] | None,
    running_vars: Sequence[Tensor] | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Concatenation over channels of relu(batch_norm(x)) of several maps, each written to its place at once.

    Args:
        xs: maps [N, C_i, H, W] as batch_norm_relu takes them, equal in N, H, W, dtype and device.
        weights, biases, running_means, running_vars: one of each a map, as batch_norm_relu takes them.
        training, momentum, eps: as there.

    Returns:
        [N, ΣC_i, H, W] in channels-last memory.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.
    """
    _check_running(("running_means", "running_vars"), (running_means, running_vars), training)
    means = [] if running_means is None else running_means
    variances = [] if running_vars is None else running_vars
    given = {"xs": xs, "weights": weights, "biases": biases, "running_means": means, "running_vars": variances}
    for name, values in given.items():
        check_list(name, values)
        if len(values) != len(xs) and (running_means is not None or not name.startswith("running")):
            raise ValueError(f"{name} has {len(values)} tensors; it takes one for each of {len(xs)} maps")
    if not xs:
        raise ValueError("xs is empty; it takes one map or more")
    _check({f"{name}[{{}}]": values for name, values in given.items()}, training, momentum, eps)
    y, statistics = normalize_joined(xs, weights, biases, [*means, *variances], training, eps)
    if training and means and y.numel():
        move_running([*means, *variances], [statistics[:, part] for part in slices(xs)], momentum)
    return y
