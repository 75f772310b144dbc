"""Whether an ONNX file answers as the network that it was made from, on pictures of the data set."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.answers import predict
from engine.classifier import Classifier
from engine.config import Config
from engine.device import decide
from engine.metrics import scores
from engine.model_file import Description, Precision
from engine.thresholds import tuned_thresholds
from engine.trained import Trained
from pipelines.augment import PictureSpec
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.inference import Photographs
from pipelines.loader import evaluation_stream
from pipelines.shards import as_files

TOLERANCE: dict[tuple[Precision, bool], float] = {
    ("fp32", False): 1e-4,
    ("fp32", True): 2e-2,  # the letterbox in the file rounds some pixels to the neighbouring value
    ("fp16", False): 2e-2,
    ("fp16", True): 4e-2,
}
COMPARED = 64  # pictures
MEASURED = 2000  # pictures, where micro-F1 is to be measured
CALIBRATION = 256  # pictures
BATCH = 16


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a file's answers are from the network's.

    Attributes:
        pictures: compared.
        largest, mean: difference of probabilities.
        micro_f1: at 0.5, of the network and of the file.
        tuned: the same at `thresholds_of_the_others`.
    """

    pictures: int
    largest: float
    mean: float
    micro_f1: tuple[float, float]
    tuned: tuple[float, float]

    @property
    def f1_loss(self) -> float:
        """Points of micro-F1 that the file has less, at 0.5 or at tuned thresholds, whichever costs more."""
        return 100 * max(before - after for before, after in (self.micro_f1, self.tuned))

    def line(self) -> str:
        (half, half_after), (tuned, tuned_after) = self.micro_f1, self.tuned
        return (
            f"on {self.pictures:,} pictures: probabilities differ by {self.largest:.1e} at most, {self.mean:.1e} on "
            f"average; micro-F1 {half:.4f} → {half_after:.4f} at 0.5, {tuned:.4f} → {tuned_after:.4f} at "
            "thresholds tuned on other pictures"
        )


def compare(
    content: bytes,
    description: Description,
    trained: Trained,
    dataset: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Runs validation pictures through the file, as inference does, and through the network, as evaluation does.

    Raises:
        InputError: a picture that is gone, or answers that are not numbers, as of half precision that overflows.
    """
    count = MEASURED if description.precision == "int8" else COMPARED
    rows = dataset.splits["val"][:count]
    placement = decide("cpu", False, "off")
    stream = evaluation_stream(dataset.root, dataset.files, rows, BATCH, placement.spec(trained.config.image_size))
    steps = 2 * len(rows)
    with torch.inference_mode():
        logits, rows = predict(
            trained.network,
            stream,
            placement,
            len(trained.labels),
            progress=lambda done: progress(done * BATCH, steps),
        )
    expected = torch.sigmoid(logits).numpy()
    classifier = Classifier.of(content, description, "cpu", BATCH)
    answers, read = np.zeros_like(expected), np.zeros(len(expected), bool)
    with as_files(dataset.root, [dataset.files[row] for row in rows]) as paths:
        for found in classifier.stream(paths):
            answers[found.readable], read[found.readable] = found.probabilities, True
            progress(len(rows) + found.numbers.stop, steps)
    if not read.all():
        raise InputError(f"{dataset.root}: {dataset.files[rows[np.argmin(read)]]} can no longer be read")
    wrong = int((~np.isfinite(answers).all(1)).sum())
    if wrong:
        raise InputError(
            f"in {description.precision} the answers for {wrong} of {len(answers)} pictures are not numbers; "
            f"nothing was written"
        )
    targets, difference = dataset.targets[rows], np.abs(answers - expected)
    pairs = [
        (scores(expected, targets, at).micro_f1, scores(answers, targets, at).micro_f1)
        for at in (0.5, thresholds_of_the_others(expected, targets))
    ]
    return Parity(len(rows), float(difference.max()), float(difference.mean()), pairs[0], pairs[1])


def thresholds_of_the_others(probabilities: NDArray[np.float32], targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[rows, labels]: for each half of the rows those that suit the other half best.

    The run's own thresholds are the best there are for these very pictures: any change at all, noise too, would look
    like a loss there.
    """
    thresholds = np.empty_like(probabilities)
    for half in (0, 1):
        thresholds[half::2] = tuned_thresholds(probabilities[1 - half :: 2], targets[1 - half :: 2])
    return thresholds


def calibration_pictures(dataset: Dataset, config: Config) -> NDArray[np.uint8]:
    """[N, size, size, 3] training pictures, drawn with the run's seed."""
    rows = np.random.default_rng(config.seed).permutation(dataset.splits["train"])[:CALIBRATION]
    spec = PictureSpec(config.image_size, threads=torch.get_num_threads())
    with as_files(dataset.root, [dataset.files[row] for row in rows]) as paths:
        batches = [np.array(p.images.as_tensor()) for p in Photographs(paths, BATCH, spec) if p.readable]
    if not batches:
        raise InputError(f"{dataset.root}: none of its training pictures can be read")
    pictures: NDArray[np.uint8] = np.concatenate(batches)
    return pictures
