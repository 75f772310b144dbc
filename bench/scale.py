"""`python -m bench.scale`: how training would scale to 1,024 GPUs, by a cost model and a simulation of its steps.

With --check it measures processes on this machine's CPU beside what the model says of them (bench.scale_check). The
model and its sources are in docs/scale.md. What is not measured is called modelled.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from engine import command
from pipelines.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Arguments:
    """Prints a table of training on 1 to 1,024 GPUs, modelled.

    Attributes:
        check: measures 1, 2 and 4 processes on this machine's CPU instead, beside the model's figures.
        out: draws efficiency against the number of GPUs, too.
    """

    check: bool = False
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None


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
    weights: float = 4 * 21.0e6
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


def draw(machine: Machine) -> "Figure":
    """Efficiency against the number of GPUs, for several shares a GPU."""
    from matplotlib.figure import Figure

    from engine.run_figures import COLOURS

    counts = [2**i for i in range(11)]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for share, colour in zip((8, 32, 128), COLOURS, strict=False):
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
    return figure


def main() -> int:
    """Parses the command line and prints the table; the exit status."""
    given = command.parse(Arguments, "python -m bench.scale")
    if given.out is not None and given.out.suffix != ".png":
        raise InputError(f"--out {given.out}: the file's name must end in .png")
    if given.check:
        from bench.scale_check import check

        print(check())
    else:
        print(table(H200))
    if given.out is not None:
        from engine.run_figures import save

        save(draw(H200), given.out)
    return command.OK


if __name__ == "__main__":
    command.main(main)
