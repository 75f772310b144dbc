"""How long a fresh process takes: imports, each command's --help, and its first training step beside the peers'.

By the time the clock runs, packages are bytecode and what ours compiles for the CPU is on the disk, as after a first
run.
"""

import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import OURS
from bench.steps import DEVICE, PLACEMENT
from bench.timing import Call
from bench.turns import Row, Timed, in_turn

ROOT = Path(__file__).parents[1]
COMMANDS = [
    *(f"engine.{verb}" for verb in ("train", "evaluate", "ablate", "report", "export", "infer")),
    *("pipelines.preview", "pipelines.pack", "kernels.compile"),
    *(f"bench.{name}" for name in ("cold_start", "scale", "speedrun", "summary", "traffic", "tune")),
]
PROCESSES = {
    "python": ("-c", "pass"),
    "import engine": ("-c", "import engine"),
    "import torch": ("-c", "import torch"),
    **{f"{name} --help": ("-m", name, "--help") for name in COMMANDS},
}
# Whose network takes the step, and the packages that it needs.
NETWORKS: dict[str, tuple[str, ...]] = {
    OURS: (),
    "plain": (),
    "facenet-pytorch": ("facenet_pytorch", "requests"),
    "timm inception_resnet_v2": ("timm",),
}
WAIT = "; import torch; torch.cuda.synchronize()" if DEVICE == "cuda" else ""
NOT_QUICK = "not in the quick form"


def process(*arguments: str) -> Call:
    """Runs Python once."""
    return partial(subprocess.run, [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def processes(quick: bool) -> Timed:
    def make(what: str) -> Call:
        if quick and what.endswith("--help") and "engine.train" not in what:
            pytest.skip(NOT_QUICK)
        return process(*PROCESSES[what])

    return in_turn({what: partial(make, what) for what in PROCESSES}, 1 if quick else 5, warm=0)


@pytest.mark.parametrize("what", PROCESSES)
def test_process(row: Row, processes: Timed, what: str) -> None:
    row(processes, what, "a process from its start to its end")


@pytest.fixture(scope="module")
def first_steps(quick: bool) -> Timed:
    def make(name: str) -> Call:
        if quick and name not in (OURS, "plain"):
            pytest.skip(NOT_QUICK)
        for package in NETWORKS[name]:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        if name == OURS:
            return process("-c", f"from bench.steps import our_step; our_step(96, 4)(){WAIT}")
        step = f"peer_step(PEERS[{name!r}], 96, 4, {DEVICE!r}, {PLACEMENT.amp})"
        return process("-c", f"import torch; from bench.peers import PEERS, peer_step; {step}(){WAIT}")

    return in_turn({name: partial(make, name) for name in NETWORKS}, 1 if quick else 5, warm=0)


@pytest.mark.parametrize("provider", NETWORKS)
def test_first_step(row: Row, first_steps: Timed, provider: str) -> None:
    row(first_steps, provider, "a process to the end of its first training step, 96×96, batch 4")
