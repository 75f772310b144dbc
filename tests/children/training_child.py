"""What tests let processes of their own do. Started by a server that has imported all this once (tests/conftest.py)."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

# So that they are there when the server forks: what is imported late elsewhere.
import torch._dynamo  # isort: skip
import torch.utils.tensorboard  # isort: skip
from engine import trainer
from engine.answers import Stopped
from engine.command import Interrupt, main
from engine.config import resolve
from engine.device import decide
from engine.ranks import joined
from engine.run import Run, write_json
from engine.trainer import Trainer
from engine.watchdog import Watchdog
from pipelines.dataset import Dataset
from pipelines.loader import Batch, PictureStream

TINY = {"image_size": 75, "width": 0.125, "batch_size": 4, "epochs": 2, "device": "cpu", "augment": False}


@dataclass(frozen=True)
class Task:
    """A run, and what happens to it.

    Attributes:
        dataset, folder: of the run.
        changes: of the configuration.
        ranks: processes.
        seconds: that one waits for another.
        poisoned: rows whose pictures are not numbers.
        dies: rank and step; it kills itself there, once.
        stands: rank and step; it stops there as by SIGSTOP.
        losses: whether each rank keeps the losses of its steps, as losses-RANK.npy.
        said: folder for what each rank says; by default the run's.
    """

    dataset: Dataset
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1
    seconds: float = 60.0
    poisoned: tuple[int, ...] = ()
    dies: tuple[int, int] | None = None
    stands: tuple[int, int] | None = None
    losses: bool = False
    said: Path | None = None


def train(task: Task, rank: int) -> None:
    """Trains or goes on, as engine.train does, and leaves with its exit status; what is said is in said-RANK.txt."""
    said = os.open((task.said or task.folder) / f"said-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    if task.ranks > 1:
        store = (task.folder / "port").read_text()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=store, RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(WORLD_SIZE=str(task.ranks), LOCAL_WORLD_SIZE=str(task.ranks))
    main(lambda: _train(task, rank))


def _train(task: Task, rank: int) -> int:
    trainer.write_page = lambda *_: None  # type: ignore[assignment] # seconds that no fault is waiting for
    config = resolve("demo", {**TINY, **task.changes})
    run = Run(task.folder)
    name = f"rank {rank}: "
    with joined(1.2 * task.seconds) as ranks, Watchdog(task.seconds, name) as watchdog, Interrupt() as interrupt:
        if ranks.first:
            run.create()
            if not run.config.exists():
                write_json(run.config, config.values())
        made = Trainer(config, task.dataset, decide("cpu", False, "off"), run, interrupt, ranks, watchdog)
        made.restore()
        _disturb(made, task, rank)
        losses = []
        add = made.add_gradient

        def add_and_keep(*given: Any) -> torch.Tensor:
            loss = add(*given)
            losses.append(loss.item())
            return loss

        if task.losses:
            made.add_gradient = add_and_keep  # type: ignore[method-assign]
        try:
            made.fit()
        except Stopped:
            ranks.gather(None)
            return interrupt.status
        if task.losses:
            np.save(task.folder / f"losses-{rank}.npy", np.array(losses))
    return 0


def _disturb(made: Trainer, task: Task, rank: int) -> None:
    """Puts the faults of the task into the stream of pictures."""
    stream, mark = made.stream, task.folder / "died"

    def disturbed(size: int | None = None, end: int | None = None) -> PictureStream:
        source = stream(size, end)
        own: Callable[..., Any] = source.batches

        def batches(start: int = 0) -> Any:
            for number, batch in enumerate(own(start), start):
                if (rank, number) == task.dies and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if (rank, number) == task.stands and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGSTOP)
                bad = np.isin(batch.rows.numpy(), task.poisoned)
                if bad.any():
                    images = batch.images.clone()
                    images[torch.from_numpy(bad)] = float("nan")
                    batch = Batch(images, batch.rows)
                yield batch

        source.batches = batches  # type: ignore[method-assign]
        return source

    made.stream = disturbed  # type: ignore[method-assign]
