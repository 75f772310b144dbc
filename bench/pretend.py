"""A GPU that is not there, for code generators: they ask what it is, and nothing is ever launched on it.

All private names of torch and Triton that the traffic model changes are in this file, and tests/bench holds them to
the versions that are installed.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.utils._triton
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

_COMMON = {
    "warp_size": 32,
    "max_threads_per_block": 1024,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 49152,
    "gcnArchName": "",
    "is_integrated": False,
}
# Of the data sheets; the code generator asks for multiprocessors and memory to choose tile sizes by.
PROPERTIES = {
    80: SimpleNamespace(
        **_COMMON,
        name="NVIDIA A100-SXM4-80GB",
        major=8,
        minor=0,
        multi_processor_count=108,
        max_threads_per_multi_processor=2048,
        total_memory=80 << 30,
        L2_cache_size=40 << 20,
        shared_memory_per_block_optin=166912,
        shared_memory_per_multiprocessor=167936,
        clock_rate=1410000,
        memory_clock_rate=1593000,
        memory_bus_width=5120,
    ),
    90: SimpleNamespace(
        **_COMMON,
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        multi_processor_count=132,
        max_threads_per_multi_processor=2048,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        clock_rate=1980000,
        memory_clock_rate=2619000,
        memory_bus_width=5120,
    ),
    100: SimpleNamespace(
        **_COMMON,
        name="NVIDIA B200",
        major=10,
        minor=0,
        multi_processor_count=148,
        max_threads_per_multi_processor=2048,
        total_memory=180 << 30,
        L2_cache_size=126 << 20,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        clock_rate=1965000,
        memory_clock_rate=3996000,
        memory_bus_width=8192,
    ),
}


class Driver:
    """Stands in for Triton's active driver: knows its target, launches nothing."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda:0")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def is_active(self) -> bool:
        return True


@contextmanager
def gpu(arch: int = 90) -> Iterator[None]:
    """Within it torch and Triton believe in a GPU of this compute capability, and the kernels package in a launch.

    Raises:
        KeyError: a compute capability that PROPERTIES does not have.
    """
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers

    properties, before = PROPERTIES[arch], triton.runtime.driver._active
    capability = (properties.major, properties.minor)
    device: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda _=None: properties,
    }
    cuda = device | {
        "device_count": lambda: 1,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "set_device": lambda _: None,
        "synchronize": lambda *_: None,
        "get_device_capability": lambda _=None: capability,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
    }
    interface = device | {"get_compute_capability": lambda _=None: capability, "get_raw_stream": lambda _: 0}
    worker = {name: device[name] for name in ("get_device_properties", "current_device")}
    with ExitStack() as stack:
        _forget_answers()
        stack.callback(_forget_answers)
        # Where CI is set, torch takes an operator that its own CI should decompose for an error.
        stack.enter_context(mock.patch.dict(os.environ))
        os.environ.pop("CI", None)
        for owner, table in ((CudaInterface, interface), (CudaInterface.Worker, worker)):
            for name, fake in table.items():
                stack.enter_context(mock.patch.object(owner, name, staticmethod(fake)))
        for name, fake in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _layout))
        for module in _with_kernels():
            stack.enter_context(mock.patch.object(module, "takes_triton", _takes_triton))
        # Generated kernels would look for the driver's library.
        stack.callback(triton_helpers._skip_gpu_driver_setup.reset, triton_helpers._skip_gpu_driver_setup.set(True))
        triton.runtime.driver.set_active(Driver(arch))
        stack.callback(setattr, triton.runtime.driver, "_active", before)
        yield


@contextmanager
def launches(arch: int = 90, compiles: bool = True) -> Iterator["Launches"]:
    """As `gpu`; a launch of a Triton kernel compiles it for this GPU, if it is the first of its kind, and that is all.

    Nothing is there before, on disk or in the process, and nothing is left.

    Args:
        compiles: False to note what would be compiled, by Triton's key, and leave it at that.
    """
    seen, launch = Launches(), JITFunction.run
    kept: list[tuple[Any, Any]] = []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if all(self is not function for function, _ in kept):
            kept.append((self, dict(self.device_caches)))
            self.device_caches.clear()
        began = time.perf_counter()
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        seen.seconds += time.perf_counter() - began
        seen.launched += 1
        seen.kernels.add((self.__name__, kernel.hash))
        return kernel

    def note(self: Any, key: str, signature: Any, device: int, *_: Any) -> Any:
        kernel = self.device_caches[device][0][key] = SimpleNamespace(hash=key)
        return kernel

    with gpu(arch), tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
            if not compiles:
                stack.enter_context(mock.patch.object(JITFunction, "_do_compile", note))
            try:
                yield seen
            finally:
                for function, before in kept:
                    function.device_caches.clear()
                    function.device_caches.update(before)


@dataclass(slots=True)
class Launches:
    """What was launched.

    Attributes:
        launched: how often.
        kernels: name and hash of each different kernel, or its key.
        seconds: spent on compiling them and looking them up.
    """

    launched: int = 0
    kernels: set[tuple[str, str]] = field(default_factory=set)
    seconds: float = 0.0


def _forget_answers() -> None:
    """What torch has found out about GPUs and Triton so far holds neither within nor afterwards."""
    for function in vars(torch.utils._triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _layout(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """Of a convolution's result, as cuDNN has it: without cuDNN torch would answer for its own slow convolutions."""
    nhwc = any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return torch.channels_last if nhwc else torch.contiguous_format


def _takes_triton(x: Tensor) -> bool:
    return x.numel() > 0


def _with_kernels() -> list[Any]:
    """Modules of the kernels package that ask where an operation runs. Traced on the CPU, it would be plain torch."""
    from kernels import traffic

    traffic.import_all()
    return [m for name, m in sys.modules.items() if name.startswith("kernels.") and hasattr(m, "takes_triton")]
