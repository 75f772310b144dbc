"""A training step of ours beside the same network as others have it (bench.peers).

320×320; batch 32 on a GPU, 8 on the CPU; all but one in channels-last and in the arithmetic of ours. `extra_info` has
pictures a second and the peak of memory above what network and optimizer hold.
"""

import ctypes
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import OURS
from bench.peers import COMPILED, PEERS, peer_step
from bench.steps import ARITHMETIC, DEVICE, PLACEMENT, our_step
from bench.timing import Call, clock
from bench.turns import Make, Row, Timed, in_turn

AFTER = COMPILED if DEVICE == "cuda" else {}


@dataclass(frozen=True, slots=True)
class Steps:
    """The comparison, and of each step the bytes that it takes at most beside what is there before it."""

    size: int
    batch: int
    timed: Timed
    peaks: dict[str, int]


@pytest.fixture(scope="module")
def steps(quick: bool) -> Steps:
    size, batch, rounds = (96, 4, 2) if quick else (320, 32 if DEVICE == "cuda" else 8, 5)
    peaks: dict[str, int] = {}

    def measured(name: str, make: Make) -> Call:
        step = make()
        step()
        peaks[name] = peak_bytes(step)
        return step

    makes: dict[str, Make] = {OURS: partial(our_step, size, batch)}
    makes |= {
        name: partial(peer_step, peer, size, batch, DEVICE, PLACEMENT.amp) for name, peer in (PEERS | AFTER).items()
    }
    makes = {name: partial(measured, name, make) for name, make in makes.items()}
    # The compiled ones not in turn with the others: the CUDA graphs of torch.compile free a workspace that a graph
    # recorded before still uses.
    groups = [[OURS, *PEERS], *([name] for name in AFTER)]
    found = [in_turn({name: makes[name] for name in names}, rounds, clock(DEVICE)) for names in groups]
    timed = Timed(
        {name: seconds for one in found for name, seconds in one.seconds.items()},
        {name: why for one in found for name, why in one.missing.items()},
    )
    return Steps(size, batch, timed, peaks)


@pytest.mark.parametrize("provider", [OURS, *PEERS, *AFTER])
def test_step(row: Row, steps: Steps, provider: str) -> None:
    group = f"training step, {steps.size}×{steps.size}, batch {steps.batch}, {ARITHMETIC}"
    rate = round(steps.batch / steps.timed.median(provider), 1)
    row(
        steps.timed,
        provider,
        group,
        pictures_per_s=rate,
        peak_bytes=steps.peaks[provider],
        in_turn=provider not in AFTER,
    )


def peak_bytes(step: Call) -> int:
    """The most memory that a step takes beside what is there before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
