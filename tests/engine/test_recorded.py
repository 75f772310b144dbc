"""A step that is recorded and replayed computes what the step itself computes. Checked without a GPU: a tape of torch's
operators, replayed in the memory that they first used, stands in for a CUDA graph."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import step as step_module
from engine.config import Device, resolve
from engine.device import decide
from engine.model import Conv, ConvNormRelu, InceptionResidual, InceptionResNetV1, Stage
from engine.recorded import Recorded
from engine.step import Step

LABELS, BATCH = 3, 2


def tensors(values: object) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


class Tape(TorchDispatchMode):
    """Operators in their order, with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        new = [t for t in tensors(out) if t.untyped_storage().data_ptr() not in read]
        if new or func._schema.is_mutable:
            self.calls.append((func, args, kwargs or {}, tensors(out)))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            for own, fresh in zip(outputs, tensors(func(*args, **kwargs)), strict=True):
                if own is not fresh:
                    own.copy_(fresh)


class TapeStream:
    """In place of engine.recorded.Stream. A GPU only records; here the tape runs, and its first replay is left out."""

    def __init__(self, device: torch.device) -> None:
        self.warm = False

    def forget(self) -> None:
        self.warm = False

    def give_back(self) -> None:
        pass

    def run(self, call: Callable[[], object]) -> None:
        call()

    def record(self, call: Callable[[], object]) -> Callable[[], object]:
        tape = Tape()
        with tape:
            call()
        done: list[bool] = []

        def replay() -> None:
            if done:
                tape.replay()
            done.append(True)

        return replay


def step_of(recorded: bool, device: Device = "cpu", **changes: object) -> Step:
    torch.manual_seed(0)
    branches: list[list[Conv]] = [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, 3, 1, 1)]]
    blocks = Stage(*(InceptionResidual(16, branches, 0.2) for _ in range(2)))
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, LABELS))
    model = nn.Sequential(ConvNormRelu(3, (16, 3, 2, 0)), blocks, *end)
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = resolve("demo", changes)
    placement = replace(decide(device, False, "off"), recorded=recorded)
    return Step(config, placement, model, (torch.rand(LABELS) + 1).to(device))


def train(step: Step, sizes: list[int], bad: int | None = None, grow_at: int | None = None) -> list[float]:
    """Losses of updates that take these numbers of batches; one of them is given pictures that are not numbers, and
    from one on they are larger."""
    data = torch.Generator().manual_seed(1)
    losses = []
    for number, together in enumerate(sizes):
        side = 9 if grow_at is None or number < grow_at else 13
        for place in range(together):
            images = torch.randn(BATCH, 3, side, side, generator=data).contiguous(memory_format=torch.channels_last)
            targets = torch.rand(BATCH, LABELS, generator=data) < 0.4
            if number == bad and place == together - 1:
                images[1, 2, 3, 4] = float("nan")
            given = (t.to(step.placement.device) for t in (images, targets))
            losses.append(step.add_gradient(*given, place == 0, together).item())
        step.update(2.0 ** -(7 + number % 8))  # exact in float32, as the recorded rate is
    return losses


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "Stream", TapeStream)


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [1] * 6),
        ({"optimizer": "muon"}, [1] * 6),
        ({"ema_decay": 0.5, "clip_grad_norm": 0.1, "optimizer": "muon"}, [3, 3, 2, 3, 1, 3, 3]),
    ],
    ids=["plain", "muon", "everything"],
)
def test_replayed_steps_are_the_steps(changes: dict[str, object], sizes: list[int]) -> None:
    """The rate, the number of batches to an update and dropout change from step to step; bits are the same."""
    plain, recorded = step_of(False, **changes), step_of(True, **changes)
    torch.manual_seed(2)
    due = train(plain, sizes)
    torch.manual_seed(2)
    assert train(recorded, sizes) == due
    assert len(set(due)) == len(due)
    assert isinstance(recorded._add_first, Recorded)
    assert recorded._add_first.replay is not None
    own = plain.model.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in recorded.model.state_dict().items())
    assert recorded.loss_sum.item() == pytest.approx(sum(due))
    if plain.average is not None:
        assert recorded.average is not None
        assert all(torch.equal(a, b) for a, b in zip(plain.average.average, recorded.average.average, strict=True))


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize("grow_at", [2, 6], ids=["before-it-is-recorded", "recorded"])
def test_pictures_that_grow_are_recorded_anew(grow_at: int) -> None:
    """Bits are those of steps that are not recorded, before, at and after the change; then it is replayed again."""
    changes: dict[str, object] = {"ema_decay": 0.5, "optimizer": "muon"}
    plain, recorded = step_of(False, **changes), step_of(True, **changes)
    sizes = [2, 1, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, 1]
    torch.manual_seed(2)
    due = train(plain, sizes, grow_at=grow_at)
    before = recorded._add_first
    torch.manual_seed(2)
    assert train(recorded, sizes, grow_at=grow_at) == due
    assert recorded._add_first is not before
    assert isinstance(recorded._add_first, Recorded)
    assert recorded._add_first.replay is not None
    own = plain.model.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in recorded.model.state_dict().items())


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize("recorded", [False, True], ids=["as-it-is", "recorded"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("bad", [0, 5])
def test_an_update_of_what_is_no_number_changes_nothing(recorded: bool, bad: int, optimizer: str) -> None:
    """Not the weights, not the optimizer, not the running statistics, not the loss so far: as if it had not been."""
    step, sizes = step_of(recorded, ema_decay=0.5, optimizer=optimizer), [2, 1, 2, 2, 1, 2, 2]
    seen = []
    update = step.update

    def watched(rate: float) -> None:
        before = {name: t.clone() for name, t in step.model.state_dict().items() if t.is_floating_point()}
        update(rate)
        after = step.model.state_dict()
        seen.append(all(torch.equal(t, after[name]) for name, t in before.items() if "running" not in name))

    step.update = watched  # type: ignore[method-assign]
    losses = train(step, sizes, bad)
    assert seen == [number == bad for number in range(len(sizes))]
    assert [outcome.skipped for outcome in step.outcomes(len(sizes))] == seen
    assert [outcome.loss_here for outcome in step.outcomes(len(sizes))] == [not skipped for skipped in seen]
    first = sum(sizes[:bad])
    assert step.loss_sum.item() == pytest.approx(sum(losses[:first] + losses[first + sizes[bad] :]))
    assert all(torch.isfinite(t).all() for t in step.model.state_dict().values())
    steps = {state["step"].item() for state in step.optimizer.state.values()}
    assert steps == {len(sizes) - 1}


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("after", [False, True], ids=["as-it-is", "recorded"])
def test_a_run_may_go_on_recorded_or_not(after: bool, optimizer: str) -> None:
    """Options of the optimizer that belong to the device are not taken over from a checkpoint."""
    whole, before, rest = (step_of(recorded, optimizer=optimizer) for recorded in (False, not after, after))
    torch.manual_seed(2)
    train(whole, [1] * 5)
    due = train(whole, [1] * 5)
    torch.manual_seed(2)
    train(before, [1] * 5)
    rest.model.load_state_dict(before.model.state_dict())
    rest.restore(before.state())
    assert train(rest, [1] * 5) == due
    assert rest.optimizer.param_groups[0]["capturable"] == after


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [1] * 8),
        ({"optimizer": "muon"}, [1] * 8),
        ({"ema_decay": 0.5, "clip_grad_norm": 0.1}, [3, 3, 2, 3, 1, 3, 3]),
    ],
    ids=["plain", "muon", "everything"],
)
@pytest.mark.parametrize("grow_at", [None, 5], ids=["one-size", "growing"])
def test_cuda_graphs_are_the_steps(changes: dict[str, object], sizes: list[int], grow_at: int | None) -> None:
    """On a GPU, within what its libraries' order of sums allows; also where what was recorded is recorded anew."""
    sizes = sizes if grow_at is None else [*sizes, *sizes]
    plain, recorded = step_of(False, "cuda", **changes), step_of(True, "cuda", **changes)
    for step in (plain, recorded):
        next(m for m in step.model.modules() if isinstance(m, nn.Dropout)).p = 0.0
    due = train(plain, sizes, grow_at=grow_at)
    assert train(recorded, sizes, grow_at=grow_at) == pytest.approx(due, rel=1e-3)
    assert isinstance(recorded._add_first, Recorded)
    assert recorded._add_first.replay is not None
    own = plain.model.state_dict()
    for name, t in recorded.model.state_dict().items():
        torch.testing.assert_close(t, own[name], rtol=1e-2, atol=1e-3)


def test_other_inputs_than_the_recorded_ones_are_refused() -> None:
    stream = TapeStream(torch.device("cpu"))
    double = Recorded(lambda x: 2 * x, stream)  # type: ignore[arg-type]
    for value in range(6):
        stream.warm = value > 2
        assert double(torch.tensor([1.0 * value])).item() == 2 * value  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"\(2,\) in torch.float32 given, recorded for \(1,\)"):
        double(torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.parametrize("together", [1, 3])
def test_a_recorded_step_of_several_processes_on_a_gpu(tmp_path: Path, together: int) -> None:
    """The sum of gradients and the norms' statistics are collective operations that a CUDA graph holds. One process
    stands for all that NCCL has to show here: two would need two GPUs."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        losses, skipped = [], []
        for recorded, group in ((False, None), (True, dist.group.WORLD)):
            torch.manual_seed(0)
            model = InceptionResNetV1(LABELS, 0.25, dropout=0.0).train()
            model.to(device="cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
            placement = replace(decide("cuda", False, "on"), recorded=recorded)
            config = resolve("demo", {"sync_norm": group is not None, "clip_grad_norm": 1.0})
            step = Step(config, placement, model, None, group)
            generator = torch.Generator("cuda").manual_seed(1)
            own = []
            for number in range(8):
                for place in range(together):
                    images = torch.randn(16, 3, 96, 96, device="cuda", generator=generator)
                    images = images.contiguous(memory_format=torch.channels_last)
                    images *= float("nan") if number == 6 else 1.0
                    targets = torch.rand(16, LABELS, device="cuda", generator=generator) < 0.4
                    own.append(step.add_gradient(images, targets, place == 0, together).item())
                step.update(0.0001)
            losses.append(own)
            skipped.append([outcome.skipped for outcome in step.outcomes(8)])
            assert all(torch.isfinite(t).all() for t in model.state_dict().values())
        assert skipped == [[number == 6 for number in range(8)]] * 2
        assert losses[0] == pytest.approx(losses[1], abs=2e-3, nan_ok=True)
    finally:
        dist.destroy_process_group()
