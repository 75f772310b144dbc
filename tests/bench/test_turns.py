"""Calls in turn: each is timed as often as the others, in alternating order; one that fails leaves the rest alone."""

from collections.abc import Callable
from itertools import count

import pytest

from bench.turns import Timed, in_turn


def test_order_and_times() -> None:
    """A clock that a call moves by its own time; what runs before a call costs nothing."""
    now, ran = [0.0], []

    def make(name: str, seconds: float) -> Callable[[], Callable[[], None]]:
        def call() -> None:
            ran.append(name)
            now[0] += seconds

        return lambda: call

    def before() -> None:
        now[0] += 100

    found = in_turn({"a": make("a", 1), "b": make("b", 3)}, 2, lambda: now[0], before)
    assert found == Timed({"a": [1, 1], "b": [3, 3]}, {})
    assert "".join(ran) == "ab" + "ba" + "ab" + "ba"  # the first of each, warm, and two rounds
    assert found.times_as_long("b", "a") == 3
    assert found.median("b") == 3


def test_the_ratio_is_of_pairs() -> None:
    """A disturbance that hits both calls of a round changes nothing; a ratio of medians would be 3."""
    timed = Timed({"ours": [1, 10, 100], "peer": [2, 30, 200]}, {})
    assert timed.times_as_long("peer", "ours") == 2


def test_a_call_that_cannot_be_made() -> None:
    """It raises where it is asked for, at its first run as well; a peer that is not installed is skipped."""

    def wrong() -> Callable[[], None]:
        raise ValueError("no such network")

    def absent() -> Callable[[], None]:
        raise ModuleNotFoundError(name="facenet_pytorch")

    def of_ours() -> Callable[[], None]:
        raise ModuleNotFoundError(name="engine.gone")

    number = count()
    makes = {"good": lambda: lambda: None, "wrong": wrong, "absent": absent, "of ours": of_ours, "first": lambda: wrong}
    found = in_turn(makes, 1, lambda: float(next(number)))
    assert found.seconds == {"good": [1.0]}
    for name, error in {"wrong": ValueError, "first": ValueError, "of ours": ModuleNotFoundError}.items():
        with pytest.raises(error):
            found.of(name)
    with pytest.raises(pytest.skip.Exception, match="facenet_pytorch is not installed: pip install --no-deps "):
        found.of("absent")
