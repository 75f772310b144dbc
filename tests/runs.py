"""Training in processes of their own, for tests that do something to these."""

import socket
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

PATIENCE = 240  # seconds; nothing waits for as long that has not failed


def start(children: ForkServerContext, task: Any) -> Sequence[BaseProcess]:
    """A process a rank; `task` is a training_child.Task."""
    import training_child  # type: ignore[import-not-found]

    task.folder.mkdir(exist_ok=True)
    if task.ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            (task.folder / "port").write_text(str(free.getsockname()[1]))
    processes = [children.Process(target=training_child.train, args=(task, rank)) for rank in range(task.ranks)]
    for process in processes:
        process.start()
    return processes


def said(task: Any, rank: int = 0) -> str:
    """What a rank said so far, all starts together."""
    path = (task.said or task.folder) / f"said-{rank}.txt"
    return path.read_text() if path.exists() else ""


def ended(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Exit statuses."""
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def finish(children: ForkServerContext, task: Any) -> None:
    """Trains to the end, undisturbed."""
    statuses = ended(start(children, task))
    assert statuses == [0] * task.ranks, said(task)
