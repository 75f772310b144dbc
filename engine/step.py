"""A training step: forward pass, loss, backward pass, update."""

import torch
from torch import Tensor, nn

import kernels
from engine.average import WeightAverage
from engine.config import Config
from engine.device import Placement
from engine.muon import Muon
from engine.recorded import Function, Recorded, Stream

WARM_UP = 3  # updates, as many as PyTorch's documentation of CUDA graphs takes


class Step:
    """What changes a network in training, batch by batch.

    On a GPU the launches of a batch's gradient and of the optimizer's update are recorded once and replayed, unless the
    placement says otherwise.

    Args:
        config: learning rate, clipping and averaging.
        placement: device and arithmetic.
        model: on the device.
        pos_weight: [labels] on the device, of the positive cases in the loss.

    Attributes:
        loss_sum: float64, on the device; each batch's loss is added.
    """

    def __init__(self, config: Config, placement: Placement, model: nn.Module, pos_weight: Tensor | None) -> None:
        self.config, self.placement, self.model, self.pos_weight = config, placement, model, pos_weight
        device, recorded = placement.device, placement.recorded
        self.rate = torch.tensor(config.lr, device=device) if recorded else config.lr
        matrices = [p for p in model.parameters() if p.ndim == 4] if config.optimizer == "muon" else []
        rest = [p for p in model.parameters() if p.ndim != 4 or not matrices]
        self.optimizer = torch.optim.Adam(rest, self.rate, fused=True, capturable=recorded)
        self.muon = Muon(matrices, self.rate) if matrices else None
        self.optimizers = [self.optimizer, *([] if self.muon is None else [self.muon])]
        self.scaler = torch.amp.GradScaler(device.type, enabled=placement.scaled)
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.together = torch.ones((), device=device)
        self.updates = 0
        self.stream = Stream(device) if recorded else None
        functions: tuple[Function, ...] = (self._first, self._further, self._update)
        if self.stream is not None:
            functions = tuple(Recorded(function, self.stream) for function in functions)
        self._add_first, self._add_further, self._apply = functions

    def add_gradient(self, images: Tensor, targets: Tensor, first: bool = True, together: int = 1) -> Tensor:
        """Adds a batch's gradient, divided by the number of batches that make one update; the loss, on the device.

        Args:
            images: [batch, 3, size, size] on the device, as the pipeline hands them over.
            targets: bool [batch, labels] on the device.
            first: whether it is the first batch of the update.
            together: batches that make one update.
        """
        self.together.fill_(together)
        add = self._add_first if first else self._add_further
        loss = add(images, targets)
        assert loss is not None
        return loss

    def update(self, rate: float) -> None:
        """One step of the optimizer with the gradient that has come together."""
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
        self._apply()
        self.updates += 1
        if self.stream is not None:
            # Only between updates: what is recorded goes on with the gradients that _first was recorded with.
            self.stream.warm = self.updates >= WARM_UP
        if self.average is not None:
            self.average.update()

    def _first(self, images: Tensor, targets: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # the backward pass hands its tensors over: nothing is cleared
        return self._further(images, targets)

    def _further(self, images: Tensor, targets: Tensor) -> Tensor:
        with self.placement.autocast():
            logits = self.model(images)
        loss = kernels.sigmoid_bce(logits, targets, self.pos_weight)
        torch.autograd.backward(self.scaler.scale(loss / self.together))
        self.loss_sum += loss.detach()
        return loss.detach()

    def _update(self) -> None:
        if self.config.clip_grad_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm, foreach=True)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "muon": None if self.muon is None else self.muon.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "loss_sum": self.loss_sum,
        }

    def restore(self, state: dict[str, object]) -> None:
        """What `state` gave, on whatever device. Only before the first step.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError: it is not such a state.
        """
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        for group in self.optimizer.param_groups:
            rate = float(group["lr"])
            if isinstance(self.rate, Tensor):
                self.rate.fill_(rate)
            group |= {"lr": self.rate if self.placement.recorded else rate, "capturable": self.placement.recorded}
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])  # type: ignore[arg-type]
            self.muon.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]
        self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        if self.average is not None:
            self.average.restore(state["average"])  # type: ignore[arg-type]
        self.loss_sum.copy_(state["loss_sum"])  # type: ignore[arg-type]
