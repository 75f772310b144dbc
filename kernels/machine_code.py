"""A kernel as the machine code of a GPU that need not be there, and what that code shows."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.tuning import Launch

_ALIGNED = [["tt.divisibility", 16]]
_ITEM = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A kernel as the network launches it.

    Attributes:
        name: kernel and form.
        kernel: the triton.jit function.
        arguments: Triton type by argument name, T for the storage dtype, a tuple of them for a tuple of arguments; what
            is left out is a constant.
        constants: values of the constants, tile sizes aside.
        launch: row of the tuning table.
        shape: the shape of the network that is launched, for the reader.
        bytes: of an element, to bytes moved at that shape by the formula of the kernel's file.
        load, store: declared bits of the widest global access.
        matrix: whether matrix instructions are due.
        dtypes: storage dtypes that the kernel takes.
        unaligned: arguments that are no multiple of 16 at this shape.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str | tuple[str, ...]]
    constants: dict[str, Any]
    launch: Launch
    shape: str
    bytes: Callable[[int], int]
    load: int = 128
    store: int = 128
    matrix: bool = False
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
    unaligned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the machine code of one variant shows.

    Attributes:
        registers: of a thread.
        spills: instructions that load from or store to local memory, and bytes of stack: 0 is due.
        shared: bytes of shared memory of a program.
        load, store: bits of the widest global access, asynchronous copies included; 0 for none.
        matrix: names of the matrix instructions, as HMMA or HGMMA.
        bytes: moved, by the formula.
    """

    name: str
    shape: str
    dtype: str
    arch: int
    registers: int
    spills: int
    shared: int
    load: int
    store: int
    matrix: tuple[str, ...]
    bytes: int


def examine(variant: Variant, dtype: str, arch: int) -> Resources:
    """Compiles a variant for compute capability `arch` (80, 90, ...) with Triton's own assembler; needs no GPU.

    Raises:
        RuntimeError: Triton or its assembler refuses the kernel.
    """
    signature = typed(variant, dtype)
    aligned = {
        place: _ALIGNED
        for i, (name, kinds) in enumerate(signature.items())
        for place, kind in (_each(i, kinds) if name not in variant.unaligned else ())
        if kind[0] in "*i"
    }
    constants = {**variant.constants, **variant.launch.blocks}
    options = {"num_warps": variant.launch.warps, "num_stages": variant.launch.stages}
    source = ASTSource(variant.kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
        sass = _cuobjdump("--dump-sass", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"{variant.name}: no resource usage in {usage!r}")
    registers, stack, local = map(int, found.groups())
    return Resources(
        name=variant.name,
        shape=variant.shape,
        dtype=dtype,
        arch=arch,
        registers=registers,
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)) + stack + local,
        shared=compiled.metadata.shared,
        load=widest(sass, "LDG|LDGSTS"),
        store=widest(sass, "STG|STGSTS"),
        matrix=tuple(sorted(set(re.findall(r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|OMMA|DMMA)\b", sass)))),
        bytes=variant.bytes(_ITEM[dtype]),
    )


def typed(variant: Variant, dtype: str) -> dict[str, str | tuple[str, ...]]:
    """Triton type of each argument, in order, for a storage dtype."""

    def of(kind: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return kind.replace("T", dtype) if isinstance(kind, str) else tuple(k.replace("T", dtype) for k in kind)

    return {name: of(variant.arguments.get(name, "constexpr")) for name in variant.kernel.arg_names}


def _each(place: int, kind: str | tuple[str, ...]) -> list[tuple[tuple[int, ...], str]]:
    """Places and types of an argument, or of all of a tuple."""
    return [((place,), kind)] if isinstance(kind, str) else [((place, i), k) for i, k in enumerate(kind)]


def widest(sass: str, instructions: str) -> int:
    """Bits of the widest access among these instructions of a disassembly; the bulk copies of TMA count as 128."""
    widths = [0]
    for suffixes in re.findall(rf"\b(?:{instructions})(?!\w)((?:\.\w+)*)", sass):
        parts = suffixes.split(".")
        bits = [int(part) for part in parts if part in ("64", "128", "256")]
        narrow = 8 if {"U8", "S8"} & set(parts) else 16 if {"U16", "S16"} & set(parts) else 32
        widths.append(bits[0] if bits else narrow)
    if re.search(r"\bUTMALDG\b" if "LDG" in instructions else r"\bUTMASTG\b", sass):
        widths.append(128)
    return max(widths)


def _cuobjdump(option: str, cubin: Path) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
