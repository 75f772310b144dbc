"""What goes wrong on machines that run for days, done to training: nothing is lost, and it is told.

The short form is part of every run of the tests; `pytest -m slow tests/faults` is the long one, whose figures are in
docs/reliability.md.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.run import Run
from pipelines.dataset import Dataset
from pipelines.read import read_dataset
from tests.conftest import picture
from tests.runs import PATIENCE, ended, finish, said, start

TIMES = {"seconds", "images_per_s", "data_wait_fraction"}
SAVING = {"checkpoint_steps": 1}  # most of the time a checkpoint is being written

KILLS = [3, pytest.param(50, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    names = []
    for i in range(24):
        picture(i).save(root / "images" / f"{i}.jpg")
        names.append(f"{i}.jpg,{'cat' if i % 2 else 'dog'}{' bird' if i % 3 == 0 else ''}")
    (root / "train.csv").write_text("\n".join(["image,labels", *names]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYLABEL_CACHE", str(root / "cache"))
        return read_dataset(root, val_fraction=0.25)


def task_of(dataset: Dataset, folder: Path, ranks: int = 1, **options: Any) -> Any:
    import training_child  # type: ignore[import-not-found]

    changes: dict[str, Any] = {**SAVING, "sampling": "uniform"}
    if ranks > 1:
        changes |= {"sync_norm": True, "picture_sizes": "growing", "image_size": 96}
    return training_child.Task(dataset, folder, {**changes, **options.pop("changes", {})}, ranks, **options)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights, and all else that does not depend on the time it took."""
    run = Run(folder)
    state = load_checkpoint(run.last)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in run.metric_lines()]
    best = load_checkpoint(run.best)["model"]
    weights = {**state["model"], **{f"best {name}": t for name, t in best.items()}}
    return weights, (lines, json.loads(run.report.read_text()), json.loads(run.thresholds.read_text()))


def require_same(folder: Path, undisturbed: Path) -> None:
    (weights, rest), (due, rest_due) = outcome(folder), outcome(undisturbed)
    assert weights.keys() == due.keys()
    assert all(torch.equal(weights[name], due[name]) for name in due)
    assert rest == rest_due


@pytest.fixture(scope="module")
def undisturbed(
    children: ForkServerContext, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[Path, float]]:
    """The folder of a run by so many ranks that nothing happened to, and the seconds it took."""
    runs: dict[int, tuple[Path, float]] = {}

    def of(ranks: int) -> tuple[Path, float]:
        if ranks not in runs:
            folder = tmp_path_factory.mktemp(f"undisturbed-{ranks}")
            began = time.monotonic()
            finish(children, task_of(dataset, folder, ranks))
            runs[ranks] = folder, time.monotonic() - began
        return runs[ranks]

    return of


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_random_moments(
    children: ForkServerContext,
    dataset: Dataset,
    tmp_path: Path,
    undisturbed: Callable[[int], tuple[Path, float]],
    kills: int,
) -> None:
    """SIGKILL, most of the time while a checkpoint is being written. Runs are killed until one gets through; it ends as
    if nothing had been."""
    due, seconds = undisturbed(1)
    chance, killed, runs = random.Random(kills), 0, 0
    while killed < kills:
        task = task_of(dataset, tmp_path / str(runs))
        runs += 1
        while True:
            (process,) = start(children, task)
            if killed < kills:
                process.join(chance.uniform(0, seconds))
                process.kill()
            process.join(PATIENCE)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, said(task)
            killed += 1
            print(f"{killed} killed", flush=True)
        require_same(task.folder, due)
        assert not list(task.folder.rglob(".*.tmp"))
    print(f"{killed} kills, {runs} runs")


@pytest.mark.slow
def test_told_to_stop(
    children: ForkServerContext, dataset: Dataset, tmp_path: Path, undisturbed: Callable[[int], tuple[Path, float]]
) -> None:
    """SIGTERM to both of two ranks at different moments: they save together and leave with its status."""
    due, _ = undisturbed(2)
    task = task_of(dataset, tmp_path, 2)
    processes = start(children, task)
    _wait_for(Run(tmp_path).last, processes[0])
    for process in processes:
        process.terminate()
    assert 143 in ended(processes), said(task)
    assert all(status in (143, 130) for status in ended(processes))
    finish(children, task)
    require_same(tmp_path, due)


def _wait_for(path: Path, process: BaseProcess) -> None:
    """Until it is there, while a process lives."""
    while not path.exists():
        process.join(0.01)
        assert process.exitcode is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up(
    children: ForkServerContext,
    dataset: Dataset,
    tmp_path: Path,
    small_disk: Path,
    undisturbed: Callable[[int], tuple[Path, float]],
) -> None:
    """Training goes on and says it at each checkpoint, which is whole from before; with room again, nothing is
    missing."""
    due, _ = undisturbed(1)
    task = task_of(dataset, small_disk / "run", said=tmp_path)
    ballast = small_disk / "ballast"
    (process,) = start(children, task)
    _wait_for(Run(task.folder).last, process)
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    assert ended([process]) == [2]
    lines = said(task)
    assert len(re.findall(r"cannot be written: .*; training goes on", lines)) >= 3
    assert "epoch 2/2" in lines
    assert lines.splitlines()[-1].startswith("error: ")
    assert load_checkpoint(Run(task.folder).last)["progress"]["epoch"] == 0
    ballast.unlink()
    finish(children, task)
    require_same(task.folder, due)


def test_a_damaged_checkpoint(
    children: ForkServerContext, dataset: Dataset, tmp_path: Path, undisturbed: Callable[[int], tuple[Path, float]]
) -> None:
    """The one before is taken, and the run ends as it would have. What 200 mutations do to a checkpoint is in
    tests/engine/test_checkpoint.py."""
    due, _ = undisturbed(1)
    task = task_of(dataset, tmp_path)
    (process,) = start(children, task)
    _wait_for(Run(tmp_path).previous, process)
    process.terminate()  # saves and leaves; killed between two renames it would have left no newest one to damage
    process.join()
    content = bytearray(Run(tmp_path).last.read_bytes())
    content[len(content) // 2] ^= 4
    Run(tmp_path).last.write_bytes(content)
    finish(children, task)
    assert said(task).count("the one before it, previous.pt, is taken") == 1
    require_same(tmp_path, due)


@pytest.mark.parametrize("fault", ["dies", "stands"])
def test_one_of_two_ranks(
    children: ForkServerContext,
    dataset: Dataset,
    tmp_path: Path,
    undisturbed: Callable[[int], tuple[Path, float]],
    fault: str,
) -> None:
    """Killed, the other one ends with a line; stopped, it says after a stated time where it waits, and ends too.
    Started again they end as an undisturbed pair."""
    due, _ = undisturbed(2)
    task = task_of(dataset, tmp_path, 2, seconds=60.0 if fault == "dies" else 8.0, **{fault: (1, 6)})
    first, second = start(children, task)
    assert ended([first]) == [2], said(task)
    second.kill()
    second.join()
    lines = said(task).splitlines()
    assert lines[-1].startswith("error: rank 0: another process is gone or stands still")
    if fault == "stands":
        assert any("rank 0: no progress for" in line and "step 3 of epoch 2" in line for line in lines), lines
    finish(children, task_of(dataset, tmp_path, 2))
    require_same(tmp_path, due)


def test_pictures_that_are_no_numbers(children: ForkServerContext, dataset: Dataset, tmp_path: Path) -> None:
    """Steps with them are skipped, counted and named; the network that comes out is made of numbers."""
    row = int(dataset.splits["train"][3])
    task = task_of(dataset, tmp_path, poisoned=(row,))
    finish(children, task)
    lines = [line for line in said(task).splitlines() if "was skipped: its loss is not a number" in line]
    assert len(lines) == 2
    assert all(f"{row} ({dataset.files[row]})" in line for line in lines)
    weights, _ = outcome(tmp_path)
    assert all(torch.isfinite(t).all() for t in weights.values())


@pytest.mark.slow
def test_nothing_but_pictures_that_are_no_numbers(
    children: ForkServerContext, dataset: Dataset, tmp_path: Path
) -> None:
    """Ten skipped steps in a row end the run; the checkpoint from before is whole and good."""
    finish(children, task_of(dataset, tmp_path, changes={"epochs": 1}))
    before = load_checkpoint(Run(tmp_path).last)["model"]
    rows = tuple(dataset.splits["train"].tolist())
    task = task_of(dataset, tmp_path, changes={"epochs": 9}, poisoned=rows)
    assert ended(start(children, task)) == [2]
    assert "is not a number after epoch 2" in said(task) or "10 of them in a row" in said(task)
    after = load_checkpoint(Run(tmp_path).last)["model"]
    learnt = [name for name in before if "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in learnt)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_torchrun_starts_again(dataset: Dataset, tmp_path: Path, kills: int) -> None:
    """Workers killed with SIGKILL: torchrun starts all anew, who go on from the last checkpoint."""
    folders = []
    for number in (0, kills):
        out = tmp_path / str(number)
        folders.append(out)
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "4"]
        line += ["--monitor-interval", "0.5", "-m", "engine.train", "--data", str(dataset.root), "--preset", "demo"]
        line += ["--width", "0.125", "--image-size", "75", "--batch-size", "4", "--epochs", "3", "--sync-norm"]
        line += ["--checkpoint-steps", "1", "--no-augment", "--sampling", "uniform", "--out", str(out)]
        process = subprocess.Popen(line, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
        known: set[int] = set()
        for _ in range(number):
            workers = _new_workers(process, known)
            known |= set(workers)
            _wait_for_change(Run(out).last, process)
            os.kill(random.Random(number).choice(workers), signal.SIGKILL)
        said, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, said
        assert said.count("this run has begun there; it goes on") == number
    require_same(folders[1], folders[0])
    shutil.rmtree(tmp_path)


def _wait_for_change(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there that was not when this was asked."""

    def inode() -> int | None:
        try:
            return path.stat().st_ino
        except FileNotFoundError:
            return None

    before = inode()
    while inode() in (None, before):
        _go_on(process)


def _new_workers(agent: subprocess.Popen[str], known: set[int]) -> list[int]:
    """Both workers, when torchrun has started those that come after the known ones."""
    while len(workers := set(_workers(agent.pid)) - known) < 2:
        _go_on(agent)
    return sorted(workers)


def _go_on(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.02)
    assert process.returncode is None


def _workers(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children if b"engine.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
