"""What the suite's files share: the quick form, the machine in every JSON, and rows of times that were taken in turn.

    pytest bench/ --benchmark-only [--quick] [--benchmark-json FILE]

A comparison is timed once, all its calls in turn (bench.turns), when the first of its rows is asked for. Each row is
a test, so that pytest-benchmark's table, JSON and comparisons have them side by side, a group a comparison.
"""

from itertools import chain
from typing import Any

import pytest

from bench import OURS
from bench.machine import machine
from bench.turns import Row, Timed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller shapes and fewer rounds: to see that all runs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A table that fits a terminal, unless other columns are asked for."""
    config.option.benchmark_columns = config.option.benchmark_columns or ["median", "iqr", "rounds"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Inference before what sets the allocator of the process as training does: its peers have theirs as it is."""
    items.sort(key=lambda item: item.path.name != "test_inference.py")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """In machine_info rather than with each benchmark: once a file, and --benchmark-compare warns where it differs."""
    machine_info |= machine(machine_info["cpu"])


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether the quick form was asked for; its figures say so and are no measurement."""
    return bool(request.config.getoption("quick"))


@pytest.fixture
def row(benchmark: Any, quick: bool) -> Row:
    """Makes the row of a call."""

    def make(timed: Timed, name: str, group: str, **facts: object) -> None:
        """Hands the times of a call to pytest-benchmark, and what is known of it to extra_info.

        Args:
            timed: the comparison.
            name: of the call in it.
            group: heading of the comparison.
            facts: further entries of extra_info.
        """
        readings = chain.from_iterable((0.0, seconds) for seconds in timed.of(name))
        benchmark.group, benchmark._timer = group, lambda: next(readings)
        benchmark.pedantic(lambda: None, rounds=len(timed.of(name)))
        benchmark.extra_info |= {"provider": name, **({"quick": True} if quick else {}), **facts}
        if name != OURS and OURS in timed.seconds:
            benchmark.extra_info["times_as_long"] = round(timed.times_as_long(name, OURS), 3)

    return make
