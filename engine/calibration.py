"""Whether probabilities mean what they say: of the answers of 70 %, are 70 % right?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """Answers sorted into bins of equal width by their probability.

    Attributes:
        count: int64 [bins], answers in each.
        said: float64 [bins], their mean probability; nan in an empty bin.
        true: float64 [bins], share of them that is right; nan in an empty bin.
        error: expected calibration error: |said - true|, the mean over answers.
    """

    count: NDArray[np.int64]
    said: NDArray[np.float64]
    true: NDArray[np.float64]
    error: float


def calibration(probabilities: NDArray[np.float32], targets: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Of [rows, labels], all answers together; where there is none, the error is 0.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017, with a yes or no a label in
    place of their classes.
    """
    probability = probabilities.ravel().astype(np.float64)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    said, true = (np.bincount(place, weights=x.ravel(), minlength=bins) for x in (probability, targets))
    error = np.abs(said - true).sum() / max(1, count.sum())
    with np.errstate(invalid="ignore"):
        return Calibration(count, said / count, true / count, float(error))
