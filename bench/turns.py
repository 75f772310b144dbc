"""Calls timed in turn, so that what disturbs one disturbs all: how every comparison of the suite is made."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from bench.timing import Call

Make = Callable[[], Call]
Row = Callable[..., None]  # the fixture `row` of bench/conftest.py

# How the peers are installed; a comparison leaves out the row of one that is not.
INSTALL = {
    "torchvision": "pip install -e '.[bench]'",
    "timm": "pip install -e '.[bench]'",
    "facenet_pytorch": "pip install --no-deps facenet-pytorch requests",  # it would bring a torch of years ago
}
INSTALL["requests"] = INSTALL["facenet_pytorch"]


@dataclass(frozen=True, slots=True)
class Timed:
    """What came of some calls.

    Attributes:
        seconds: of each call, a number a round.
        missing: in place of those, what kept a call from being made or run the first time.
    """

    seconds: dict[str, list[float]]
    missing: dict[str, BaseException]

    def of(self, name: str) -> list[float]:
        """Seconds of a call, a number a round.

        Raises:
            BaseException: what kept it from being timed.
        """
        if name in self.missing:
            raise self.missing[name]
        return self.seconds[name]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.of(name))

    def times_as_long(self, name: str, reference: str) -> float:
        """Median over the rounds of how many times as long a call takes as the reference does."""
        pairs = zip(self.of(name), self.of(reference), strict=True)
        return statistics.median(seconds / unit for seconds, unit in pairs)


def in_turn(
    makes: Mapping[str, Make],
    rounds: int,
    now: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
    warm: int = 1,
) -> Timed:
    """Times calls in turn, every second round in the reverse order.

    Args:
        makes: of each name, what makes its call; one that raises, or skips, leaves the others alone.
        rounds: how often each call is timed.
        now: the clock, as bench.timing.clock gives it.
        before: called before each call, off the clock.
        warm: rounds off the clock, beside the first call of each.
    """
    calls: dict[str, Call] = {}
    missing: dict[str, BaseException] = {}
    for name, make in makes.items():
        try:
            calls[name] = make()
            before()
            calls[name]()  # what is compiled at first use, is
        except (Exception, pytest.skip.Exception) as why:
            calls.pop(name, None)
            missing[name] = _as_skip(why)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warm, rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            before()
            began = now()
            calls[name]()
            taken = now() - began
            if turn >= 0:
                seconds[name].append(taken)
    return Timed(seconds, missing)


def _as_skip(why: BaseException) -> BaseException:
    """A peer that is not installed as a reason to skip its row; anything else as it is."""
    if isinstance(why, ModuleNotFoundError) and why.name in INSTALL:
        return pytest.skip.Exception(f"{why.name} is not installed: {INSTALL[why.name]}")
    return why
