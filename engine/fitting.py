"""A batch that fits: no larger than an epoch, and the largest that memory has room for, found by trying."""

import gc
import resource
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.config import Config
from engine.device import Placement
from engine.model import InceptionResNetV1
from engine.step import WARM_UP, Step
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.memory import free_memory
from pipelines.progress import say
from pipelines.sampling import epoch_rows

SMALLEST = 2
SPARE = 0.1  # of the memory, for the pipeline and what is saved
# What the allocator of the CPU, CUDA and Triton, cuDNN and cuBLAS say.
NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def fitting_batch(config: Config, dataset: Dataset) -> Config:
    """The configuration with a batch no larger than an epoch.

    Raises:
        InputError: an epoch has fewer than two pictures.
    """
    targets = dataset.targets[dataset.splits["train"]]
    rows = len(epoch_rows(targets, config.sampling, config.seed, 0, config.oversample_target))
    if rows < 2:
        raise InputError(f"{dataset.root}: {rows} training pictures are too few")
    if rows < config.batch_size:
        say(f"batch size {rows}, since an epoch has no more pictures")
        return replace(config, batch_size=rows)
    return config


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the system, had no more."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def largest_batch(config: Config, placement: Placement, labels: int, most: int) -> int:
    """Pictures of the largest batch, `most` at most, whose steps fit: a multiple of 8 from 8 on.

    Raises:
        InputError: not even the smallest fits.
    """
    fits = _on_gpu if placement.device.type == "cuda" else _on_cpu()
    found, failed = 0, most + 1
    batch = min(most, 8)
    while batch > found:
        if fits(config, placement, labels, batch):
            found = batch
            batch = min(most, 2 * batch if failed > most else (batch + failed) // 2 // 8 * 8)
        else:
            failed = batch
            batch = (found + failed) // 2 // 8 * 8 if found else (batch // 2 if batch > SMALLEST else 0)
    if not found:
        raise InputError(
            f"out of memory: not even {SMALLEST} pictures of {config.image_size}×{config.image_size} fit; "
            "a smaller --image-size or --width needs less"
        )
    return found


def take_steps(config: Config, placement: Placement, labels: int, batch: int) -> None:
    """As many on pictures of the full size as it takes until nothing new is allocated, recording included."""
    model = InceptionResNetV1(labels, config.width, config.dropout, config.block8).train()
    model.to(device=placement.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = Step(config, placement, model, None)
    shape = (batch, 3, config.image_size, config.image_size)
    images = torch.zeros(shape, dtype=placement.amp, device=placement.device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros((batch, labels), dtype=torch.bool, device=placement.device)
    for _ in range(WARM_UP + 2 if placement.recorded else 2):
        step.add_gradient(images, targets)
        step.update(0.0)


def _on_gpu(config: Config, placement: Placement, labels: int, batch: int) -> bool:
    device = placement.device
    gc.collect()  # a step that did not fit holds its memory in a circle
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1 - SPARE, device)
    try:
        take_steps(config, placement, labels, batch)
        torch.cuda.synchronize(device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        gc.collect()
        torch.cuda.empty_cache()
    return True


def _on_cpu() -> Callable[[Config, Placement, int, int], bool]:
    """The system kills whoever takes too much: each trial is foretold from what those before took."""
    peaks: list[tuple[int, int]] = []  # batch, bytes
    limit = _taken() + (1 - SPARE) * free_memory()

    def fits(config: Config, placement: Placement, labels: int, batch: int) -> bool:
        if len(peaks) > 1:
            (before, less), (last, more) = peaks[-2:]
            if more + (more - less) / (last - before) * (batch - last) > limit:
                return False
        try:
            take_steps(config, placement, labels, batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        peaks.append((batch, _taken()))
        return True

    return fits


def _taken() -> int:
    """Bytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
