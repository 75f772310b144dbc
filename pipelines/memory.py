"""Decoded pictures kept in memory, up to a limit: from the second epoch on there is nothing left to decode."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARE = 0.25  # of the free memory, unless told otherwise


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

    def summary(self, rows: int) -> str:
        """One line: how many of a split's pictures are kept, and the memory they take."""
        return (
            f"{len(self.pictures):,} of {rows:,} training pictures are kept decoded in memory, "
            f"{self.size / 1e9:.2g} GB of {self.limit / 1e9:.2g} GB"
        )


def picture_memory(gigabytes: float | None, processes: int = 1) -> PictureMemory | None:
    """An empty memory of the given size; None: a quarter of what is free now; 0: no memory.

    `processes` share what is given, or free.
    """
    limit = int((SHARE * free_memory() if gigabytes is None else gigabytes * 1e9) / processes)
    return PictureMemory(limit) if limit else None


def free_memory() -> int:
    """Bytes that a process can still take: what the system calls available, within the control group's limit."""
    available = 0
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        available = min(available, int(limit[0]) - int(used[0]))
    return max(0, available)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
