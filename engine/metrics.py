"""Figures of merit for multi-label predictions, from a library."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support


@dataclass(frozen=True, slots=True)
class Scores:
    """micro_f1 and macro_f1 at the thresholds given; mean average precision over labels that occur."""

    micro_f1: float
    macro_f1: float
    map: float


def scores(
    probabilities: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: Any = 0.5,
    ap: NDArray[np.float64] | None = None,
) -> Scores:
    """Scores of [rows, labels] probabilities; a label that neither occurs nor is predicted counts 0 in macro_f1.

    `ap` is the average precision, where it is known already.
    """
    decided = probabilities >= thresholds
    ap = average_precision(probabilities, targets) if ap is None else ap
    return Scores(
        float(_counted(targets, decided, "micro")[2]),
        float(_counted(targets, decided, "macro")[2]),
        float(np.nanmean(ap)) if targets.any() else 0.0,
    )


def _counted(targets: NDArray[np.bool_], decided: NDArray[np.bool_], average: str | None) -> Any:
    """precision, recall, F1 and support; an empty column beside, lest one label alone be taken for two classes."""
    pair = (np.pad(matrix, ((0, 0), (0, 1))) for matrix in (targets, decided))
    return precision_recall_fscore_support(*pair, average=average, zero_division=0, labels=range(targets.shape[1]))


def average_precision(probabilities: NDArray[np.float32], targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[labels]; nan for a label without a positive row."""
    return np.array(
        [
            average_precision_score(targets[:, i], probabilities[:, i]) if targets[:, i].any() else np.nan
            for i in range(targets.shape[1])
        ]
    )


def per_label(
    labels: tuple[str, ...],
    probabilities: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: Any = 0.5,
    ap: NDArray[np.float64] | None = None,
) -> list[dict[str, Any]]:
    """precision, recall, f1, ap and support of each label, in label order; ap is None without a positive row."""
    precision, recall, f1, support = _counted(targets, probabilities >= thresholds, None)
    ap = average_precision(probabilities, targets) if ap is None else ap
    return [
        {
            "label": label,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "ap": None if np.isnan(ap[i]) else float(ap[i]),
            "support": int(support[i]),
        }
        for i, label in enumerate(labels)
    ]
