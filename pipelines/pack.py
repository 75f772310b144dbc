"""python -m pipelines.pack DATA SHARDS: a data set of any layout as WebDataset shards, tar files with an index each."""

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines import command
from pipelines.cache import replace_file
from pipelines.dataset import Dataset, Layout, require_rows
from pipelines.errors import InputError, reading
from pipelines.pictures import SUFFIXES
from pipelines.shards import Member, add, read, size_and_time, without_location, write_index


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes WebDataset shards. Started again after an interruption it goes on with the shards that are missing."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of the data set."""
    shards: Annotated[Path, tyro.conf.Positional]
    """Folder to write to."""
    format: Layout = "auto"
    """Layout of the data set."""
    shard_size: int = 256
    """Pictures a shard, in megabytes (10^6 bytes)."""
    allow_bad: bool = False
    """Pack even where more than 5 % of the pictures are missing."""


def pack(arguments: Arguments, progress: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Writes the shards; the data set that went into them. `progress` is told pictures done, and all.

    Raises:
        InputError: no data set, one that lacks its pictures, or a folder with other shards in it.
    """
    from pipelines.read import read_layout, require_pictures

    if arguments.shard_size < 1:
        raise InputError(f"--shard-size {arguments.shard_size}: must be above 0")
    dataset = read_layout(arguments.data, arguments.format)
    if not arguments.allow_bad:
        require_pictures(dataset, dataset.rejected)
    require_rows(dataset)
    to = arguments.shards
    if to.resolve().is_relative_to(dataset.root.resolve()):
        raise InputError(f"{to}: lies in the data set's own folder")
    plan = {"fingerprint": dataset.fingerprint(), "shard_size": arguments.shard_size}
    _begin(to, plan, dataset)
    done = 0
    for name, rows in _shards(dataset, arguments.shard_size * 10**6):
        if not (to / f"{name}.idx").is_file():  # written after its shard: both are there, and whole
            _write(dataset, rows, to / f"{name}.tar")
        done += len(rows)
        progress(done, len(dataset.files))
    return dataset


def _begin(to: Path, plan: dict[str, object], dataset: Dataset) -> None:
    """The folder with labels.txt and pack.json, which tells what the shards are made of."""
    note = to / "pack.json"
    try:
        to.mkdir(parents=True, exist_ok=True)
        if note.is_file() and json.loads(note.read_text()) != plan:
            raise InputError(f"{to}: holds shards of another data set or size; give another folder")
        if not note.is_file() and any(to.iterdir()):
            raise InputError(f"{to}: there is something else in it; give another folder")
        for left in to.glob(".*.tmp"):  # by a process that was killed
            left.unlink()
        with replace_file(note) as temporary:
            temporary.write_text(json.dumps(plan))
        (to / "labels.txt").write_text("".join(f"{label}\n" for label in dataset.labels), encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"{to}: cannot be written: {why or error}") from None


def _shards(dataset: Dataset, limit: int) -> list[tuple[str, list[int]]]:
    """Name and rows of each shard: as many pictures in a row as fit."""
    shards: list[tuple[str, list[int]]] = []
    for split, rows in dataset.splits.items():
        number, size = 0, 0
        for row in rows.tolist():
            length = size_and_time(f"{dataset.root}/{dataset.files[row]}")[0]
            if not number or size + length > limit:
                shards.append((f"{split}-{number:06d}", []))
                number, size = number + 1, 0
            shards[-1][1].append(row)
            size += length
    return shards


def _write(dataset: Dataset, rows: list[int], path: Path) -> None:
    samples: list[list[Member]] = []
    try:
        with replace_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                file = dataset.files[row]
                labels = [n for n, has in zip(dataset.labels, dataset.targets[row], strict=True) if has]
                note = json.dumps({"labels": labels, "file": without_location(file)}).encode()
                with reading(dataset.root / file):
                    content = read(f"{dataset.root}/{file}")
                picture = add(tar, f"{row:08d}{_ending(file)}", content)
                samples.append([picture, add(tar, f"{row:08d}.json", note)])
        with replace_file(path.with_suffix(".idx")) as temporary:
            write_index(temporary, samples)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _ending(file: str) -> str:
    """By which a reader of shards knows a picture; decoders go by the content."""
    ending = os.path.splitext(without_location(file))[1].lower()
    return ending if ending in SUFFIXES else SUFFIXES[0]


def main() -> int:
    """Parses the command line and packs; the exit status."""
    from pipelines.progress import bar, say

    arguments = command.parse(Arguments, "python -m pipelines.pack")
    with bar("packing") as advance:
        dataset = pack(arguments, lambda done, total: advance(done, total, ""))
    for line in dataset.told():
        say(line)
    say(f"{len(dataset.files):,} pictures in {arguments.shards}")
    say(f"train with: python -m engine.train --amp --data {arguments.shards}")
    return command.OK


if __name__ == "__main__":
    command.main(main)
