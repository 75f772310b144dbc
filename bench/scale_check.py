"""Processes that train together on this machine's CPU, measured beside what the model of bench.scale says of them."""

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.scale import H200, all_reduce

STEPS, WARM = 12, 3


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians, in seconds, of the slowest process."""

    step: float
    compute: float
    reduce: float


def _process(rank: int, count: int, port: int, batch: int, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    from engine.config import resolve
    from engine.device import decide
    from engine.gradients import Summed
    from engine.model import InceptionResNetV1
    from engine.step import Step

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=count)
    group = dist.group.WORLD if count > 1 else None
    torch.manual_seed(0)
    model = InceptionResNetV1(16, 0.5).train().to(memory_format=torch.channels_last)
    share = batch // count
    step = Step(resolve("demo", {}), decide("cpu", False, "off"), model, None, group, share / batch)
    images = torch.rand(share, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(share, 16) < 0.2
    summed = None if group is None else Summed(step.parameters, group)

    def whole() -> None:
        step.add_gradient(images, targets)
        step.update(0.001)

    def compute() -> None:
        group, step.summed = step.summed, None
        whole()
        step.summed = group

    def reduce() -> None:
        if summed is not None:
            summed.of(summed.sums)

    found = []
    for call in (whole, compute, reduce):
        seconds = []
        for _ in range(WARM + STEPS):
            dist.barrier()
            began = time.perf_counter()
            call()
            dist.barrier()
            seconds.append(time.perf_counter() - began)
        found.append(statistics.median(seconds[WARM:]))
    if rank == 0:
        answers.put((found, 4.0 * sum(p.numel() for p in step.parameters)))
    dist.destroy_process_group()


def measure(count: int, batch: int) -> tuple[Measured, float]:
    """Processes of one thread each on this machine's CPU, and the bytes that they sum; width 0.5, 96×96."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_process, args=(r, count, port, batch, answers)) for r in range(count)]
    for process in processes:
        process.start()
    found, size = answers.get(timeout=600)
    for process in processes:
        process.join()
    return Measured(*found), size


def check() -> str:
    """Measured and modelled: the model knows one process at two batches and the sum of two processes, no more."""
    small, (large, size), (pair, _) = measure(1, 8)[0], measure(1, 16), measure(2, 16)
    cores = len(os.sched_getaffinity(0))
    picture = (large.compute - small.compute) / 8
    machine = replace(
        H200,
        fixed=large.compute - 16 * picture,
        picture=picture,
        weights=size,
        beside=64,
        inner=size / max(pair.reduce, 1e-9),
        inner_wait=0.0,
    )
    rows: Sequence[tuple[int, Measured]] = ((1, large), (2, pair), (4, measure(4, 16)[0]))
    lines = [
        "| processes | measured, ms | modelled, ms | of it the sum, measured | modelled |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, found in rows:
        crowd = max(1.0, count / cores)
        step = crowd * (machine.fixed + 16 / count * picture)
        reduce = crowd * all_reduce(machine, count)
        lines.append(
            f"| {count} | {1e3 * found.step:.0f} | {1e3 * (step + reduce):.0f} "
            f"| {1e3 * found.reduce:.1f} | {1e3 * reduce:.1f} |"
        )
    return "\n".join(lines)
