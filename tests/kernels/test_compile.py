"""Each kernel as machine code, which needs no GPU: no spills, 128-bit global access, 64-bit offsets."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import bce, residual

ALIGNED = [["tt.divisibility", 16]]
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "residual_fwd": (
        residual._residual_add_relu_fwd_kernel,
        {"x_ptr": "*T", "branch_ptr": "*T", "y_ptr": "*T", "scale": "fp32", "n": "i64"},
        {"BLOCK": residual._BLOCK},
    ),
    "residual_bwd": (
        residual._residual_add_relu_bwd_kernel,
        {
            "grad_ptr": "*T",
            "y_ptr": "*T",
            "grad_x_ptr": "*T",
            "grad_branch_ptr": "*T",
            "scale": "fp32",
            "n": "i64",
        },
        {"BLOCK": residual._BLOCK},
    ),
    "bce_fwd": (
        bce._sigmoid_bce_fwd_kernel,
        {"x_ptr": "*T", "y_ptr": "*u8", "loss_ptr": "*fp32", "grad_ptr": "*T", "factor": "fp32", "n": "i64"}
        | {"labels": "i32"},
        {"w_ptr": None, "REDUCED": True, "BLOCK": bce._BLOCK},
    ),
    "bce_fwd_weighted": (
        bce._sigmoid_bce_fwd_kernel,
        {"x_ptr": "*T", "y_ptr": "*fp32", "w_ptr": "*fp32", "loss_ptr": "*fp32", "grad_ptr": "*T"}
        | {"factor": "fp32", "n": "i64", "labels": "i32"},
        {"REDUCED": False, "BLOCK": bce._BLOCK},
    ),
    "bce_bwd": (
        bce._sigmoid_bce_bwd_kernel,
        {"grad_ptr": "*T", "upstream_ptr": "*fp32", "out_ptr": "*T", "factor": "fp32", "n": "i64"},
        {"SCALAR": True, "BLOCK": bce._BLOCK},
    ),
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


TARGETS = [(80, "fp32"), (90, "bf16"), (100, "fp32"), (120, "bf16")]


@pytest.mark.parametrize(("arch", "dtype"), TARGETS)
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code(name: str, arch: int, dtype: str, tmp_path: Path) -> None:
    kernel, arguments, constants = KERNELS[name]
    signature = {k: arguments.get(k, "constexpr").replace("T", dtype) for k in kernel.arg_names}
    aligned = {(i,): ALIGNED for i, kind in enumerate(signature.values()) if kind[0] == "*" or kind == "i64"}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"REG:\d+ STACK:0 SHARED:\d+ LOCAL:0", usage), usage

    for access in ("ld", "st"):
        assert re.search(rf"{access}\.global\S*\.v4\.b32", compiled.asm["ptx"])
    # Only the column of a label, which starts at 0 in every row, has 32 bits.
    narrow = re.findall(r"tt\.addptr .*tensor<\d+xi32>", compiled.asm["ttir"])
    assert len(narrow) == (1 if "weighted" in name else 0), narrow
