"""The processes of one training run, as torchrun starts them, and what they tell each other outside a step."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.errors import InputError

if TYPE_CHECKING:
    import torch.distributed as dist

STALLED = 600.0  # seconds without progress after which it is said where, and then given up

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: its number among all.
        count: how many there are.
        local, beside: its number among those on this machine, and how many these are.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """For collective operations within a step; None of one alone."""
        if self.count == 1:
            return None
        import torch.distributed as dist

        return dist.group.WORLD

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and speaks."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Its share of `total` things: all ranks' lie side by side, and differ by one at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gather(self, told: Told) -> list[Told]:
        """What each rank tells, in their order; every rank has to call it."""
        if self.count == 1:
            return [told]
        import torch.distributed as dist

        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, told)
        return answers

    def from_first(self, find: Callable[[], Told]) -> Told:
        """What the first rank finds, on all; every rank has to call it.

        Raises:
            InputError: on all, what the first rank raised.
        """
        if self.count == 1:
            return find()
        import torch.distributed as dist

        found: list[Any] = [None, None]
        if self.first:
            try:
                found[0] = find()
            except InputError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise InputError(found[1])
        answer: Told = found[0]
        return answer


ALONE = Ranks()


def started_by_torchrun() -> bool:
    """Whether there is one who starts the same command again when a process dies."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined(seconds: float) -> Iterator[Ranks]:
    """The processes that torchrun started, connected while the context lasts; without torchrun, this one alone.

    NCCL connects GPUs, gloo connects CPUs and carries what is in their memory. The others say nothing: their console
    is silent.

    Args:
        seconds: that one waits for another before it gives up with an error.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from engine.rendezvous import store_of_this_start
    from pipelines.progress import console

    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= ranks.beside
    if cuda:
        torch.cuda.set_device(ranks.local)
    timeout = timedelta(seconds=seconds)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        store = store_of_this_start(store, ranks.rank, count, seconds)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=count, timeout=timeout)
    except RuntimeError as error:
        raise InputError(f"rank {ranks.rank}: the other processes cannot be reached: {first_line(error)}") from None
    console.quiet = not ranks.first
    try:
        yield ranks
        dist.destroy_process_group()
    except RuntimeError as error:
        # gloo and NCCL have no class of errors of their own for a process that is gone.
        if not lost(error):
            raise
        raise InputError(f"rank {ranks.rank}: another process is gone or stands still: {first_line(error)}") from None
    finally:
        console.quiet = False


def lost(error: RuntimeError) -> bool:
    """Whether it is a collective operation that failed."""
    import torch.distributed as dist

    said = str(error).lower()
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "socket", "peer")
    return isinstance(error, dist.DistError) or any(word in said for word in words)


def first_line(error: BaseException) -> str:
    """What an error says, up to its end of line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
