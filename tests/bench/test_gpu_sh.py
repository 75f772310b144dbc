"""bench/gpu.sh, which no machine without a GPU runs: that it would start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.dry_run import objection

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_dry_run_starts_every_part() -> None:
    """Every test is collected and every command takes its options; nothing is written."""
    done = run("--dry-run", "/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not start" not in done.stdout
    assert "step: pytest bench/test_step.py --benchmark-only" in done.stdout
    assert "train: engine.train" in done.stdout
    suites = sorted(path.stem.removeprefix("test_") for path in SCRIPT.parent.glob("test_*.py"))
    figures = next(line for line in done.stdout.splitlines() if line.startswith("figures: "))
    assert sorted(Path(word).stem for word in figures.split() if word.endswith(".json")) == suites


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("engine.train --no-such-option 1", "exit status 2, Unrecognized options: --no-such-option, 1 ("),
        ("engine.infer model.onnx photos --device tpu", "exit status 2"),
        ("engine.no_such_module", "ModuleNotFoundError: No module named 'engine.no_such_module'"),
        ("engine.train --epochs 3 --amp", None),
    ],
)
def test_a_part_that_would_not_start(command: str, why: str | None) -> None:
    """Lest the dry run passes whatever is in the script."""
    found = objection(command.split())
    assert found == why or (why is not None and found is not None and found.startswith(why))


def test_tests_that_are_not_there_would_not_start(tmp_path: Path) -> None:
    """In a process of its own: pytest within pytest is not made for it."""
    line = f"tests\tpytest\t{tmp_path / 'test_missing.py'}\n"
    command = [sys.executable, "-m", "bench.dry_run"]
    done = subprocess.run(command, input=line, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (1, "tests does not start")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would run for minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(str(tmp_path / "results"))
    assert done.returncode == 2
    assert done.stderr == "bench/gpu.sh: torch finds no GPU; --dry-run needs none\n"
    assert not (tmp_path / "results").exists()
