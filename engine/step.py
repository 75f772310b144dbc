"""A training step: forward pass, loss, backward pass, update."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

import kernels
from engine.average import WeightAverage
from engine.config import Config
from engine.device import Placement
from engine.gradients import Summed
from engine.health import Health, Outcome, share_memory
from engine.muon import Muon
from engine.recorded import Function, Recorded, Stream
from kernels.batch_norm_ranks import synchronised

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
        group: processes that train together; None: this one alone.
        share: this process's part of each batch.

    Attributes:
        loss_sum: float64, on the device; the losses of each update's batches are added, of all processes, but for those
            of updates that were skipped, their loss or gradient not being finite.
        warm_from: number of updates after which those on pictures of the present size take no new memory.
    """

    def __init__(
        self,
        config: Config,
        placement: Placement,
        model: nn.Module,
        pos_weight: Tensor | None,
        group: dist.ProcessGroup | None = None,
        share: float = 1.0,
    ) -> None:
        self.config, self.placement, self.model, self.pos_weight = config, placement, model, pos_weight
        device, recorded = placement.device, placement.recorded
        self.group, self.share = group, share
        self.health, self.running = Health(device), share_memory(model)
        self.running_before = self.running.clone()
        self.rate = torch.tensor(config.lr, device=device) if recorded else config.lr
        matrices = [p for p in model.parameters() if p.ndim == 4] if config.optimizer == "muon" else []
        rest = [p for p in model.parameters() if p.ndim != 4 or not matrices]
        self.optimizer = torch.optim.Adam(rest, self.rate, fused=True, capturable=recorded)
        self.muon = Muon(matrices, self.rate) if matrices else None
        self.optimizers = [self.optimizer, *([] if self.muon is None else [self.muon])]
        self.scaler = torch.amp.GradScaler(device.type, enabled=placement.scaled)
        if not placement.scaled:  # a scaler finds out by itself
            for optimizer in self.optimizers:
                optimizer.found_inf = self.health.skip  # type: ignore[attr-defined]
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.pending = torch.zeros((), dtype=torch.float64, device=device)  # losses of the update at hand
        self.together = torch.ones((), device=device)
        self.stop = torch.zeros((), device=device)
        self.parameters = list(model.parameters())
        like = [*self.parameters, self.running, self.stop, self.stop]
        self.summed = None if group is None else Summed(like, group)
        self.updates = 0
        self.stream = Stream(device) if recorded else None
        self.size: int | None = None  # of the pictures that are recorded
        self.warm_from = WARM_UP
        self._take_functions()

    def _take_functions(self) -> None:
        functions: tuple[Function, ...] = (self._first, self._further, self._update)
        if self.stream is not None:
            functions = tuple(Recorded(function, self.stream) for function in functions)
        self._add_first, self._add_further, self._apply = functions

    def _record_anew(self, size: int) -> None:
        """Pictures of another size come: what was recorded is of no use for them, nor the memory that it has."""
        if self.size is not None:
            self.warm_from = self.updates + WARM_UP
            if self.stream is not None:
                self.stream.forget()
                for parameter in self.parameters:
                    parameter.grad = None
                self._take_functions()
                self.stream.give_back()
        self.size = size

    def add_gradient(self, images: Tensor, targets: Tensor, first: bool = True, together: int = 1) -> Tensor:
        """Adds a batch's gradient, divided by the number of batches that make one update; the loss, on the device.

        Args:
            images: [batch, 3, size, size] on the device, as the pipeline hands them over; all of an update have one
                size.
            targets: bool [batch, labels] on the device.
            first: whether it is the first batch of the update.
            together: batches that make one update.
        """
        if first and images.shape[-1] != self.size:
            self._record_anew(images.shape[-1])
        self.together.fill_(together / self.share)
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
            self.stream.warm = self.updates >= self.warm_from
        if self.average is not None:
            self.average.update()

    def _first(self, images: Tensor, targets: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # the backward pass hands its tensors over: nothing is cleared
        self.pending.zero_()
        self.running_before.copy_(self.running)
        return self._further(images, targets)

    def _further(self, images: Tensor, targets: Tensor) -> Tensor:
        with self.placement.autocast(), synchronised(self.group if self.config.sync_norm else None):
            logits = self.model(images)
        loss = kernels.sigmoid_bce(logits, targets, self.pos_weight)
        torch.autograd.backward(self.scaler.scale(loss / self.together))
        self.pending += loss.detach()
        return loss.detach()

    def _update(self) -> None:
        gradients = [p.grad for p in self.parameters]
        loss, stop = self.pending, self.stop
        if self.summed is not None:
            with torch.no_grad():
                own = [*gradients, self.running * self.share, self.pending.float() * self.share, self.stop]
            *sums, running, loss, stop = self.summed.of(own)  # type: ignore[arg-type]
            self.running.copy_(running)
            self._hand_over(sums)
        if self.config.clip_grad_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad_norm, foreach=True)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None], foreach=True)
        if self.placement.scaled:
            norm = self.stop  # a gradient beyond half precision only says that the scale is too large
        self.health.note(norm, loss, self.pending, stop)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self._hand_over(gradients)  # what is recorded adds the next batches to these
        skip = self.health.skip > 0
        self.running.copy_(torch.where(skip, self.running_before, self.running))
        self.loss_sum += torch.where(skip, 0.0, loss)

    def _hand_over(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def ask_to_stop(self) -> None:
        """Tells all processes at the next update; their outcomes say so."""
        self.stop.fill_(1)

    def outcomes(self, updates: int) -> list[Outcome]:
        """Of the last updates, health.KEPT at most, the oldest first; waits for the device."""
        return self.health.look(updates)

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
        if state["scaler"]:  # empty of a run that had none so far, on another device
            self.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        if self.average is not None:
            self.average.restore(state["average"])  # type: ignore[arg-type]
        self.loss_sum.copy_(state["loss_sum"])  # type: ignore[arg-type]
