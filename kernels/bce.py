"""Binary cross-entropy on logits, with its gradient made in the same pass.

    loss = (1 - y) · softplus(x) + w · y · softplus(-x)       softplus(x) = max(x, 0) + log1p(exp(-|x|))
    grad = (1 - y) · sigmoid(x)  - w · y · sigmoid(-x)        y = (1 - s) · target + s / 2

x are the logits [N, L], the targets [N, L] lie in [0, 1], w is what a positive of each label [L] weighs, or 1,
and s the label smoothing. In this form nothing cancels: far from zero, too, loss and gradient keep their relative
accuracy. A sample that the mask [N] leaves out has loss and gradient 0, whatever its logits hold.

The gradient is kept in float32 (float64 for float64 logits) until what comes from upstream is known: without the loss
scale, the 1/n of the mean or a weight of positives could take it out of the range of float16. So it is rounded once.

Bytes moved for n = N·L logits of b bytes and targets of t bytes: forward n·(b + t), with n·4 more where a
gradient is wanted and n·4 more for a loss that is not reduced; backward n·(4 + b).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import softplus

from kernels.arguments import FLOATS, check_constant, check_floats, check_number, check_tensor
from kernels.launch import is_batched, takes_triton, watched
from kernels.traffic import Pass, declares, size
from kernels.tuning import SIGMOID_BCE, Launch

REDUCTIONS = ("mean", "sum", "none")


def sigmoid_bce_reference(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_mask: Tensor | None = None,
) -> Tensor:
    y = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    weight = y if pos_weight is None else y * pos_weight.to(logits.dtype)
    loss = (1 - y) * softplus(logits, threshold=40) + weight * softplus(-logits, threshold=40)
    return reduce_reference(loss, reduction, sample_mask)


def reduce_reference(loss: Tensor, reduction: str, sample_mask: Tensor | None) -> Tensor:
    if sample_mask is not None:
        kept = sample_mask.bool()
        loss = loss.masked_fill(~kept[:, None], 0) if reduction == "none" else loss[kept]
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


@triton.jit
def log1p(e):  # type: ignore[no-untyped-def]
    # For e in [0, 1]: 2·atanh(s), s = e / (2 + e) ≤ 1/3, as a series. log(1 + e) is 0 for every e below 6e-8.
    s = e / (2.0 + e)
    q = s * s
    p = 1 / 11 + q * (1 / 13)
    p = 1 / 7 + q * (1 / 9 + q * p)
    p = 1 / 3 + q * (1 / 5 + q * p)
    return 2.0 * s * (1.0 + q * p)


@triton.jit
def load_targets(y_ptr, at, inside):  # type: ignore[no-untyped-def]
    y = tl.load(y_ptr + at, mask=inside, other=0)
    if y_ptr.dtype.element_ty == tl.uint8:
        y = tl.minimum(y, 1)  # any byte but 0 is a positive, as a boolean's may be
    return y.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid_bce_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    w_ptr,  # None: 1
    mask_ptr,  # None: every sample counts
    loss_ptr,
    grad_ptr,  # None: no gradient is wanted
    smoothing,
    factor,  # of the sum and of the gradient
    n,
    labels,
    REDUCED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    at = program * BLOCK + lane
    inside = at < n
    # One 64-bit division a program finds its first row and column; 32 bits are enough for the elements after it.
    first = program * BLOCK
    after = (first % labels).to(tl.int32) + lane
    counts = inside
    if mask_ptr is not None:
        counts = inside & (tl.load(mask_ptr + first // labels + after // labels, mask=inside, other=0) != 0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = load_targets(y_ptr, at, inside)
    y = y * (1.0 - smoothing) + 0.5 * smoothing
    weight = y
    if w_ptr is not None:
        weight *= tl.load(w_ptr + after % labels, mask=inside, other=0.0).to(tl.float32)

    e = tl.exp(-tl.abs(x))
    log1p_e = log1p(e)
    loss = (1.0 - y) * (tl.maximum(x, 0.0) + log1p_e) + weight * (tl.maximum(-x, 0.0) + log1p_e)
    if REDUCED:
        tl.store(loss_ptr + program, tl.sum(tl.where(counts, loss, 0.0)) * factor)
    else:
        tl.store(loss_ptr + at, tl.where(counts, loss, 0.0), mask=inside)
    if grad_ptr is not None:
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        grad = (1.0 - y) * tl.where(x < 0, small, large) - weight * tl.where(x < 0, large, small)
        tl.store(grad_ptr + at, tl.where(counts, grad * factor, 0.0), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_gradient_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, upstream_ptr, out_ptr, n, SCALAR: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    upstream = tl.load(upstream_ptr) if SCALAR else tl.load(upstream_ptr + at, mask=inside)
    grad = tl.load(grad_ptr + at, mask=inside) * upstream
    tl.store(out_ptr + at, grad.to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("manylabel::sigmoid_bce", mutates_args=())
def _forward(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    sample_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    if not takes_triton(logits):
        on_cpu = _forward_cpu if has_compiled_pass(logits) else _forward_plain
        return on_cpu(logits, targets, pos_weight, sample_mask, label_smoothing, reduction, with_grad)
    loss, grad = room_for_results(logits, SIGMOID_BCE, reduction, with_grad)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _sigmoid_bce_fwd_kernel[(triton.cdiv(logits.numel(), SIGMOID_BCE.blocks["BLOCK"]),)](
            logits,
            as_bytes(targets),
            pos_weight,
            None if sample_mask is None else as_bytes(sample_mask),
            loss,
            grad if with_grad else None,
            label_smoothing,
            factor(logits, reduction),
            logits.numel(),
            logits.shape[1],
            REDUCED=reduction != "none",
            **SIGMOID_BCE.options,
        )
    return finished(loss, reduction), grad


def as_bytes(x: Tensor) -> Tensor:
    """Booleans as the bytes that they are."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def soft(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets as numbers; any byte but 0 is a positive."""
    return (targets if targets.is_floating_point() else targets != 0).to(dtype)


def room_for_results(logits: Tensor, launch: Launch, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Room for what a loss kernel writes: a sum a program or [N, L], and the gradient, empty where not wanted."""
    programs = triton.cdiv(logits.numel(), launch.blocks["BLOCK"])
    shape = logits.shape if reduction == "none" else (programs,)
    loss = torch.empty(shape, dtype=torch.float32, device=logits.device)
    grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device) if with_grad else loss.new_empty(0)
    return loss, grad


def factor(logits: Tensor, reduction: str) -> float:
    """Of a sum and of gradients, for the reduction."""
    return 1 / max(logits.numel(), 1) if reduction == "mean" else 1.0


def finished(loss: Tensor, reduction: str) -> Tensor:
    """The sums of the programs as one; no atomics: the same bits in every run."""
    if reduction == "none":
        return loss
    return loss.reshape(()) if loss.numel() == 1 else loss.sum()


def _forward_cpu(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    sample_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    from kernels import losses_cpu  # its compiler takes a moment to load, and only the CPU needs it

    weight = None if pos_weight is None else pos_weight.float()
    work = partial(losses_cpu.bce, weight=weight, smoothing=label_smoothing)
    return compiled_pass(work, logits, targets, sample_mask, reduction, with_grad)


def has_compiled_pass(logits: Tensor) -> bool:
    """Whether kernels.losses_cpu has a pass over these logits, which are on the CPU."""
    return logits.dtype != torch.float64 and logits.numel() > 0


def compiled_pass(
    work: Callable[..., float],
    logits: Tensor,
    targets: Tensor,
    sample_mask: Tensor | None,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by one of the functions of kernels.losses_cpu."""
    x = logits.float()
    y = targets.float() if targets.is_floating_point() else as_bytes(targets)
    mask = None if sample_mask is None else as_bytes(sample_mask)
    loss = torch.empty_like(x) if reduction == "none" else None
    grad = torch.empty_like(x) if with_grad else None
    by = factor(logits, reduction)
    total = work(x, y, mask, by, loss, grad)
    return x.new_tensor(total * by) if loss is None else loss, x.new_empty(0) if grad is None else grad


def _forward_plain(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    sample_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    y = torch.lerp(soft(targets, x.dtype), x.new_tensor(0.5), label_smoothing)
    positive = y if pos_weight is None else y * pos_weight
    kept = x.new_ones(len(x), 1, dtype=torch.bool) if sample_mask is None else sample_mask.bool()[:, None]
    loss = (1 - y) * softplus(x, threshold=40) + positive * softplus(-x, threshold=40)
    loss = torch.where(kept, loss, 0)
    loss = loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    if not with_grad:
        return loss, x.new_empty(0)
    grad = torch.where(kept, (1 - y) * torch.sigmoid(x) - positive * torch.sigmoid(-x), 0)
    return loss, grad * factor(logits, reduction)


@torch.library.custom_op("manylabel::scale_gradient", mutates_args=())
def scale_gradient(grad: Tensor, upstream: Tensor, logits: Tensor) -> Tensor:
    """The kept gradient times that from upstream, in the dtype of the logits.

    Their values are not read; but with them a second derivative is known to be wanted, and refused.
    """
    n = grad.numel()
    if not takes_triton(grad):
        return (grad * upstream).to(logits.dtype)
    out = torch.empty_like(logits)
    upstream = upstream.contiguous()
    grid, scalar = (triton.cdiv(n, SIGMOID_BCE.blocks["BLOCK"]),), not upstream.dim()
    with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]
        _scale_gradient_kernel[grid](grad, upstream, out, n, SCALAR=scalar, **SIGMOID_BCE.options)
    return out


@_forward.register_fake
def _(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return fake_loss(logits, *rest[-2:])


def fake_loss(logits: Tensor, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Loss and gradient in shape and dtype only."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(logits.shape if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(logits, dtype=dtype) if with_grad else logits.new_empty(0, dtype=dtype)


@scale_gradient.register_fake
def _(grad: Tensor, upstream: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


def loss_passes(logits: Tensor, launch: Launch, with_grad: bool, reduction: str, *inputs: Tensor | None) -> list[Pass]:
    """What a loss launches: itself, and a sum of its programs' sums where there are several."""
    programs = triton.cdiv(logits.numel(), launch.blocks["BLOCK"])
    written = 4 * (logits.numel() if reduction == "none" else programs) + (4 * logits.numel() if with_grad else 0)
    first = Pass(size(logits, *inputs), written)
    return [first] if reduction == "none" or programs == 1 else [first, Pass(4 * programs, 4, library=True)]


@declares("sigmoid_bce")
def _(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    sample_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    with_grad: bool,
) -> list[Pass]:
    return loss_passes(logits, SIGMOID_BCE, with_grad, reduction, targets, pos_weight, sample_mask)


@declares("scale_gradient")
def _(grad: Tensor, upstream: Tensor, logits: Tensor) -> list[Pass]:
    return [Pass(size(grad, upstream), size(logits))]


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keeps the gradient that the forward pass made."""
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.others = len(inputs) - 1


def gradients(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """For the logits, and none for the other inputs."""
    logits, grad = ctx.saved_tensors
    if upstream is None:
        scaled = None
    elif grad.dtype == logits.dtype and _is_given_away(upstream):
        scaled = grad
    else:
        scaled = scale_gradient(grad, upstream, logits)
    return scaled, *[None] * ctx.others


def _is_given_away(upstream: Tensor) -> bool:
    """Whether the kept gradient is the result: by the 1 of a plain backward() on the CPU, whose graph is then gone.

    Who receives it may change it. Not while the operation is traced or batched, where nothing has a value.
    """
    if type(upstream) is not Tensor or upstream.dim() or upstream.device.type != "cpu" or takes_triton(upstream):
        return False
    if (
        watched()
        or is_batched(upstream)
        or torch.is_grad_enabled()
        or torch._C._autograd._get_current_graph_task_keep_graph()
    ):
        return False
    return upstream.item() == 1


_forward.register_autograd(gradients, setup_context=setup_context)


def check_loss(logits: Tensor, targets: Tensor, reduction: str, sample_mask: Tensor | None) -> None:
    """What all losses ask of their arguments."""
    check_floats("logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it takes two dimensions, [N, L]")
    if not logits.is_contiguous():
        raise ValueError(f"logits has strides {logits.stride()}; it takes contiguous memory")
    check_tensor("targets", targets)
    if targets.dtype not in (torch.bool, torch.uint8, torch.float64, *FLOATS):
        raise ValueError(f"targets is {targets.dtype}; it takes bool, uint8 and the float dtypes")
    check_constant("targets", targets, logits.shape, "logits", logits)
    if sample_mask is not None:
        check_tensor("sample_mask", sample_mask)
        if sample_mask.dtype not in (torch.bool, torch.uint8):
            raise ValueError(f"sample_mask is {sample_mask.dtype}; it takes bool and uint8")
        check_constant("sample_mask", sample_mask, logits.shape[:1], "logits", logits)
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it takes {', '.join(REDUCTIONS[:2])} or {REDUCTIONS[2]}")


def sigmoid_bce(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_mask: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy of sigmoid(logits) against targets, each label on its own.

    Args:
        logits: [N, L] contiguous, float32, float16 or bfloat16, on the CPU float64 too.
        targets: [N, L] contiguous on the same device, bool, uint8 or any float dtype. Floats between 0 and 1
            are soft targets, whose range is not checked; any byte but 0 is a positive.
        pos_weight: [L] contiguous on the same device, any float dtype; None weighs every positive 1.
        reduction: "mean" over all N·L, or over those of the samples that count, "sum", or "none".
        label_smoothing: in [0, 1]; takes each target that share of the way to 1/2.
        sample_mask: [N] contiguous on the same device, bool or uint8: the samples that count, as the rows of a
            padded batch; None counts all.

    Returns:
        The loss in float32 (float64 for float64 logits): a scalar, or [N, L] for "none". The mean of an empty
        batch is NaN, its sum 0. The same input gives the same bits. The gradient flows to logits only, in
        their dtype; this call makes it where it is wanted, and backward multiplies it by the one from
        upstream.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes. Nothing is copied to
            fit.

    Source: the logistic loss; pos_weight as in torch.nn.BCEWithLogitsLoss; label smoothing of Szegedy et al. 2016
        (arXiv:1512.00567, section 7), with the two classes of each label.
    """
    check_loss(logits, targets, reduction, sample_mask)
    if pos_weight is not None:
        check_tensor("pos_weight", pos_weight)
        if pos_weight.dtype not in (*FLOATS, torch.float64):
            raise ValueError(f"pos_weight is {pos_weight.dtype}; it takes the float dtypes")
        check_constant("pos_weight", pos_weight, logits.shape[1:], "logits", logits)
    check_number("label_smoothing", label_smoothing, 0, 1)
    with_grad = logits.requires_grad and torch.is_grad_enabled()  # a validation pass stores none
    inner = inner_reduction(reduction, sample_mask)
    loss: Tensor = _forward(logits, targets, pos_weight, sample_mask, label_smoothing, inner, with_grad)[0]
    return masked_mean(loss, logits, sample_mask) if inner != reduction else loss


def inner_reduction(reduction: str, sample_mask: Tensor | None) -> str:
    """The mean over a mask is a sum first: how many samples count is known on the device alone."""
    return "sum" if reduction == "mean" and sample_mask is not None else reduction


def masked_mean(total: Tensor, logits: Tensor, sample_mask: Tensor | None) -> Tensor:
    """A sum over the samples that count as the mean over their logits; NaN, with gradients of 0, where none counts."""
    assert sample_mask is not None
    count = torch.count_nonzero(sample_mask) * logits.shape[1]
    # The NaN is added, so that no gradient goes through it: a batch that is all padding moves no weight.
    return total / count.clamp(min=1) + torch.where(count > 0, 0.0, math.nan).to(total.dtype)
