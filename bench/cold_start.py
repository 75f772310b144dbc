"""`python -m bench.cold_start`: how long a training step takes to compile for a GPU, from empty caches and without one.

Ours launches kernels that Triton compiles at their first launch, a kernel once for all blocks of a kind, and is then
recorded in a CUDA graph. The plain network (bench.plain) goes through torch.compile: its graph is traced, its kernels
are generated and assembled, here with one choice of tile sizes each and without Dynamo, which both are in its favour.
Both work in one process, one kernel after the other.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench.traffic import ARCHITECTURES
from engine import command
from pipelines.errors import InputError


@dataclass(frozen=True, slots=True)
class Arguments:
    """Times the compilation of a training step for a GPU that need not be there, ours and the plain network's.

    Attributes:
        batch: pictures.
        size: height and width of the pictures.
        width: factor on the network's channels.
        labels: of the data set.
        arch: compute capability to compile for, of 80, 90 and 100.
        json: writes the figures to this file too.
    """

    batch: int = 2
    size: int = 160
    width: float = 1.0
    labels: int = 20
    arch: int = 90
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def ours(given: Arguments) -> dict[str, float]:
    """Seconds, different kernels and launches of a step. It runs on the CPU but for what its kernels would compute."""
    import torch

    import kernels
    from bench import pretend
    from engine.model import InceptionResNetV1

    model = InceptionResNetV1(given.labels, given.width).train().to(memory_format=torch.channels_last)
    images = torch.randn(given.batch, 3, given.size, given.size).contiguous(memory_format=torch.channels_last)
    with pretend.launches(given.arch) as seen:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        torch.autograd.backward(kernels.sigmoid_bce(logits, torch.zeros(logits.shape)))
    return {"seconds": seen.seconds, "kernels": len(seen.kernels), "launches": seen.launched}


def plain(given: Arguments) -> dict[str, float]:
    """Seconds until the code is there and until it is assembled, and kernels."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    from bench.codegen import assemble, generate
    from bench.plain import PlainInceptionResNetV1

    model = PlainInceptionResNetV1(given.labels, given.width).train()
    began = time.perf_counter()
    step = generate(model, binary_cross_entropy_with_logits, given.batch, given.size, given.labels, given.arch)
    written = time.perf_counter()
    failed = assemble(step.sources, given.arch)
    done = time.perf_counter()
    assert not failed, failed
    return {"seconds": done - began, "generating": written - began, "kernels": len(step.sources)}


def main() -> int:
    """Parses the command line and prints the figures; the exit status."""
    given = command.parse(Arguments, "python -m bench.cold_start")
    if given.arch not in ARCHITECTURES:
        raise InputError(f"--arch takes {', '.join(map(str, ARCHITECTURES))}")
    found = {"ours": ours(given), "plain, torch.compile": plain(given)}
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in figures.items()))
    ratio = found["ours"]["seconds"] / found["plain, torch.compile"]["seconds"]
    print(f"ours / plain: {ratio:.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(found | {"ratio": ratio}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.main(main)
