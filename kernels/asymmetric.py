"""Asymmetric loss on logits, with its gradient made in the same pass.

    loss = -y · q^γ+ · log p  -  (1 - y) · r^γ- · log(1 - r)      p = sigmoid(x), q = 1 - p, r = max(p - m, 0)

x are the logits [N, L] and y the targets [N, L] in [0, 1]. The focusing exponents γ+ and γ- weigh easy positives and
easy negatives down, the margin m leaves very easy negatives out. With γ+ = γ- = m = 0 it is the cross-entropy of
kernels.bce. Gradients, the weights' own included:

    d/dx of the positive part:  -q^γ+ · (q - γ+ · p · log p)
    d/dx of the negative part:   r^γ- · (p · q / (1 - r) - γ- · p · q · log(1 - r) / r)       where r > 0, else 0

Logarithms and powers are taken of what is at hand without cancellation: log p and log q from exp(-|x|). Gradient,
sample mask, reductions and bytes moved are as in kernels.bce, without the weight of positives.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import logsigmoid

from kernels.arguments import check_number
from kernels.bce import (
    as_bytes,
    check_loss,
    compiled_pass,
    factor,
    fake_loss,
    finished,
    gradients,
    has_compiled_pass,
    inner_reduction,
    load_targets,
    log1p,
    loss_passes,
    masked_mean,
    reduce_reference,
    room_for_results,
    setup_context,
    soft,
)
from kernels.launch import takes_triton
from kernels.traffic import Pass, declares
from kernels.tuning import ASYMMETRIC_LOSS

_TINY = tl.constexpr(1e-37)  # a float32; stands for r where it is 0: a logarithm or quotient that is not used


def asymmetric_loss_reference(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    reduction: str = "mean",
    sample_mask: Tensor | None = None,
) -> Tensor:
    y, p, q = targets.to(logits.dtype), torch.sigmoid(logits), torch.sigmoid(-logits)
    r = (p - margin).clamp(min=0)
    log_not_r = logsigmoid(-logits) if margin == 0 else torch.log1p(-r)
    loss = -y * q**gamma_pos * logsigmoid(logits) - (1 - y) * r**gamma_neg * log_not_r
    return reduce_reference(loss, reduction, sample_mask)


@triton.jit  # type: ignore[untyped-decorator]
def _asymmetric_loss_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    y_ptr,
    mask_ptr,  # None: every sample counts
    loss_ptr,
    grad_ptr,  # None: no gradient is wanted
    gamma_pos,
    gamma_neg,
    margin,
    factor,  # of the sum and of the gradient
    n,
    labels,
    MARGIN: tl.constexpr,
    REDUCED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    first = program * BLOCK
    at = first + lane
    inside = at < n
    counts = inside
    if mask_ptr is not None:
        row = first // labels + ((first % labels).to(tl.int32) + lane) // labels
        counts = inside & (tl.load(mask_ptr + row, mask=inside, other=0) != 0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = load_targets(y_ptr, at, inside)

    e = tl.exp(-tl.abs(x))
    log1p_e = log1p(e)
    large, small = 1.0 / (1.0 + e), e / (1.0 + e)
    p, q = tl.where(x < 0, small, large), tl.where(x < 0, large, small)
    minus_log_p = tl.maximum(-x, 0.0) + log1p_e
    minus_log_q = tl.maximum(x, 0.0) + log1p_e

    # Where the exponent is 0, so are all of its products: 0 times infinity would be none of them.
    pos = tl.where(gamma_pos == 0.0, 1.0, tl.exp(-gamma_pos * minus_log_q))
    if MARGIN:
        r, not_r = tl.maximum(p - margin, 0.0), tl.minimum(q + margin, 1.0)
        # Up to a half log1p keeps the digits that log(1 - r) would lose.
        minus_log_not_r = tl.where(r < 0.5, log1p(tl.where(r < 0.5, r / not_r, 0.0)), -tl.log(not_r))
        neg = tl.exp(gamma_neg * tl.log(tl.maximum(r, _TINY)))
        neg = tl.where((r <= 0.0) & (gamma_neg > 0.0), 0.0, neg)
        # As r goes to 0, -log(1 - r) / r goes to 1.
        slope = p * q * (1.0 / not_r + gamma_neg * (minus_log_not_r / tl.maximum(r, _TINY)))
        slope = tl.where(r <= 0.0, 0.0, slope)
    else:
        minus_log_not_r = minus_log_q
        neg = tl.where(gamma_neg == 0.0, 1.0, tl.exp(-gamma_neg * minus_log_p))
        slope = p + gamma_neg * tl.where(q == 0.0, 0.0, q * minus_log_q)
    loss = y * pos * minus_log_p + (1.0 - y) * neg * minus_log_not_r
    if REDUCED:
        tl.store(loss_ptr + program, tl.sum(tl.where(counts, loss, 0.0)) * factor)
    else:
        tl.store(loss_ptr + at, tl.where(counts, loss, 0.0), mask=inside)
    if grad_ptr is not None:
        p_log_p = tl.where(p == 0.0, 0.0, p * minus_log_p)
        grad = (1.0 - y) * neg * slope - y * pos * (q + gamma_pos * p_log_p)
        tl.store(grad_ptr + at, tl.where(counts, grad * factor, 0.0), mask=inside)


@torch.library.custom_op("manylabel::asymmetric_loss", mutates_args=())
def _forward(
    logits: Tensor,
    targets: Tensor,
    sample_mask: Tensor | None,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    if not takes_triton(logits):
        on_cpu = _forward_cpu if has_compiled_pass(logits) else _forward_plain
        return on_cpu(logits, targets, sample_mask, gamma_pos, gamma_neg, margin, reduction, with_grad)
    loss, grad = room_for_results(logits, ASYMMETRIC_LOSS, reduction, with_grad)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _asymmetric_loss_fwd_kernel[(triton.cdiv(logits.numel(), ASYMMETRIC_LOSS.blocks["BLOCK"]),)](
            logits,
            as_bytes(targets),
            None if sample_mask is None else as_bytes(sample_mask),
            loss,
            grad if with_grad else None,
            gamma_pos,
            gamma_neg,
            margin,
            factor(logits, reduction),
            logits.numel(),
            logits.shape[1],
            MARGIN=margin > 0,
            REDUCED=reduction != "none",
            **ASYMMETRIC_LOSS.options,
        )
    return finished(loss, reduction), grad


def _forward_cpu(
    logits: Tensor,
    targets: Tensor,
    sample_mask: Tensor | None,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    from kernels import losses_cpu  # its compiler takes a moment to load, and only the CPU needs it

    work = partial(losses_cpu.asymmetric, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    return compiled_pass(work, logits, targets, sample_mask, reduction, with_grad)


def _forward_plain(
    logits: Tensor,
    targets: Tensor,
    sample_mask: Tensor | None,
    gamma_pos: float,
    gamma_neg: float,
    margin: float,
    reduction: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    x, y = logits.to(dtype), soft(targets, dtype)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    # Not softplus: torch's takes longer than its exp and log1p together.
    log1p_e = x.abs().neg_().exp_().log1p_()
    minus_log_p, minus_log_q = (-x).clamp_min_(0).add_(log1p_e), x.clamp_min(0).add_(log1p_e)
    pos = q**gamma_pos
    if margin == 0:
        neg, minus_log_not_r = p**gamma_neg, minus_log_q
        slope = p + gamma_neg * (q * minus_log_q).masked_fill_(q == 0, 0)
    else:
        r, not_r = (p - margin).clamp_min_(0), (q + margin).clamp_max_(1)
        # By the smaller of r and 1 - r: the other has lost its last digits.
        neg, minus_log_not_r = r**gamma_neg, torch.where(r < 0.5, torch.log1p(r / not_r), -torch.log(not_r))
        slope = p * q * (1 / not_r + gamma_neg * (minus_log_not_r / r.clamp_min(torch.finfo(dtype).tiny)))
        slope.masked_fill_(r == 0, 0)
    kept = x.new_ones(len(x), 1, dtype=torch.bool) if sample_mask is None else sample_mask.bool()[:, None]
    loss = torch.where(kept, y * pos * minus_log_p + (1 - y) * neg * minus_log_not_r, 0)
    loss = loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    if not with_grad:
        return loss, x.new_empty(0)
    p_log_p = (p * minus_log_p).masked_fill_(p == 0, 0)
    grad = (1 - y) * neg * slope - y * pos * (q + gamma_pos * p_log_p)
    return loss, torch.where(kept, grad, 0) * factor(logits, reduction)


@_forward.register_fake
def _(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return fake_loss(logits, *rest[-2:])


@declares("asymmetric_loss")
def _(logits: Tensor, targets: Tensor, sample_mask: Tensor | None, *rest: Any) -> list[Pass]:
    *_, reduction, with_grad = rest
    return loss_passes(logits, ASYMMETRIC_LOSS, with_grad, reduction, targets, sample_mask)


_forward.register_autograd(gradients, setup_context=setup_context)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    reduction: str = "mean",
    sample_mask: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss of sigmoid(logits) against targets, each label on its own.

    Args:
        logits: [N, L] contiguous, float32, float16 or bfloat16, on the CPU float64 too.
        targets: [N, L] contiguous on the same device, bool, uint8 or any float dtype, in [0, 1]; any byte
            but 0 is a positive.
        gamma_pos, gamma_neg: focusing exponents of positives and negatives, 0 or more.
        margin: taken off the probability of negatives, in [0, 1].
        reduction: "mean" over all N·L, or over those of the samples that count, "sum", or "none". The paper's own
            code sums; its learning rates belong to the sum.
        sample_mask: [N] contiguous on the same device, bool or uint8: the samples that count; None counts all.

    Returns:
        As kernels.sigmoid_bce: float32 (float64 for float64 logits), the same bits for the same input.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes.

    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021 (arXiv:2009.14119), equations 4 to 7;
        the gradient flows through the focusing weights, as in the paper's section 3.3.
    """
    check_loss(logits, targets, reduction, sample_mask)
    check_number("gamma_pos", gamma_pos, low=0)
    check_number("gamma_neg", gamma_neg, low=0)
    check_number("margin", margin, 0, 1)
    with_grad = logits.requires_grad and torch.is_grad_enabled()
    inner = inner_reduction(reduction, sample_mask)
    loss: Tensor = _forward(logits, targets, sample_mask, gamma_pos, gamma_neg, margin, inner, with_grad)[0]
    return masked_mean(loss, logits, sample_mask) if inner != reduction else loss
