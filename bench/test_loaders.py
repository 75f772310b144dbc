"""Our loader beside torchvision's, timm's and a plain DALI chain (bench.loaders).

320×320, full augmentation, two threads or workers. `extra_info` has pictures a second, and whether
they are photographs or drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from bench import OURS
from bench.loaders import PEERS, WORKERS, Pass, ours, ours_on_gpu
from bench.photographs import PLACES, photographs
from bench.turns import Make, Row, Timed, in_turn

SIZE, BATCH = 320, 32
LOADERS = {OURS: ours, **({"ours, on the GPU": ours_on_gpu} if torch.cuda.is_available() else {}), **PEERS}


@dataclass(frozen=True, slots=True)
class Passes:
    """Of every loader over the same pictures."""

    place: str
    pictures: int
    source: str
    timed: Timed


@pytest.fixture(scope="module")
def as_in_training() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(WORKERS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=PLACES)
def passes(request: pytest.FixtureRequest, quick: bool, as_in_training: None) -> Passes:
    count, rounds = (32, 2) if quick else (256, 9)
    source, files = photographs(request.param, count)
    makes: dict[str, Make] = {name: partial(whole, make, files) for name, make in LOADERS.items()}
    return Passes(request.param, count, source, in_turn(makes, rounds, warm=0))


def whole(make: Callable[..., Pass], files: list[str]) -> Pass:
    """A loader, after a pass that gave every picture."""
    once = make(files, SIZE, BATCH)
    assert once() == len(files)
    return once


@pytest.mark.parametrize("provider", LOADERS)
def test_loader(row: Row, passes: Passes, provider: str) -> None:
    rate = round(passes.pictures / passes.timed.median(provider))
    group = f"loading {passes.pictures} pictures of {passes.place}, {SIZE}×{SIZE}"
    row(passes.timed, provider, group, pictures_per_s=rate, pictures=passes.source)
