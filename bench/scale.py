"""python -m bench.scale: how training would scale from 1 to 1,024 GPUs, by a cost model and a simulation of its steps.

python -m bench.scale --check measures 1, 2 and 4 processes on this machine's CPU beside what the model says of them.
The model and its sources are in docs/scale.md. What is not measured here is called modelled.
"""

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

STEPS, WARM = 12, 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run meets. Seconds, bytes, bytes a second.

    Attributes:
        fixed, picture: of a step that does not depend on the batch, and for each picture of a process's share.
        weights: bytes that processes sum at each update.
        beside: processes on one machine.
        inner, inner_wait: bandwidth between these, and what each of its messages takes beside.
        outer, outer_wait: the same for each process between machines.
        backward: share of the step in which gradients come, and may be summed meanwhile.
        cores, core_pictures: of the loader for each process, and pictures a second of one.
        stored, storage: bytes of a picture, and bandwidth of the storage that all machines share.
        jitter: standard deviation of a process's step, as a share of it.
        checkpoint_steps, disk: steps between checkpoints, and bandwidth of the first process's disk.
        copy: bandwidth of the copy that training waits for.
    """

    fixed: float = 1.9e-3
    picture: float = 0.254e-3
    weights: float = 4 * 22.8e6
    beside: int = 8
    inner: float = 360e9
    inner_wait: float = 5e-6
    outer: float = 45e9
    outer_wait: float = 12e-6
    backward: float = 0.6
    cores: int = 12
    core_pictures: float = 900.0
    stored: float = 50e3
    storage: float = 40e9
    jitter: float = 0.02
    checkpoint_steps: int = 500
    disk: float = 1e9
    copy: float = 1.3e12


H200 = Machine()


def all_reduce(machine: Machine, processes: int) -> float:
    """Seconds of one sum over all processes, within machines by rings, between them by a ring with a tree's latency.

    A ring moves 2 · (n - 1) / n of the bytes over each link (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", 2009). Between machines each process carries its part alone.
    """
    inside = min(processes, machine.beside)
    outside = math.ceil(processes / machine.beside)
    seconds = 2 * (inside - 1) / inside * machine.weights / machine.inner + 2 * (inside - 1) * machine.inner_wait
    if outside > 1:
        part = machine.weights / inside
        seconds += 2 * (outside - 1) / outside * part / machine.outer
        seconds += 2 * math.ceil(math.log2(outside)) * machine.outer_wait
    return seconds if processes > 1 else 0.0


def loader(machine: Machine, processes: int, share: float, decoded: bool) -> float:
    """Seconds a step that pictures take to come, behind the training; `decoded`: they are in memory."""
    pictures = share / (machine.cores * machine.core_pictures)
    return pictures if decoded else max(pictures, processes * share * machine.stored / machine.storage)


@dataclass(frozen=True, slots=True)
class Simulated:
    """Of many steps: seconds of one, and shares of it.

    Attributes:
        step: seconds.
        summing, waiting, saving: shares of it in which gradients are summed, pictures or the slowest process are waited
            for, and a checkpoint is copied or waited for.
    """

    step: float
    summing: float
    waiting: float
    saving: float


def simulate(machine: Machine, processes: int, share: float, overlapped: bool, decoded: bool = True) -> Simulated:
    """Steps one after the other: each process computes with jitter, all wait for the slowest and for pictures, which
    are made two batches ahead, then sum; a checkpoint is copied and written behind."""
    rng = np.random.default_rng(processes)
    compute = machine.fixed + share * machine.picture
    reduce, load = all_reduce(machine, processes), loader(machine, processes, share, decoded)
    exposed = max(reduce / 4, reduce - machine.backward * compute) if overlapped else reduce
    now = disk_free = saving = waiting = 0.0
    ready = [0.0, load]  # when the next batches are there
    steps = 2 * machine.checkpoint_steps
    for step in range(steps):
        slowest = compute * (1 + machine.jitter * rng.standard_normal(processes).max())
        began = max(now, ready.pop(0))
        ready.append(max(ready[-1], began) + load)
        waiting += began - now + slowest - compute
        now = began + slowest + exposed
        if (step + 1) % machine.checkpoint_steps == 0:
            state = 3 * machine.weights
            free = max(now, disk_free) + state / machine.copy
            disk_free, saving, now = free + state / machine.disk, saving + free - now, free
    return Simulated(now / steps, exposed * steps / now, waiting / now, saving / now)


def table(machine: Machine) -> str:
    """Rows for docs/scale.md: 32 pictures a GPU."""
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    lines = ["| GPUs | step, ms | summing, ms | pictures/s | efficiency | efficiency, overlapped | from storage |"]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    alone = simulate(machine, 1, 32, False).step
    for count in counts:
        plain, over = (simulate(machine, count, 32, overlapped) for overlapped in (False, True))
        cold = simulate(machine, count, 32, False, decoded=False)
        lines.append(
            f"| {count:,} | {1e3 * plain.step:.2f} | {1e3 * all_reduce(machine, count):.2f} "
            f"| {32 * count / plain.step:,.0f} | {alone / plain.step:.0%} | {alone / over.step:.0%} "
            f"| {alone / cold.step:.0%} |"
        )
    return "\n".join(lines)


def draw(machine: Machine, path: Path) -> None:
    """Efficiency against the number of GPUs, for several shares a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [2**i for i in range(11)]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for share, colour in ((8, "C0"), (32, "C1"), (128, "C2")):
        alone = simulate(machine, 1, share, False).step
        for overlapped, line in ((False, "-"), (True, ":")):
            values = [100 * alone / simulate(machine, count, share, overlapped).step for count in counts]
            name = f"{share} pictures a GPU{', overlapped' if overlapped else ''}"
            axes.plot(counts, values, line, color=colour, label=name)
    axes.set(xscale="log", xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 102), xticks=counts)
    axes.set_xticklabels([f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure 1, 2 and 4 processes on this machine's CPU")
    parser.add_argument("--out", type=Path, help="PNG file to draw")
    arguments = parser.parse_args()
    print(check() if arguments.check else table(H200))
    if arguments.out is not None:
        draw(H200, arguments.out)
