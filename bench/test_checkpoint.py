"""What training waits for at a checkpoint: ours, written behind it, beside torch.save.

The study's network and its optimizer. A step is taken before each, and the write before is done by then, as it is
after 500 steps. `extra_info` has the wait as a share of such a step.
"""

import statistics
from dataclasses import dataclass

import pytest
import torch

from bench import OURS
from bench.steps import DEVICE, ours
from bench.timing import clock
from bench.turns import Row, Timed, in_turn
from engine.checkpoint import Checkpoints
from engine.run import Run

SAVE = "torch.save"
GROUP = "training waits for a checkpoint (the write behind the next steps not counted)"


@dataclass(frozen=True, slots=True)
class Waits:
    """The comparison, and seconds of a step."""

    batch: int
    timed: Timed
    step: float


@pytest.fixture(scope="module")
def waits(quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Waits:
    size, batch, rounds = (96, 4, 2) if quick else (320, 32 if DEVICE == "cuda" else 8, 5)
    run = Run(tmp_path_factory.mktemp("run"))
    run.create()
    checkpoints, now = Checkpoints(run), clock(DEVICE)
    training, step = ours(size, batch)
    steps: list[float] = []

    def state() -> dict[str, object]:
        return {"model": training.model.state_dict(), **training.state()}

    def one_step() -> None:
        checkpoints.finish()
        began = now()
        step()
        steps.append(now() - began)

    def ours_behind() -> None:
        checkpoints.save(state(), run.last)

    def plain_save() -> None:
        torch.save(state(), run.folder / "plain.pt")

    timed = in_turn({OURS: lambda: ours_behind, SAVE: lambda: plain_save}, rounds, now, one_step)
    checkpoints.finish()
    return Waits(batch, timed, statistics.median(steps[-2 * rounds :]))


@pytest.mark.parametrize("provider", [OURS, SAVE])
def test_checkpoint(row: Row, waits: Waits, provider: str) -> None:
    share = waits.timed.median(provider) / waits.step
    row(
        waits.timed,
        provider,
        GROUP,
        batch=waits.batch,
        share_of_a_step=round(share, 4),
    )
