"""bench/gpu.sh, which no machine without a GPU runs: that it would start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_dry_run_starts_every_part() -> None:
    """Every test is collected and every command knows its name; nothing is written."""
    done = run("--dry-run", "/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not start" not in done.stdout
    assert "step: pytest bench/test_step.py --benchmark-only" in done.stdout
    assert "train: engine.train" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would run for minutes")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(str(tmp_path / "results"))
    assert done.returncode == 2
    assert done.stderr == "bench/gpu.sh: torch finds no GPU; --dry-run needs none\n"
    assert not (tmp_path / "results").exists()
