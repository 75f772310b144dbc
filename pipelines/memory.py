"""Decoded pictures kept in memory, up to a limit: from the second epoch on there is nothing left to decode."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARE = 0.25  # of the free memory, unless told otherwise
# By version: folder below the mount, files of the limit and of what is taken, cached files among memory.stat's counts.
GROUPS = {
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    2: ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
}


@dataclass
class PictureMemory:
    """Pictures as they are before anything is drawn: decoded and shrunk, uint8 [H, W, 3].

    Attributes:
        limit: bytes that the pictures may take; what does not fit is decoded each time.
        pictures: by row number.
        size: bytes taken.
    """

    limit: int
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    size: int = 0

    def keep(self, row: int, picture: NDArray[np.uint8]) -> None:
        """Copies a picture, if there is room and it is not there already."""
        if row not in self.pictures and self.size + picture.nbytes <= self.limit:
            self.pictures[row] = picture.copy()
            self.size += picture.nbytes

    def clear(self) -> None:
        """Forgets all pictures."""
        self.pictures.clear()
        self.size = 0

    def summary(self, rows: int) -> str:
        """One line: how many of a split's pictures are kept, and the memory they take."""
        return (
            f"{len(self.pictures):,} of {rows:,} training pictures are kept decoded in memory so far, "
            f"{self.size / 1e9:.2g} GB of {self.limit / 1e9:.2g} GB"
        )


def picture_memory(gigabytes: float | None, processes: int = 1) -> PictureMemory | None:
    """An empty memory of the given size; None: a quarter of what is free now; 0: no memory.

    `processes` share what is given, or free.
    """
    limit = int((SHARE * free_memory() if gigabytes is None else gigabytes * 1e9) / processes)
    return PictureMemory(limit) if limit else None


def free_memory() -> int:
    """Bytes that a process can still take: what the system calls available, within the limits of its control groups."""
    available = 0
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return max(0, min([available, *_left_in_groups()]))


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: str = "/proc/self/cgroup") -> Iterator[int]:
    """Bytes left in each control group of this process that has a limit, from its own to the outermost.

    Of files that are only cached there as much as is wanted can be taken, so they do not count. In version 1 memory has
    a hierarchy of its own, in version 2 there is one for all. A container may see its group as the outermost.
    """
    for line in _lines(own):
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        first, limit, used, cached = GROUPS[1 if kinds else 2]
        for place in (Path(path), *Path(path).parents):
            folder = root / first / place.relative_to("/")
            numbers = [*_lines(folder / limit), *_lines(folder / used)]
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                counts = dict(line.split() for line in _lines(folder / "memory.stat"))
                yield int(numbers[0]) - int(numbers[1]) + sum(int(counts.get(name, 0)) for name in cached)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
