"""`python -m kernels.compile`: every kernel for GPUs that need not be there, and what its machine code shows."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.table import Table

    from kernels.machine_code import Resources

ARCHITECTURES = (80, 90, 100, 120)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Compiles every kernel in every dtype at the network's shapes; exit status 1 if one spills or loads or stores
    less at once than it declares.

    Attributes:
        arch: compute capabilities, of 80, 90, 100 and 120.
        only: kernels whose name contains this.
        json: writes the table to this file too.
    """

    arch: tuple[int, ...] = ARCHITECTURES
    only: str = ""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def shortcomings(found: "Resources") -> list[str]:
    """What a variant misses of what it declares; empty when all is well."""
    from kernels.variants import VARIANTS

    due = VARIANTS[found.name]
    missed = []
    if found.spills:
        missed.append(f"{found.spills} spills")
    if found.load < due.load:
        missed.append(f"loads {found.load} bits at once, {due.load} declared")
    if found.store < due.store:
        missed.append(f"stores {found.store} bits at once, {due.store} declared")
    if due.matrix and not found.matrix:
        missed.append("no matrix instructions")
    return missed


def _examine(work: tuple[str, str, int]) -> "Resources":
    from kernels.machine_code import examine
    from kernels.variants import VARIANTS

    name, dtype, arch = work
    return examine(VARIANTS[name], dtype, arch)


def examine_all(names: Sequence[str], architectures: Sequence[int]) -> "list[Resources]":
    """Every variant of these names in each of its dtypes for each architecture, in that order."""
    from kernels.variants import VARIANTS

    work = [(name, dtype, arch) for name in names for dtype in VARIANTS[name].dtypes for arch in architectures]
    # Fresh processes: the compiler is not made to be forked.
    with ProcessPoolExecutor(min(len(work), len(os.sched_getaffinity(0))), get_context("spawn")) as pool:
        return list(pool.map(_examine, work, chunksize=4))


def show(results: "Sequence[Resources]") -> "Table":
    """The table for people."""
    from rich.table import Table

    table = Table(title="kernels as machine code", title_justify="left")
    for heading in ("kernel", "shape", "dtype", "sm"):
        table.add_column(heading)
    for heading in ("registers", "spills", "shared B", "load bits", "store bits", "MB moved"):
        table.add_column(heading, justify="right")
    table.add_column("matrix")
    for r in results:
        figures = (r.registers, r.spills, r.shared, r.load, r.store)
        style = "red" if shortcomings(r) else None
        table.add_row(
            *(r.name, r.shape, r.dtype, str(r.arch), *map(str, figures), f"{r.bytes / 1e6:.2f}", " ".join(r.matrix)),
            style=style,
        )
    return table


def _parse() -> Arguments:
    """The command line; leaves with status 2 and one line where it does not fit."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Arguments, prog="python -m kernels.compile")
    except SystemExit as leaving:
        if leaving.code:  # the parser has put its reason into a box, between the rules below the title
            reason = " ".join(re.findall("[^│╮\\s]+", re.split("[─-]{8,}", said.getvalue())[1]))
            print(f"error: {reason} (python -m kernels.compile --help lists the options)", file=sys.stderr)
        raise


def main() -> int:
    """Parses the command line, compiles and prints the table; the exit status."""
    given = _parse()
    from rich.console import Console

    from kernels.variants import VARIANTS  # which brings torch

    unknown = [arch for arch in given.arch if arch not in ARCHITECTURES]
    names = [name for name in VARIANTS if given.only in name]
    if unknown or not given.arch or not names:
        option, takes = ("--arch", ARCHITECTURES) if names else ("--only", tuple(VARIANTS))
        print(f"error: {option} takes {'; '.join(map(str, takes))}", file=sys.stderr)
        return 2
    if given.json is not None and not given.json.parent.is_dir():  # told now, not after minutes
        print(f"error: --json {given.json}: no such folder", file=sys.stderr)
        return 2
    results = examine_all(names, given.arch)
    Console(width=None if sys.stdout.isatty() else 160).print(show(results))
    missed = [(r, what) for r in results for what in shortcomings(r)]
    for r, what in missed:
        print(f"{r.name} {r.dtype} sm_{r.arch}: {what}", file=sys.stderr)
    if given.json is not None:
        rows = [asdict(r) | {"shortcomings": shortcomings(r)} for r in results]
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
