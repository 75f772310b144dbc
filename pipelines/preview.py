"""python -m pipelines.preview: a sheet of what the network sees, and of what sampling makes of the labels."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from pipelines import command
from pipelines.dataset import Dataset, Layout
from pipelines.errors import InputError
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
    from pipelines.progress import bar, say
    from pipelines.read import read_dataset

    for name in ("pictures", "draws", "image_size", "oversample_target"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if not arguments.out.suffix:  # one would be put to it
        raise InputError(f"--out {arguments.out}: the file's name must end in .png, .pdf or .svg")
    with bar("checking pictures") as advance:
        dataset = read_dataset(
            arguments.data,
            arguments.format,
            seed=arguments.seed,
            allow_bad=True,
            progress=lambda done, total: advance(done, total, ""),
        )
    for line in dataset.told():
        say(line)
    train = dataset.splits["train"]
    plan = epoch_rows(dataset.targets[train], arguments.sampling, arguments.seed, 0, arguments.oversample_target)
    figure = _sheet(dataset, first_good(dataset, train[plan], arguments.pictures), plan, arguments)
    try:
        with warnings.catch_warnings(action="ignore"):  # of letters that the font has not
            figure.savefig(arguments.out, dpi=100)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise InputError(f"{arguments.out}: cannot be written: {why or error}") from None
    return arguments.out


def first_good(dataset: Dataset, rows: NDArray[np.int64], wanted: int) -> list[int]:
    """The first rows whose pictures decode, each once.

    Raises:
        InputError: none does.
    """
    from pipelines.check import decode_failures

    order, good = list(dict.fromkeys(rows.tolist())), list[int]()
    while order and len(good) < wanted:
        tried, order = order[:wanted], order[wanted:]
        reasons = decode_failures([f"{dataset.root}/{dataset.files[row]}" for row in tried])
        good += [row for row, reason in zip(tried, reasons, strict=True) if not reason]
    if not good:
        raise InputError(f"{dataset.root}: none of the training pictures can be decoded")
    return good[:wanted]


def drawn(
    root: Path, files: Sequence[str], draws: int, size: int, seed: int, at_once: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Letterboxed pictures, and each drawn several times.

    Args:
        at_once: in one pass, as training on the CPU does, where that loads; else by separate operators, which draw the
            same within rounding and need not be compiled first.

    Returns:
        uint8 [pictures, size, size, 3] and [pictures, draws, size, size, 3].

    Raises:
        RuntimeError: a picture does not decode.
    """
    from nvidia.dali import Pipeline, fn, types

    from pipelines import augment
    from pipelines.augment import MEAN, STD, PictureSpec
    from pipelines.draws import draw
    from pipelines.shards import read_or_none

    contents = [content for file in files for content in [read_or_none(f"{root}/{file}")] * draws]
    numbers = draw(seed, 0, 0, len(contents), size)
    pipeline = Pipeline(batch_size=len(contents), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = augment.decode_bytes(fn.external_source(lambda: contents, dtype=types.UINT8, ndim=1), "cpu")
        matrix = fn.external_source(lambda: numbers.matrix, dtype=types.FLOAT, ndim=2)
        colour = fn.external_source(lambda: numbers.colour, dtype=types.FLOAT, ndim=2)
        if at_once and augment.fused_available():
            made = augment.fused(image, matrix, colour, PictureSpec(size))
        else:
            made = augment.normalise(augment.separate(image, matrix, colour, size))
        pipeline.set_outputs(augment.letterbox(image, size), made)
    boxed, normalised = (np.array(output.as_array()) for output in pipeline.run())
    pictures = np.rint(normalised * STD + MEAN).clip(0, 255).astype(np.uint8)
    return boxed[::draws], pictures.reshape(len(files), draws, size, size, 3)


def _sheet(dataset: Dataset, rows: Sequence[int], plan: NDArray[np.int64], arguments: Arguments) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"
    files = [dataset.files[row] for row in rows]
    chosen = dataset.root, files, arguments.draws, arguments.image_size, arguments.seed
    boxed, one_pass = drawn(*chosen)
    several = drawn(*chosen, at_once=False)[1] if arguments.separate else one_pass
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
    from pipelines.progress import say

    arguments = command.parse(Arguments, "python -m pipelines.preview")
    say(f"preview in {preview(arguments)}")
    return command.OK


if __name__ == "__main__":
    command.main(main)
