"""What a run writes along its way beside checkpoints: where the disk is full, training goes on without it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.progress import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def unless_full(path: Path) -> Iterator[None]:
    """A disk or a quota that is full is told; what was to be written is not."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        say(f"{path}: cannot be written: {error.strerror}; training goes on")


class Scalars:
    """An epoch's figures for TensorBoard.

    Args:
        folder: of its files.
        first: epoch from which on those that are there do not count.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.folder, self.first = folder, first
        self._writer: SummaryWriter | None = None
        with unless_full(folder):
            self._open()

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=self.first)
        return self._writer

    def add(self, line: dict[str, Any]) -> None:
        """The figures of an epoch's line."""
        with unless_full(self.folder):
            try:
                writer = self._open()
                for name, value in line.items():
                    if name != "epoch":
                        writer.add_scalar(name, value, line["epoch"])
                writer.flush()
            except OSError:
                self._writer, self.first = None, line["epoch"]  # it writes nothing more after an error
                raise

    def close(self) -> None:
        """Writes what is left."""
        with unless_full(self.folder):
            if self._writer is not None:
                self._writer.close()
