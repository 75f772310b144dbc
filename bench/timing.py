"""Clocks and inputs for timings that mean something: the device is waited for, and its caches hold nothing ready."""

import gc
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

Call = Callable[[], object]


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    event.synchronize()
    return event


class _CudaClock:
    """Adds up the times between readings: a single time since the start would soon be too coarse, being float32."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, _event()

    def __call__(self) -> float:
        now = _event()
        self.seconds += float(self.last.elapsed_time(now)) / 1e3
        self.last = now
        return self.seconds


@cache
def cuda_clock() -> Callable[[], float]:
    """Seconds by the GPU's own clock, at the end of all that was launched so far."""
    return _CudaClock()


def clock(device: str) -> Callable[[], float]:
    """The clock of a device."""
    return cuda_clock() if device == "cuda" else time.perf_counter


def replay_of(call: Call) -> Call:
    """The launches of a call, recorded as a CUDA graph: replayed, they do not wait for Python, as in training."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()  # what is freed while it is recorded would spoil it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    replay: Call = graph.replay
    return replay


def cache_bytes(device: str) -> int:
    """Size of the largest cache of the device."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(p.read_text().strip().rstrip("K")) << 10 for p in sizes), default=32 << 20)


def input_sets(make: Callable[[], list[Tensor]], size: int, device: str) -> list[list[Tensor]]:
    """Inputs of `size` bytes, to be taken in turn: enough to fill the cache twice, but 64 sets and 2 GB at most."""
    sets = max(2, min(2 * cache_bytes(device), 2 << 30) // max(1, size) + 1)
    return [make() for _ in range(min(sets, 64))]


@cache
def copy_bandwidth(device: str) -> float:
    """Bytes a second that a plain copy reads and writes on the device, the best of ten."""
    source = torch.ones(1 << 27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    now, seconds = clock(device), []
    for _ in range(10):
        began = now()
        target.copy_(source)
        seconds.append(now() - began)
    return 2 * source.numel() / min(seconds)
