"""A training step of ours beside the same network as others have it: forward, loss, backward, optimizer.

320×320, 20 labels, fused Adam; batch 32 on a GPU, 8 on the CPU. `extra_info` has the peak of memory above what the
network and the optimizer hold, and for ours how many times as long each peer takes, all taken in turn.
"""

import ctypes
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.plain import PlainInceptionResNetV1
from bench.timing import clock
from engine.config import resolve
from engine.device import decide
from engine.memory import keep_freed_memory
from engine.model import InceptionResNetV1
from engine.step import Step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, SIZE, LABELS = 32 if DEVICE == "cuda" else 8, 320, 20
PAIRS = 7

Call = Callable[[], object]


def facenet() -> nn.Module:
    module = pytest.importorskip("facenet_pytorch", reason="facenet-pytorch is a peer that is not installed")
    network: nn.Module = module.InceptionResnetV1(classify=True, num_classes=LABELS)
    return network


def timm() -> nn.Module:
    """The second version of the network: the nearest that timm has, with 54 million parameters."""
    module = pytest.importorskip("timm", reason="timm is a peer that is not installed")
    network: nn.Module = module.create_model("inception_resnet_v2", num_classes=LABELS)
    return network


def compiled(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Under torch.compile with its own CUDA graphs."""
    return lambda: torch.compile(make().to(memory_format=torch.channels_last), mode="reduce-overhead", dynamic=False)  # type: ignore[return-value]


PEERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "ours": (lambda: InceptionResNetV1(LABELS, dropout=0.0), True),  # engine.step, as it trains
    "plain, float32": (lambda: PlainInceptionResNetV1(LABELS), False),
    "plain, amp, channels-last": (lambda: PlainInceptionResNetV1(LABELS), True),
    "facenet-pytorch, amp, channels-last": (facenet, True),
    "timm inception_resnet_v2, amp, channels-last": (timm, True),
}
# Last, and on a GPU alone: on the CPU torch.compile wins little, and takes minutes.
COMPILED: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "plain, amp, channels-last, torch.compile": (compiled(lambda: PlainInceptionResNetV1(LABELS)), True),
    "facenet-pytorch, amp, channels-last, torch.compile": (compiled(facenet), True),
}
if DEVICE == "cuda":
    PEERS |= COMPILED


@cache
def step_of(name: str) -> Call:
    """A step; `amp` brings channels-last with it, as in training, and is float32 where that is what is faster."""
    torch.manual_seed(0)
    make, amp = PEERS[name]
    layout = torch.channels_last if amp else torch.contiguous_format
    arithmetic = decide("auto", amp, "auto")
    model = make().train().to(device=DEVICE, memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=DEVICE).contiguous(memory_format=layout)
    targets = (torch.rand(BATCH, LABELS, device=DEVICE) < 0.1).float()
    if name == "ours":
        ours, positives = Step(resolve("paper", {}), decide("auto", True, "auto"), model, None), targets.bool()

        def our_step() -> None:
            ours.add_gradient(images, positives)
            ours.update(0.001)

        return our_step
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        with arithmetic.autocast():
            logits = model(images)
        torch.autograd.backward(binary_cross_entropy_with_logits(logits.float(), targets))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peak_bytes(step: Call) -> int:
    """The most memory that a step takes beside what is there before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.mark.parametrize("name", PEERS)
def test_step(benchmark: Any, name: str) -> None:
    if DEVICE == "cpu":
        keep_freed_memory()  # as training does; the peers gain by it too
    step = step_of(name)
    step()
    benchmark.group = f"training step, {SIZE}×{SIZE}, batch {BATCH}, {DEVICE}"
    benchmark._timer = clock(DEVICE)
    benchmark.extra_info["peak_bytes"] = peak_bytes(step)
    step()
    benchmark.pedantic(step, rounds=PAIRS, iterations=1)
    if name == "ours":
        benchmark.extra_info["times_as_long"] = in_turn(step)


def in_turn(ours: Call) -> dict[str, float]:
    """Median of how many times as long as ours each installed peer takes.

    Not the compiled ones: the CUDA graphs of torch.compile free a workspace that a graph recorded before still uses.
    """
    others: dict[str, Call] = {}
    for name in PEERS:
        if name in COMPILED:
            continue
        try:
            others[name] = ours if name == "ours" else step_of(name)
        except pytest.skip.Exception:
            continue
    seconds: dict[str, list[float]] = {name: [] for name in others}
    now = clock(DEVICE)
    for turn in range(PAIRS + 1):
        for name, step in others.items():
            began = now()
            step()
            if turn:  # the first warms up
                seconds[name].append(now() - began)
    return {
        name: round(statistics.median(b / a for a, b in zip(seconds["ours"], taken, strict=True)), 3)
        for name, taken in seconds.items()
        if name != "ours"
    }
