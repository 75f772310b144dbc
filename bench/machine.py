"""What figures depend on: the processor, the GPU, and the versions of all that is compared."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Instruction sets that decide which arithmetic is fast, as /proc/cpuinfo has them.
INSTRUCTIONS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
PACKAGES = (
    *("torch", "triton", "nvidia-dali-cuda130", "onnxruntime-gpu", "numba"),
    *("torchvision", "timm", "facenet-pytorch"),
)


def machine(cpu: dict[str, Any]) -> dict[str, Any]:
    """Plain data for pytest-benchmark's machine_info.

    Args:
        cpu: what py-cpuinfo says, pytest-benchmark's own entry.

    Returns:
        processor: its name; cores: that may be used; instructions: of INSTRUCTIONS; gpu: name and driver, or None;
        versions: of PACKAGES, those that are installed.
    """
    return {
        "processor": cpu.get("brand_raw", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in INSTRUCTIONS if name in cpu.get("flags", ())],
        "gpu": _gpu(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _gpu() -> str | None:
    """Name and driver of the GPU that torch would take first."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return name
    return f"{name}, driver {answer[0]}" if answer else name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
