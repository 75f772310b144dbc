"""Pictures for the report: the most confident mistakes, and what augmentation makes of training pictures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config import Config
from engine.predicted import Predicted
from pipelines.dataset import Dataset
from pipelines.errors import InputError

EACH = 12  # mistakes of a kind
OF_A_LABEL = 2  # of them
THUMBNAIL = 176  # pixels of the longer side
SHEET, ROWS, DRAWS = 112, 4, 5  # pixels, pictures and draws of the pipeline's sheet
TOP = 3  # labels of a picture that are told beside the wrong one


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong decision.

    Attributes:
        row: of the answers.
        label: the one that is wrong.
        probability: that the network gave it.
        wrong: whether it was said wrongly; else it was missed.
    """

    row: int
    label: int
    probability: float
    wrong: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A mistake as the page has it; `picture` is a data URL, empty where the picture is not to be had.

    `likely` are the most probable other labels with their probability.
    """

    file: str
    picture: str
    label: str
    probability: float
    truth: tuple[str, ...]
    likely: tuple[tuple[str, float], ...]


def confident_mistakes(
    probabilities: NDArray[np.float32], targets: NDArray[np.bool_], thresholds: NDArray[np.float32], wrong: bool
) -> list[Mistake]:
    """What was said wrongly with the highest probability, or missed with the lowest.

    A picture is shown once, and a label OF_A_LABEL times, lest all be of one kind.

    Args:
        probabilities, targets: [rows, labels].
        thresholds: [labels].
    """
    decided = probabilities >= thresholds
    rows, columns = np.nonzero(decided & ~targets if wrong else targets & ~decided)
    confidence = probabilities[rows, columns] if wrong else -probabilities[rows, columns]
    chosen: list[Mistake] = []
    pictures: set[int] = set()
    labels: Counter[int] = Counter()
    for k in np.argsort(-confidence, kind="stable"):
        row, label = int(rows[k]), int(columns[k])
        if row in pictures or labels[label] == OF_A_LABEL:
            continue
        pictures.add(row)
        labels[label] += 1
        chosen.append(Mistake(row, label, float(probabilities[row, label]), wrong))
        if len(chosen) == EACH:
            break
    return chosen


def shown(mistakes: Sequence[Mistake], found: Predicted, labels: Sequence[str], dataset: Dataset | None) -> list[Shown]:
    """The mistakes with their pictures, where these are there."""
    urls = {} if dataset is None else _thumbnail_urls(dataset, [found.files[mistake.row] for mistake in mistakes])
    made = []
    for mistake in mistakes:
        url = urls.get(found.files[mistake.row], "")
        chances, truth = found.probabilities[mistake.row], found.targets[mistake.row]
        order = [i for i in np.argsort(-chances, kind="stable").tolist() if i != mistake.label]
        likely = [(labels[i], float(chances[i])) for i in order[:TOP]]
        true = tuple(labels[i] for i in np.flatnonzero(truth).tolist())
        made.append(
            Shown(found.files[mistake.row], url, labels[mistake.label], mistake.probability, true, tuple(likely))
        )
    return made


def _thumbnail_urls(dataset: Dataset, files: Sequence[str]) -> dict[str, str]:
    """By file, of those that the data set has still and that decode still."""
    from pipelines.check import decode_failures
    from pipelines.thumbnail import thumbnails

    known = set(dataset.files)
    there = [file for file in files if file in known]
    reasons = decode_failures([f"{dataset.root}/{file}" for file in there])
    good = [file for file, reason in zip(there, reasons, strict=True) if not reason]
    return dict(zip(good, map(data_url, thumbnails(dataset.root, good, THUMBNAIL)), strict=True))


def pipeline_sheet(dataset: Dataset, config: Config) -> list[tuple[str, list[str]]]:
    """Training pictures as an epoch begins with them: labels, and data URLs of the picture and its augmented draws."""
    from pipelines.preview import drawn, first_good
    from pipelines.sampling import epoch_rows
    from pipelines.thumbnail import thumbnails

    train = dataset.splits["train"]
    plan = epoch_rows(dataset.targets[train], config.sampling, config.seed, 0, config.oversample_target)
    try:
        rows = first_good(dataset, train[plan], ROWS)
    except InputError:  # a run on the rest of a damaged set still has its page
        return []
    files = [dataset.files[row] for row in rows]
    if config.augment:
        boxed, draws = drawn(dataset.root, files, DRAWS, SHEET, config.seed, at_once=False)
        pictures = [[boxed[i], *draws[i]] for i in range(len(files))]
    else:
        pictures = [[picture] for picture in thumbnails(dataset.root, files, SHEET)]
    names = [", ".join(np.array(dataset.labels, object)[dataset.targets[row]]) for row in rows]
    return [(name, [data_url(p) for p in line]) for name, line in zip(names, pictures, strict=True)]


def data_url(picture: NDArray[np.uint8]) -> str:
    """A uint8 RGB picture [height, width, 3] as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
