"""`python -m bench.tune`: which tile sizes, warps and stages of the Triton kernels are the fastest on the GPU at hand.

One training step says which shapes each kernel sees and how often. Each row of kernels.tuning is then tried with every
candidate at these shapes, replayed from CUDA graphs, and the sum over a step is what counts. A map that fits the L2
cache is found there, as in a step, where the layer before has just written it. What is best goes into kernels.tuning by
hand, with its reason.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from engine import command
from pipelines.errors import InputError

if TYPE_CHECKING:
    from bench.candidates import Row, Shape
    from kernels.tuning import Launch

CALLS, REPLAYS = 10, 5


@dataclass(frozen=True, slots=True)
class Arguments:
    """Times every candidate for the launches of the Triton kernels, in bfloat16, on this GPU.

    Attributes:
        batch, size: of the pictures.
        rows: of kernels.tuning to time; all if none is given.
        json: writes all times to this file.
    """

    batch: int = 32
    size: int = 320
    rows: tuple[str, ...] = ()
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def compile_only(job: "tuple[str, Launch, list[Shape]]") -> None:
    """Fills Triton's cache."""
    import torch

    from bench.candidates import ROWS, tried

    name, launch, shapes = job
    with torch.no_grad(), tried(ROWS[name], name, launch):
        for shape in shapes:
            try:
                for call in ROWS[name].calls(shape):
                    call()
            except Exception:  # said where it is timed
                return


def milliseconds(row: "Row", name: str, launch: "Launch", shape: "Shape") -> float:
    """Of one call of each function."""
    from bench.candidates import DEVICE, tried
    from bench.timing import clock, replay_of

    with tried(row, name, launch):
        functions = row.calls(shape)
        replay = replay_of(lambda: [function() for _ in range(CALLS) for function in functions])
        now, times = clock(DEVICE), []
        for _ in range(REPLAYS):
            began = now()
            replay()
            times.append(now() - began)
    return min(times) / CALLS * 1e3


def main() -> int:
    """Parses the command line and prints the figures; the exit status."""
    given = command.parse(Arguments, "python -m bench.tune")
    import torch

    from bench.candidates import ROWS, shapes_of_step

    if not torch.cuda.is_available():
        raise InputError("there is no GPU to tune on")
    wrong = [name for name in given.rows if name not in ROWS]
    if wrong:
        raise InputError(f"--rows takes {', '.join(ROWS)}")
    seen = shapes_of_step(given.batch, given.size)
    rows = {name: ROWS[name] for name in given.rows or ROWS}
    own = {name: [s for s in seen if row.takes(s)] for name, row in rows.items()}
    jobs = [(name, launch, own[name]) for name, row in rows.items() for launch in row.candidates]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        list(pool.map(compile_only, jobs))
    torch.set_grad_enabled(False)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        current = getattr(row.module, name)
        found = []
        for launch in (current, *row.candidates):
            try:
                each = {str(s): milliseconds(row, name, launch, s) for s in own[name]}
            except Exception as error:  # too much shared memory, say
                print(f"{name} {launch.blocks} {launch.warps} {launch.stages}: {str(error).splitlines()[0][:100]}")
                continue
            total = sum(each[str(s)] * seen[s] for s in own[name])
            figures = {"blocks": launch.blocks, "warps": launch.warps, "stages": launch.stages}
            found.append(figures | {"ms": total, "each": each})
        results[name] = [found[0], *sorted(found[1:], key=lambda f: f["ms"])]
        print(f"{name}: {found[0]['ms']:.3f} ms a step now; best:")
        for best in results[name][1:4]:
            print(
                f"  {best['ms']:.3f} ms  {best['blocks']}, {best['warps']} warps, {best['stages']} stages", flush=True
            )
    if given.json is not None:
        shapes = {str(s): count for s, count in seen.items()}
        content = {"gpu": torch.cuda.get_device_name(), "shapes": shapes, "rows": results}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.main(main)
