"""Tests run side by side, a process a core; benchmarks, and what is named by file, run in the process at hand."""

import os
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"
MOST = 8  # processes, each of a gigabyte and more

if os.environ.pop("PYTEST_XDIST_WORKER", None):  # lest benchmarks that a test starts think they were one of several
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more would wait for each other's cores, and idle ones take them
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`."""
    start = config.invocation_params.dir
    alone = any(".py" in arg or (start / arg).resolve().is_relative_to(BENCH) for arg in config.args)
    return 0 if alone or config.getoption("capture") == "no" else min(len(os.sched_getaffinity(0)), MOST)
