"""The device, decided once: everything below takes what is decided here."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from engine.config import Compile, Device
from kernels.bfloat16 import cpu_has_bfloat16
from pipelines.augment import PictureSpec, Pixel
from pipelines.errors import InputError

MOST_THREADS = 16  # of a pipeline whose pictures a GPU decodes and draws


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in which arithmetic a run computes.

    Attributes:
        device: of the network.
        amp: type of automatic mixed precision; None: float32.
        scaled: whether gradients need a scaler (float16).
        recorded: whether a step's launches are recorded once and replayed (engine.recorded).
        notes: what was decided against expectation, a line each.
    """

    device: torch.device
    amp: torch.dtype | None
    scaled: bool
    recorded: bool
    notes: tuple[str, ...]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def spec(self, size: int) -> PictureSpec:
        """What the pipeline shall hand over."""
        placement: Literal["cpu", "gpu"] = "gpu" if self.device.type == "cuda" else "cpu"
        threads = max(1, torch.get_num_threads())  # on the CPU, as many as training itself takes
        if placement == "gpu":
            threads = threads_beside_gpu()
        dtype: Pixel = "float32"
        if self.amp is not None:
            dtype = "bfloat16" if self.amp == torch.bfloat16 else "float16"
        return PictureSpec(size, placement, dtype, threads, self.device.index or 0)


def threads_beside_gpu() -> int:
    """DALI's threads for one of this machine's GPUs: decoding is shared between both."""
    return max(2, min(MOST_THREADS, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count())))


def decide(device: Device, amp: bool, compile: Compile, local: int = 0) -> Placement:
    """The placement for what the user asks; `local` is the number of this process on this machine, and of its GPU.

    Raises:
        InputError: CUDA is asked for and there is none, or none for this process.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no usable GPU or driver was found"
        raise InputError(f"--device cuda: {why}")
    if device == "cuda" or (device == "auto" and cuda):
        if local >= torch.cuda.device_count():
            raise InputError(f"process {local + 1} on this machine has no GPU: there are {torch.cuda.device_count()}")
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return Placement(
            torch.device("cuda", local), half if amp else None, amp and half == torch.float16, compile != "off", ()
        )
    notes = []
    if amp and not cpu_has_bfloat16():
        notes.append("amp: this CPU does not compute in bfloat16 (AVX-512 BF16 or AMX); float32 is faster and used")
        amp = False
    if compile == "on":
        notes.append("compile: the passes of the CPU are compiled already; --compile on changes nothing here")
    return Placement(torch.device("cpu"), torch.bfloat16 if amp else None, False, False, tuple(notes))
