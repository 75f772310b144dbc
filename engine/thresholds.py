"""Decision thresholds of labels, tuned on validation."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

FEW_POSITIVES = 20  # a label with fewer shares the threshold that suits all labels together


def tuned_thresholds(probabilities: NDArray[np.float32], targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """[labels] thresholds of best F1; a rare label, whose own best would be chance, takes that of all labels pooled."""
    pooled = _best_threshold(probabilities.ravel(), targets.ravel())
    return np.array(
        [
            _best_threshold(probabilities[:, i], targets[:, i]) if targets[:, i].sum() >= FEW_POSITIVES else pooled
            for i in range(targets.shape[1])
        ],
        np.float32,
    )


def _best_threshold(probabilities: NDArray[np.float32], targets: NDArray[np.bool_]) -> float:
    if not targets.any():
        return 0.5
    precision, recall, thresholds = precision_recall_curve(targets, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    below = thresholds[best - 1] if best > 0 else 0.0
    return float((thresholds[best] + below) / 2)  # halfway to the next score: not on a picture's own
