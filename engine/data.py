"""The data set of a run, read with progress shown: the user's own, or else the sample data set."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import Config
from pipelines.dataset import Layout
from pipelines.errors import InputError

if TYPE_CHECKING:
    from engine.run import Run
    from pipelines.dataset import Dataset


def read_data(root: Path | None, config: Config, known_bad: Mapping[str, str] | None = None) -> "Dataset":
    """The data set in a folder, or without one the sample data set; `known_bad` as pipelines.read has it.

    Raises:
        InputError: it cannot be read.
    """
    from pipelines.progress import bar, say
    from pipelines.read import read_dataset

    if root is None:
        from pipelines.sample import PICTURES, ensure_sample, sample_dir, sample_is_there

        if not sample_is_there(sample_dir()):
            say(f"no --data: drawing the sample data set, {PICTURES:,} pictures; that takes minutes, and once only")
        with bar("drawing the sample data set") as advance:
            try:
                root = ensure_sample(progress=lambda done, total: advance(done, total, ""))
            except OSError as error:
                raise InputError(
                    f"{error.filename or sample_dir()}: cannot be written: {error.strerror or error}; "
                    f"MANYLABEL_CACHE=FOLDER takes another place for the sample data set"
                ) from None
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


def data_of_run(
    config: Config,
    data: Path | None = None,
    layout: Layout | None = None,
    known_bad: Mapping[str, str] | None = None,
) -> "Dataset":
    """The data set that a run was trained on, or another one.

    Args:
        config: of the run.
        data: another folder.
        layout: of the data set; by default the run's, of another folder found out.
        known_bad: files that the run left out, with reasons, in place of a check.

    Raises:
        InputError: it is no longer there, or cannot be read.
    """
    if data is not None:
        return read_data(data, replace(config, layout=layout or "auto"), known_bad)
    root = None if config.data is None else Path(config.data)
    if root is not None and not root.is_dir():
        raise InputError(f"{root}: the data set of the run is not there; --data DIR says where it is now")
    return read_data(root, replace(config, layout=layout or config.layout), known_bad)


def with_validation_of(run: "Run", dataset: "Dataset", elsewhere: bool = False) -> "Dataset":
    """The data set with the validation pictures that a run had, as far as they are there.

    Where they were split off, pictures that have gone since would make it another split, of pictures that the network
    was trained on. A data set `elsewhere` is taken for the run's if its own were split off too and it has most of them.
    """
    import numpy as np

    from engine.predicted import validation_files

    known = validation_files(run.validation)
    rows = {name: dataset.splits.get(name, np.empty(0, np.int64)) for name in ("train", "val")}
    if known is None or known.issuperset(dataset.files[row] for row in rows["val"]):
        return dataset
    both = np.sort(np.concatenate(list(rows.values())))
    held = np.fromiter((dataset.files[row] in known for row in both), bool, len(both))
    most = held.sum() * 2 > len(known)
    if not held.any() or (elsewhere and not (dataset.split_off and most)):  # another data set
        return dataset
    return replace(dataset, splits={**dataset.splits, "train": both[~held], "val": both[held]})
