"""Each kernel as machine code, which needs no GPU: no spills, wide global access, 64-bit offsets."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.model import InceptionResNetV1
from kernels.batch_norm_triton import grid_of
from kernels.compile import ARCHITECTURES, main, shortcomings
from kernels.machine_code import Resources, Variant, examine, typed, widest
from kernels.variants import VARIANTS

ROOT = Path(__file__).parents[2]
# Products of 32 bits in a kernel: a tile's first channel, a program's place in the sums, twice the width of a map.
NARROW = {
    "batch_norm statistics": 3,
    "batch_norm normalize": 1,
    "batch_norm normalize + residual": 1,
    "batch_norm sums": 3,
    "batch_norm grad_x": 1,
    "batch_norm grad_x + residual": 1,
    "batch_norm combine statistics": 3,
    "batch_norm combine sums": 2,
    "max_pool": 2,
    "max_pool backward": 1,
}


def code(variant: Variant) -> tuple[object, ...]:
    """What makes one variant's code differ from another's, but for sizes."""
    constants = {k: str(v) for k, v in variant.constants.items() if k not in ("TILES", "CHUNKS")}
    several = any(len(kinds) > 1 for kinds in variant.arguments.values() if isinstance(kinds, tuple))
    return variant.kernel, several, *sorted(constants.items())


ONE_OF_EACH = {code(variant): name for name, variant in VARIANTS.items()}.values()


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


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_offsets_have_64_bits(name: str) -> None:
    """Past 2^31 elements a product of 32 bits would wrap around, whatever the bits of the sizes."""
    variant = VARIANTS[name]
    constants = {**variant.constants, **variant.launch.blocks}
    if "INDEX" in constants:
        constants["INDEX"] = tl.int64  # as it is for so many rows
    compiled = triton.compile(
        ASTSource(variant.kernel, typed(variant, variant.dtypes[-1]), constants), target=GPUTarget("cuda", 90, 32)
    )
    products = [line for line in compiled.asm["ttir"].splitlines() if "arith.muli" in line]
    narrow = [line for line in products if re.search(r": (i32|tensor<[\dx]+xi32>)", line)]
    assert len(narrow) == NARROW.get(name.split(", ")[0], 0), narrow
    assert len(narrow) < len(products) or "combine" in name


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


def test_command(tmp_path: Path) -> None:
    options = ["--arch", "80", "--only", "loss backward", "--json", str(tmp_path / "table.json")]
    command = [sys.executable, "-m", "kernels.compile", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
        (("--" + 40 * "a", "--" + 40 * "b"), f"error: Unrecognized options: --{40 * 'a'}, --{40 * 'b'} (python -m "),
        (("--json", "nowhere/table.json"), "error: --json nowhere/table.json: no such folder\n"),
        (("--arch", "x"), "error: Error parsing --arch: Could not find valid parse for arguments: ['x'] ("),
    ],
)
def test_wrong_command(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line."""
    monkeypatch.setattr(sys, "argv", ["kernels.compile", *arguments])
    with pytest.raises(SystemExit) as leaving:
        sys.exit(main())
    said = capsys.readouterr()
    assert (leaving.value.code, said.out) == (2, "")
    assert said.err.startswith(message)
    assert said.err.count("\n") == 1


class Launches(TorchDispatchMode):
    """Forms of the batch norm kernels that operators launch: whether they make sums, tile sizes and number of maps; and
    programs to join."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: set[tuple[bool, int, int]] = set()
        self.chunks: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("manylabel.batch_norm"):
            xs = args[1] if "backward" in name else args[0]
            grid = grid_of(xs)
            for launch in (grid.launch, grid.sums):
                self.maps.add((launch is grid.sums, launch.blocks["BLOCK_CHANNELS"], len(xs)))
            self.chunks.add(triton.next_power_of_2(grid.chunks))
        return func(*args, **(kwargs or {}))


def test_what_the_network_launches_is_compiled() -> None:
    """Forward and backward in training; the other kernels have one form, or one a block."""
    with FakeTensorMode(), Launches() as launches:
        InceptionResNetV1(20)(torch.empty(32, 3, 320, 320)).sum().backward()
    compiled = [v for v in VARIANTS.values() if v.name.startswith("batch_norm")]
    maps = {
        ("part_ptr" in v.arguments, v.launch.blocks["BLOCK_CHANNELS"], len(v.arguments["x_ptrs"]))
        for v in compiled
        if "x_ptrs" in v.arguments
    }
    assert launches.maps == maps
    assert launches.chunks == {v.constants["CHUNKS"] for v in compiled if "CHUNKS" in v.constants}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_sizes_of_one(name: str) -> None:
    """Triton makes a constant of an integer that is 1, as for one label, one channel, one row: other code."""
    variant = VARIANTS[name]
    signature, constants = typed(variant, variant.dtypes[-1]), {**variant.constants, **variant.launch.blocks}
    for place, (argument, kinds) in enumerate(list(signature.items())):
        if kinds in ("i32", "i64"):
            signature[argument], constants[argument] = "constexpr", 1
        elif kinds[0] == "i32":
            # The first of several alone: the others stay variables.
            signature[argument], constants[place, 0] = ("constexpr", *kinds[1:]), 1
    compiled = triton.compile(ASTSource(variant.kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
