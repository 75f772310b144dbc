"""python -m pipelines.preview: a sheet of what the network sees, and of what sampling makes of the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from pipelines import command
from pipelines.dataset import Dataset, Layout
from pipelines.sampling import Sampling, epoch_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS_SHOWN = 40  # of a long tail, the rarest ones and the most frequent ones
TITLE = 40  # characters


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Draws originals beside augmented pictures with their labels, and pictures a label before and after sampling."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of the data set."""
    out: Path = Path("preview.png")
    """File to write: png, pdf or svg."""
    format: Layout = "auto"
    """Layout of the data set."""
    pictures: int = 6
    """Pictures that are shown, as an epoch has them."""
    draws: int = 5
    """Augmented draws of each."""
    image_size: int = 224
    """Side of the square picture in pixels."""
    sampling: Sampling = "oversample"
    """Sampling that the labels are counted after."""
    oversample_target: int | None = None
    """As in engine.train."""
    separate: bool = False
    """Show each draw a second time, by DALI's separate operators: both must look alike."""
    seed: int = 0
    """Of the choice and the draws."""


def preview(arguments: Arguments) -> Path:
    """Writes the sheet; its path.

    Raises:
        InputError: no data set, or a file that cannot be written.
    """
    from pipelines.errors import InputError
    from pipelines.read import read_dataset

    for name in ("pictures", "draws", "image_size"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be above 0")
    dataset = read_dataset(arguments.data, arguments.format, seed=arguments.seed, allow_bad=True)
    train = dataset.splits["train"]
    plan = epoch_rows(dataset.targets[train], arguments.sampling, arguments.seed, 0, arguments.oversample_target)
    rows = train[list(dict.fromkeys(plan.tolist()))[: arguments.pictures]]
    figure = _sheet(dataset, rows, plan, arguments)
    try:
        figure.savefig(arguments.out, dpi=100)
    except (OSError, ValueError) as error:
        raise InputError(f"{arguments.out}: cannot be written: {error}") from None
    return arguments.out


def drawn(
    root: Path, files: Sequence[str], draws: int, size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Letterboxed pictures, and each drawn several times in one pass and by separate operators.

    Returns:
        uint8 [pictures, size, size, 3] and twice [pictures, draws, size, size, 3].

    Raises:
        RuntimeError: a picture does not decode.
    """
    import os

    from nvidia.dali import Pipeline, fn, types

    from pipelines.augment import MEAN, STD, PictureSpec, decode, fused, fused_available, letterbox, normalise, separate
    from pipelines.draws import draw

    paths = [np.frombuffer(os.fsencode(root / file), np.uint8) for file in files for _ in range(draws)]
    numbers = draw(seed, 0, 0, len(paths), size)
    pipeline = Pipeline(batch_size=len(paths), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = decode(fn.external_source(lambda: paths, dtype=types.UINT8, ndim=1), "cpu")
        matrix = fn.external_source(lambda: numbers.matrix, dtype=types.FLOAT, ndim=2)
        colour = fn.external_source(lambda: numbers.colour, dtype=types.FLOAT, ndim=2)
        apart = separate(image, matrix, colour, size)
        at_once = fused(image, matrix, colour, PictureSpec(size)) if fused_available() else normalise(apart)
        pipeline.set_outputs(letterbox(image, size), at_once, apart)
    boxed, one_pass, several = (np.array(output.as_array()) for output in pipeline.run())
    one_pass = np.rint(one_pass * STD + MEAN).clip(0, 255).astype(np.uint8)
    shape = (len(files), draws, size, size, 3)
    return boxed[::draws], one_pass.reshape(shape), several.reshape(shape)


def _sheet(dataset: Dataset, rows: NDArray[np.int64], plan: NDArray[np.int64], arguments: Arguments) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"
    files = [dataset.files[row] for row in rows]
    boxed, one_pass, several = drawn(dataset.root, files, arguments.draws, arguments.image_size, arguments.seed)
    lines = 2 if arguments.separate else 1
    height, columns = lines * len(rows), arguments.draws + 1
    figure = Figure(figsize=(1.8 * columns, 1.9 * height + 3.2), layout="constrained")
    grid = figure.add_gridspec(height + 1, columns, height_ratios=[1.9] * height + [3.0])
    for i, row in enumerate(rows):
        labels = [name for name, has in zip(dataset.labels, dataset.targets[row], strict=True) if has]
        title = ", ".join(labels) or "(no label)"
        _show(figure.add_subplot(grid[lines * i : lines * (i + 1), 0]), boxed[i], title)
        for j in range(arguments.draws):
            _show(figure.add_subplot(grid[lines * i, j + 1]), one_pass[i, j], "in one pass" if lines == 2 else "")
            if arguments.separate:
                _show(figure.add_subplot(grid[lines * i + 1, j + 1]), several[i, j], "separate operators")
    _histogram(figure.add_subplot(grid[height, :]), dataset, plan, arguments.sampling)
    return figure


def _show(axes: "Axes", image: NDArray[np.uint8], title: str) -> None:
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_title(title if len(title) <= TITLE else title[: TITLE - 1] + "…", fontsize=7, parse_math=False)


def _histogram(axes: "Axes", dataset: Dataset, plan: NDArray[np.int64], sampling: Sampling) -> None:
    targets = dataset.targets[dataset.splits["train"]]
    before, after = targets.sum(0), targets[plan].sum(0)
    order = np.argsort(-before, kind="stable")
    left_out = max(0, len(order) - LABELS_SHOWN)
    if left_out:
        order = np.concatenate([order[: LABELS_SHOWN // 2], order[-(LABELS_SHOWN // 2) :]])
    x = np.arange(len(order))
    axes.bar(x - 0.2, before[order], 0.4, label=f"data set, {len(targets):,} pictures")
    axes.bar(x + 0.2, after[order], 0.4, label=f"an epoch, {sampling}, {len(plan):,} pictures")
    axes.set_xticks(x, [dataset.labels[i] for i in order], rotation=60, ha="right", fontsize=7, parse_math=False)
    axes.set_yscale("log")
    axes.set_ylabel("pictures")
    axes.set_title(f"labels of train{f', {left_out} of middling frequency left out' if left_out else ''}", fontsize=8)
    axes.legend(fontsize=8)


def main() -> int:
    """Parses the command line and draws; the exit status."""
    arguments = command.parse(Arguments, "python -m pipelines.preview")
    print(f"preview in {preview(arguments)}")
    return command.OK


if __name__ == "__main__":
    command.main(main)
