"""Each kernel as machine code, which needs no GPU: no spills, wide global access, 64-bit offsets."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.compile import ARCHITECTURES, shortcomings
from kernels.machine_code import Resources, examine, typed, widest
from kernels.variants import VARIANTS

ROOT = Path(__file__).parents[2]
FLAT = {name: 0 for name in VARIANTS if name.startswith(("residual", "sigmoid_bce", "asymmetric", "loss", "normalize"))}
# Only what lies within a program, added to a 64-bit start or in [0, labels), has 32 bits.
FLAT |= {"sigmoid_bce weighted, masked": 2, "normalize": 2}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", VARIANTS)
def test_machine_code(name: str) -> None:
    """One dtype and architecture a kernel, in turn; `python -m kernels.compile` takes all of them."""
    number, variant = list(VARIANTS).index(name), VARIANTS[name]
    dtype = variant.dtypes[number % len(variant.dtypes)]
    found = examine(variant, dtype, ARCHITECTURES[number % len(ARCHITECTURES)])
    assert shortcomings(found) == []
    assert 0 < found.registers <= 255
    assert found.bytes > 0


@pytest.mark.parametrize("name", FLAT)
def test_offsets_have_64_bits(name: str) -> None:
    """Past 2^31 elements a 32-bit offset would wrap around."""
    variant = VARIANTS[name]
    constants = {**variant.constants, **variant.launch.blocks}
    compiled = triton.compile(
        ASTSource(variant.kernel, typed(variant, "bf16"), constants), target=GPUTarget("cuda", 90, 32)
    )
    narrow = [line for line in compiled.asm["ttir"].splitlines() if "tt.addptr" in line and "xi32>" in line]
    assert len(narrow) == FLAT[name], narrow


def found(**changes: object) -> Resources:
    good = Resources(
        name="residual_add_relu",
        shape="",
        dtype="bf16",
        arch=90,
        registers=24,
        spills=0,
        shared=0,
        load=128,
        store=128,
        matrix=(),
        bytes=1,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def test_shortcomings() -> None:
    assert shortcomings(found()) == []
    assert shortcomings(found(spills=3)) == ["3 spills"]
    assert shortcomings(found(load=64)) == ["loads 64 bits at once, 128 declared"]
    assert shortcomings(found(store=32)) == ["stores 32 bits at once, 128 declared"]


@pytest.mark.parametrize(
    ("sass", "load", "store"),
    [
        ("LDG.E.128 R4, [R2.64] ;\nLDG.E.U16 R1 ;\nSTG.E.64 [R2.64], R4 ;", 128, 64),
        ("LDG.E.U8.CONSTANT R4 ;\nSTG.E.U16 [R2] ;", 8, 16),
        ("LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64] ;\nSTG.E desc[UR4][R2.64], R4 ;", 128, 32),
        ("UTMALDG.2D [UR4], [UR6] ;", 128, 0),
        ("STS.128 [R3], R4 ;\nLDS.128 R4, [R3] ;", 0, 0),
    ],
)
def test_widest_access(sass: str, load: int, store: int) -> None:
    assert (widest(sass, "LDG|LDGSTS"), widest(sass, "STG|STGSTS")) == (load, store)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kernels.compile", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command(tmp_path: Path) -> None:
    done = run("--arch", "80", "--only", "loss backward", "--json", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    assert "loss backward" in done.stdout
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [(row["dtype"], row["arch"], row["spills"], row["shortcomings"]) for row in rows] == [
        (dtype, 80, 0, []) for dtype in ("fp32", "fp16", "bf16")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "70"), "error: --arch takes 80; 90; 100; 120\n"),
        (("--only", "?"), "error: --only takes residual_add"),
    ],
)
def test_wrong_command(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_of_one(name: str) -> None:
    """Triton makes a constant of an integer that is 1, as for one label, one channel, one row: other code."""
    variant = VARIANTS[name]
    signature, constants = typed(variant, "bf16"), {**variant.constants, **variant.launch.blocks}
    for place, (argument, kinds) in enumerate(list(signature.items())):
        if kinds in ("i32", "i64"):
            signature[argument], constants[argument] = "constexpr", 1
        elif kinds[0] == "i32":
            # The first of several alone: the others stay variables.
            signature[argument], constants[place, 0] = ("constexpr", *kinds[1:]), 1
    compiled = triton.compile(ASTSource(variant.kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
