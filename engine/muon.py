"""Muon: momentum whose matrices are made orthogonal before they are added to the weights.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io/posts/muon), on
convolutions as matrices [channels out, the rest]: all directions of a matrix move alike, where Adam mostly moves along
a few. The factor 0.2 · √(longer side) makes a step as long as Adam's, so that both take the same learning rate (Liu et
al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982, section 2.2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
STEPS = 3  # of the iteration below; more of them cost time and change little
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: coefficients that bring small singular values up fastest
LENGTH = 0.2  # root mean square of a step's elements, in learning rates


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly U·Vᵀ of each of the matrices U·S·Vᵀ [number, rows, columns], by a Newton-Schulz iteration.

    The singular values of what comes out lie about 1, which is all that a step needs.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        x = x.bfloat16()  # as Jordan et al. have it: the singular values come out no further from 1
    a, b, c = QUINTIC
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    out: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, for weights of convolutions; weights of one shape go together.

    All is done in tensor operations that wait for nothing, a gradient scaler's wishes included: it can be recorded.

    Args:
        weights: [channels out, channels in, height, width].
        lr: learning rate, a tensor where it changes between replays of a recording.
    """

    # What a gradient scaler asks: it hands scale and finiteness over as tensors then, and waits for neither.
    _step_supports_amp_scaling = True

    def __init__(self, weights: Sequence[nn.Parameter], lr: float | Tensor) -> None:
        super().__init__(weights, {"lr": lr})
        self.shapes: dict[torch.Size, list[int]] = {}
        for number, weight in enumerate(weights):
            self.shapes.setdefault(weight.shape, []).append(number)
            self.state[weight]["momentum"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update with the gradients that the weights have."""
        (group,) = self.param_groups
        weights: list[nn.Parameter] = group["params"]
        momentum: list[Tensor] = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        rate = group["lr"]
        if scale is not None:
            gradients = list(torch._foreach_div(gradients, scale))
        if found_inf is not None:  # nothing is to move then
            bad = found_inf > 0
            gradients = [torch.where(bad, m, g) for m, g in zip(momentum, gradients, strict=True)]
            rate = rate * (1 - found_inf)
        torch._foreach_lerp_(momentum, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momentum, MOMENTUM)
        for shape, numbers in self.shapes.items():
            rows = [ahead[number].permute(0, 2, 3, 1).reshape(shape[0], -1) for number in numbers]
            moves = orthogonal(torch.stack(rows))
            moves *= -LENGTH * max(moves.shape[1:]) ** 0.5 * rate
            back = moves.view(len(numbers), shape[0], shape[2], shape[3], shape[1]).permute(0, 1, 4, 2, 3)
            torch._foreach_add_([weights[number] for number in numbers], list(back.unbind()))
