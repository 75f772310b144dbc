"""The largest batch that fits is found by trying, and a batch that does not fit is told with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import fitting
from engine.config import Config, resolve
from engine.device import Placement, decide
from engine.fitting import largest_batch
from engine.step import Step
from engine.train import Arguments, train
from pipelines.errors import InputError

FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets steps of so many pictures fit; what is tried is noted."""

    def of(pictures: int) -> list[int]:
        tried: list[int] = []

        def steps(config: Config, placement: Placement, labels: int, batch: int) -> None:
            tried.append(batch)
            if batch > pictures:
                raise RuntimeError(FULL)

        monkeypatch.setattr(fitting, "take_steps", steps)
        monkeypatch.setattr(fitting, "_taken", lambda: 0)
        return tried

    return of


@pytest.mark.parametrize(
    ("pictures", "most", "due"), [(100, 1000, 96), (64, 64, 64), (7, 1000, 4), (2, 1000, 2), (1000, 20, 20), (50, 5, 5)]
)
def test_the_largest_is_found_in_few_trials(
    room: Callable[[int], list[int]], pictures: int, most: int, due: int
) -> None:
    tried = room(pictures)
    assert largest_batch(resolve("demo", {}), decide("cpu", False, "off"), 3, most) == due
    assert len(tried) < 10
    assert len(set(tried)) == len(tried)


def test_not_even_two_pictures(room: Callable[[int], list[int]]) -> None:
    room(1)
    with pytest.raises(InputError, match="not even 2 pictures of 96×96 fit; a smaller --image-size or --width"):
        largest_batch(resolve("demo", {}), decide("cpu", False, "off"), 3, 100)


def test_what_the_system_would_kill_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: 10 MB a picture, and 1 GB that is free."""
    tried = [0]

    def steps(config: Config, placement: Placement, labels: int, batch: int) -> None:
        tried.append(batch)

    monkeypatch.setattr(fitting, "take_steps", steps)
    monkeypatch.setattr(fitting, "_taken", lambda: 10**7 * max(tried))
    monkeypatch.setattr(fitting, "free_memory", lambda: 10**9)
    assert largest_batch(resolve("demo", {}), decide("cpu", False, "off"), 3, 10_000) == 88
    assert max(tried) == 88


def test_other_errors_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(fitting, "take_steps", steps)
    with pytest.raises(RuntimeError, match="something else"):
        largest_batch(resolve("demo", {}), decide("cpu", False, "off"), 3, 100)


def test_a_batch_that_does_not_fit_is_told_with_one_that_does(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--batch-size auto` takes the largest, here an eighth of an epoch. Real steps, with room for 6 pictures."""
    add = Step.add_gradient

    def of_six(self: Step, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(images) > 6:
            raise RuntimeError(FULL)
        return add(self, images, *rest)

    monkeypatch.setattr(Step, "add_gradient", of_six)
    options = {"data": table(pictures=60), "preset": "demo", "epochs": 1, "image_size": 75, "width": 0.125}
    arguments = Arguments(out=tmp_path / "run", **options, batch_size=12)
    with pytest.raises(InputError, match="out of memory with --batch-size 12; 4 is the largest that fits here"):
        train(arguments)
    assert not (tmp_path / "run").exists()
    assert train(Arguments(out=tmp_path / "auto", **options, batch_size="auto")) == 0
    assert "batch size 6, as large as fits, an eighth of an epoch at most" in capsys.readouterr().out.splitlines()
