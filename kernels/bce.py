"""Binary cross-entropy on logits, with its gradient made in the same pass.

    loss = (1 - y) · softplus(x) + w · y · softplus(-x)       softplus(x) = max(x, 0) + log1p(exp(-|x|))
    grad = (1 - y) · sigmoid(x)  - w · y · sigmoid(-x)

x are the logits [N, L], y the targets [N, L] in [0, 1], w what a positive of each label [L] weighs, or 1. In
this form nothing cancels: far from zero, too, loss and gradient keep their relative accuracy.

The gradient is kept without the 1/n of the mean and without the loss scale, either of which could take it
out of the range of float16.

Bytes moved for n = N·L logits of b bytes and targets of t bytes: forward n·(b + t), with n·b more where a
gradient is wanted and n·4 more for a loss that is not reduced; backward 2·n·b.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import softplus

_BLOCK = 2048  # a usual batch of logits fits one program, whose sum is the loss: no second launch
_EXACT = 40.0  # from here on softplus(x) is x, in float64 too
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def sigmoid_bce_reference(
    logits: Tensor, targets: Tensor, pos_weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    y = targets.to(logits.dtype)
    weight = y if pos_weight is None else y * pos_weight.to(logits.dtype)
    loss = (1 - y) * softplus(logits, threshold=_EXACT) + weight * softplus(-logits, threshold=_EXACT)
    return _reduce(loss, reduction)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


@triton.jit
def _log1p(e):  # type: ignore[no-untyped-def]
    # For e in [0, 1]: 2·atanh(s), s = e / (2 + e) ≤ 1/3, as a series. log(1 + e) is 0 for every e below 6e-8.
    s = e / (2.0 + e)
    q = s * s
    p = 1 / 11 + q * (1 / 13)
    p = 1 / 7 + q * (1 / 9 + q * p)
    p = 1 / 3 + q * (1 / 5 + q * p)
    return 2.0 * s * (1.0 + q * p)


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid_bce_fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, w_ptr, loss_ptr, grad_ptr, factor, n, labels, REDUCED: tl.constexpr, BLOCK: tl.constexpr
):
    # w_ptr and grad_ptr may be None.
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    at = program * BLOCK + lane
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
    weight = y
    if w_ptr is not None:
        # One 64-bit division a program finds its first column; 32 bits are enough for the elements after it.
        column = ((program * BLOCK % labels).to(tl.int32) + lane) % labels
        weight *= tl.load(w_ptr + column, mask=inside, other=0.0).to(tl.float32)

    e = tl.exp(-tl.abs(x))
    log1p_e = _log1p(e)
    loss = (1.0 - y) * (tl.maximum(x, 0.0) + log1p_e) + weight * (tl.maximum(-x, 0.0) + log1p_e)
    if REDUCED:
        tl.store(loss_ptr + program, tl.sum(tl.where(inside, loss, 0.0)) * factor)
    else:
        tl.store(loss_ptr + at, loss, mask=inside)
    if grad_ptr is not None:
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        grad = (1.0 - y) * tl.where(x < 0, small, large) - weight * tl.where(x < 0, large, small)
        tl.store(grad_ptr + at, grad.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _sigmoid_bce_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, upstream_ptr, out_ptr, factor, n, SCALAR: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    upstream = tl.load(upstream_ptr) if SCALAR else tl.load(upstream_ptr + at, mask=inside)
    grad = tl.load(grad_ptr + at, mask=inside).to(tl.float32) * (upstream * factor)
    tl.store(out_ptr + at, grad.to(out_ptr.dtype.element_ty), mask=inside)


# TRITON_INTERPRET=1 at import makes the kernels run on CPU tensors too.
_INTERPRETED = not isinstance(_sigmoid_bce_fwd_kernel, triton.JITFunction)


def _takes_triton(x: Tensor) -> bool:
    # An empty tensor has nothing to launch; plain torch gives it what is due, on a GPU too.
    return x.numel() > 0 and (x.is_cuda or (_INTERPRETED and x.dtype != torch.float64))


@torch.library.custom_op("manylabel::sigmoid_bce", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    if not _takes_triton(logits):
        return _forward_cpu(logits, targets, pos_weight, reduction, with_grad)
    n, labels = logits.numel(), logits.shape[1]
    programs = triton.cdiv(n, _BLOCK)
    reduced = reduction != "none"
    loss = torch.empty((programs,) if reduced else logits.shape, dtype=torch.float32, device=logits.device)
    grad = torch.empty_like(logits) if with_grad else None
    y = targets.view(torch.uint8) if targets.dtype == torch.bool else targets
    factor = 1 / n if reduction == "mean" else 1.0
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _sigmoid_bce_fwd_kernel[(programs,)](
            logits, y, pos_weight, loss, grad, factor, n, labels, REDUCED=reduced, BLOCK=_BLOCK
        )
    if reduced:
        # A sum a program and then their sum, no atomics: the same bits in every run.
        loss = loss.reshape(()) if programs == 1 else loss.sum()
    return loss, logits.new_empty(0) if grad is None else grad


def _forward_cpu(
    logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    x, y = logits.to(dtype), targets.to(dtype)
    minus_x, negative = -x, 1 - y
    positive = y if pos_weight is None else y * pos_weight.to(dtype)
    loss = softplus(x, threshold=_EXACT).mul_(negative)
    loss = _reduce(loss.addcmul_(positive, softplus(minus_x, threshold=_EXACT)), reduction)
    if not with_grad:
        return loss, logits.new_empty(0)
    grad = torch.sigmoid(x).mul_(negative).addcmul_(positive, minus_x.sigmoid_(), value=-1)
    return loss, grad.to(logits.dtype)


@torch.library.custom_op("manylabel::sigmoid_bce_backward", mutates_args=())
def _backward(grad: Tensor, upstream: Tensor, reduction: str) -> Tensor:
    n = grad.numel()
    factor = 1 / max(n, 1) if reduction == "mean" else 1.0
    if not _takes_triton(grad):
        # In the dtype of the loss: torch would round a scalar to the dtype of the matrix that it multiplies.
        return (grad.to(upstream.dtype) * (upstream * factor)).to(grad.dtype)
    out = torch.empty_like(grad)
    upstream = upstream.contiguous()
    grid, scalar = (triton.cdiv(n, _BLOCK),), reduction != "none"
    with torch.cuda.device_of(grad):  # type: ignore[no-untyped-call]
        _sigmoid_bce_bwd_kernel[grid](grad, upstream, out, factor, n, SCALAR=scalar, BLOCK=_BLOCK)
    return out


@_forward.register_fake
def _(
    logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty(logits.shape if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(logits) if with_grad else logits.new_empty(0)


@_backward.register_fake
def _(grad: Tensor, upstream: Tensor, reduction: str) -> Tensor:
    return torch.empty_like(grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.reduction = inputs[3]


def _gradients(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
    (grad,) = ctx.saved_tensors
    return None if upstream is None else _backward(grad, upstream, ctx.reduction), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _check(logits: Tensor, targets: Tensor, pos_weight: Tensor | None, reduction: str) -> None:
    if logits.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"logits is on {logits.device}; it takes cpu and cuda")
    if logits.dtype not in _DTYPES or (logits.dtype == torch.float64 and logits.is_cuda):
        raise ValueError(f"logits is {logits.dtype}; it takes float32, float16, bfloat16, on the CPU float64")
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it takes two dimensions, [N, L]")
    if not logits.is_contiguous():
        raise ValueError(f"logits has strides {logits.stride()}; it takes contiguous memory")
    if targets.dtype not in (torch.bool, torch.uint8, *_DTYPES):
        raise ValueError(f"targets is {targets.dtype}; it takes bool, uint8 and the float dtypes")
    _check_constant("targets", targets, logits, logits.shape)
    if pos_weight is not None:
        if pos_weight.dtype not in _DTYPES:
            raise ValueError(f"pos_weight is {pos_weight.dtype}; it takes the float dtypes")
        _check_constant("pos_weight", pos_weight, logits, logits.shape[1:])
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it takes mean, sum or none")


def _check_constant(name: str, tensor: Tensor, logits: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; for these logits it takes {tuple(shape)}")
    if tensor.device != logits.device:
        raise ValueError(f"{name} is on {tensor.device}; it takes the device of logits, {logits.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it takes contiguous memory")
    if tensor.requires_grad:
        raise ValueError(f"{name} requires a gradient, which is not computed; it takes a detached tensor")


def sigmoid_bce(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of sigmoid(logits) against targets, each label on its own.

    Args:
        logits: [N, L] contiguous, float32, float16 or bfloat16, on the CPU float64 too.
        targets: [N, L] contiguous on the same device, bool, uint8 or any float dtype. Values between 0 and 1
            are soft targets; the range is not checked.
        pos_weight: [L] contiguous on the same device, any float dtype; None weighs every positive 1.
        reduction: "mean" over all N·L, "sum", or "none".

    Returns:
        The loss in float32 (float64 for float64 logits): a scalar, or [N, L] for "none". The mean of an empty
        batch is NaN, its sum 0. The same input gives the same bits. The gradient flows to logits only, in
        their dtype; this call makes it where it is wanted, and backward multiplies it by the one from
        upstream.

    Raises:
        ValueError: names the argument that does not fit, what it is and what it takes. Nothing is copied to
            fit.

    Source: the logistic loss; pos_weight as in torch.nn.BCEWithLogitsLoss.
    """
    _check(logits, targets, pos_weight, reduction)
    with_grad = logits.requires_grad and torch.is_grad_enabled()  # a validation pass stores none
    loss: Tensor = _forward(logits, targets, pos_weight, reduction, with_grad)[0]
    return loss
