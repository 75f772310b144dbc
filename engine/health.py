"""What became of the last updates: kept where they are computed, and looked at rarely, since a look waits for them.

An update whose loss or gradient is not finite changes nothing: the optimizer skips it on the device, the running
statistics of the norms are those from before, and its loss is not counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

KEPT = 16  # updates that are remembered; there is a look after fewer


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of an update.

    Attributes:
        skipped: whether it changed nothing.
        loss_here: whether this process's own loss was finite.
        stop: whether some process was asked to stop.
    """

    skipped: bool
    loss_here: bool
    stop: bool


class Health:
    """Outcomes of updates on a device, newest first, as flags.

    Attributes:
        skip: float32, 1 where the update at hand is to change nothing, else 0. Optimizers take it as `found_inf`.
    """

    def __init__(self, device: torch.device) -> None:
        self.skip = torch.zeros((), device=device)
        self.flags = torch.zeros((KEPT, 3), device=device)

    def note(self, gradient: Tensor, loss: Tensor, here: Tensor, stop: Tensor) -> None:
        """An update that is about to be made.

        Args:
            gradient: a norm of the gradient of all processes; not finite where one of its numbers is not.
            loss: of all processes.
            here: of this one.
            stop: above 0 where a process was asked to stop.
        """
        self.skip.copy_(~(torch.isfinite(gradient) & torch.isfinite(loss)))
        own = torch.stack((self.skip, torch.isfinite(here).float(), (stop > 0).float()))
        self.flags.copy_(torch.cat((own.unsqueeze(0), self.flags[:-1])))

    def look(self, updates: int) -> list[Outcome]:
        """Those of the last updates, KEPT at most, the oldest first; waits for the device."""
        found = self.flags[:updates].tolist()
        return [Outcome(*map(bool, row)) for row in reversed(found)]


def share_memory(model: nn.Module) -> Tensor:
    """Lets the running statistics of all norms lie side by side in one tensor, which is the result."""
    owners = [
        (module, name)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in ("running_mean", "running_var")
    ]
    if not owners:
        return torch.zeros(0, device=next(model.parameters()).device)
    together = torch.cat([getattr(module, name) for module, name in owners])
    at = 0
    for module, name in owners:
        length = len(getattr(module, name))
        setattr(module, name, together[at : at + length])
        at += length
    return together
