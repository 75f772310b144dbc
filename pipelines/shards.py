"""Pictures inside tar files: where each lies, by the index that DALI's webdataset reader uses too.

Such a picture is called "train-000000.tar/00000012.jpg@1536+20480": shard, name, first byte and bytes. It is read by
its place, not in the order of the shard, so that sampling, resuming and ranks work as they do on a folder of files.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError

VERSION = "v1.2"
_LOCATION = re.compile(r"(.*\.tar)/.*@(\d+)\+(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: what it is called without and after the first dot, its first byte and its bytes."""

    key: str
    ending: str
    start: int
    size: int


def location(path: str) -> tuple[str, int, int] | None:
    """Shard, first byte and bytes of a picture in a shard; None for a file of its own."""
    found = _LOCATION.fullmatch(path) if ".tar/" in path else None
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def without_location(path: str) -> str:
    """The name of a picture, of one in a shard without its place there."""
    return path if location(path) is None else path.rpartition("@")[0]


def read(path: str) -> bytes:
    """The bytes of a picture, wherever it lies."""
    found = location(path)
    if found is None:
        return Path(path).read_bytes()
    shard, start, size = found
    with open(shard, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)


def read_or_none(path: str) -> NDArray[np.uint8]:
    """The bytes of a picture; of one that cannot be read, some that do not decode, so that it is told as bad."""
    try:
        content = read(path)
    except OSError:
        content = b""
    return np.frombuffer(content or b"gone", np.uint8)


@contextmanager
def as_files(root: Path, files: Sequence[str]) -> Iterator[list[str]]:
    """Paths of pictures for what reads files only: those in shards are written to a folder that is there meanwhile."""
    with TemporaryDirectory() as folder:
        paths = []
        for number, file in enumerate(files):
            path = f"{root}/{file}"
            if location(path) is not None:
                content = read(path)
                path = f"{folder}/{number}{os.path.splitext(without_location(path))[1]}"
                Path(path).write_bytes(content)
            paths.append(path)
        yield paths


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes of a picture and when it was changed (ns): of one in a shard, when the shard was."""
    found = location(path)
    if found is None:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return found[2], _changed(found[0])


@lru_cache(maxsize=65536)
def _changed(shard: str) -> int:
    return os.stat(shard).st_mtime_ns


def write_index(path: Path, samples: Sequence[Sequence[Member]]) -> None:
    """The index of a shard as DALI's wds2idx writes it."""
    lines = [" ".join(f"{m.ending} {m.start} {m.size} {m.key}.{m.ending}" for m in sample) for sample in samples]
    path.write_text(f"{VERSION} {len(samples)}\n" + "\n".join(lines) + "\n")


def members(shard: Path) -> list[list[Member]]:
    """The samples of a shard, from the index beside it, or by going through it.

    Raises:
        InputError: no tar file, or an index that does not fit.
    """
    index = shard.with_suffix(".idx")
    try:
        if index.is_file():
            return _from_index(index, shard.stat().st_size)
        with tarfile.open(shard, "r:", errors="backslashreplace") as tar:  # names that are not UTF-8
            found = [_member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{shard}: not a usable tar file: {error}") from None
    samples: dict[str, list[Member]] = {}
    for member in found:
        if not os.path.basename(member.key).startswith("."):
            samples.setdefault(member.key, []).append(member)
    return list(samples.values())


def _member(name: str, start: int, size: int) -> Member:
    folder, file = os.path.split(name)
    stem, _, ending = file.partition(".")
    return Member(os.path.join(folder, stem), ending, start, size)


def _from_index(index: Path, size: int) -> list[list[Member]]:
    lines = index.read_text(errors="replace").splitlines()
    wrong = InputError(f"{index}: not the index of its shard; remove it, and the shard is gone through instead")
    if not lines or lines[0].split()[:1] != [VERSION] or lines[0].split()[1:] != [str(len(lines) - 1)]:
        raise wrong
    samples = []
    for line in lines[1:]:
        parts = line.split(" ")
        if len(parts) % 4 or not all(part.isdecimal() for part in (*parts[1::4], *parts[2::4])):
            raise wrong
        sample = [_member(parts[i + 3], int(parts[i + 1]), int(parts[i + 2])) for i in range(0, len(parts), 4)]
        if any(member.start + member.size > size for member in sample):
            raise wrong
        samples.append(sample)
    return samples


def add(tar: tarfile.TarFile, name: str, content: bytes) -> Member:
    """Puts a file into a shard; where it lies."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return _member(name, tar.offset - blocks, len(content))
