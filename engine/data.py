"""The data set of a run, read with progress shown: the user's own, or else the sample data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import Config

if TYPE_CHECKING:
    from pipelines.dataset import Dataset


def read_data(root: Path | None, config: Config, known_bad: Mapping[str, str] | None = None) -> "Dataset":
    """The data set in a folder, or without one the sample data set; `known_bad` as pipelines.read has it.

    Raises:
        InputError: it cannot be read.
    """
    from pipelines.progress import bar
    from pipelines.read import read_dataset

    if root is None:
        from pipelines.sample import ensure_sample

        with bar("drawing the sample data set") as advance:
            root = ensure_sample(progress=lambda done, total: advance(done, total, ""))
    with bar("checking pictures") as advance:
        return read_dataset(
            root,
            config.layout,
            config.val_fraction,
            config.seed,
            config.allow_bad,
            progress=lambda done, total: advance(done, total, ""),
            known_bad=known_bad,
        )
