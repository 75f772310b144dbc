"""The content of report.json: every figure of a network's answers on a split."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bootstrap import DRAWS, LEVEL, SEED, resampled
from engine.calibration import calibration
from engine.metrics import average_precision, per_label, scores

HEADLINE = ("micro_f1", "macro_f1", "map")
OF_LABELS = ("precision", "recall", "f1", "ap")


def figures(
    labels: Sequence[str],
    probabilities: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: Sequence[float],
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Any]:
    """Figures at 0.5 and, below `tuned` and `labels_tuned`, at the thresholds, each with its bootstrap interval.

    Args:
        labels: names.
        probabilities, targets: [rows, labels].
        thresholds: tuned ones, in the order of the labels.
        draws, seed: of the bootstrap; without draws no intervals.
    """
    at = (0.5, np.array(thresholds, np.float32))
    ap = average_precision(probabilities, targets)
    half, tuned = (_at(labels, probabilities, targets, threshold, ap) for threshold in at)
    if draws and len(targets):
        for part, draw in zip((half, tuned), resampled(probabilities, targets, at, draws, seed), strict=True):
            _add_intervals(part, draw.intervals(part["map"]))
    rows = half.pop("labels")
    return {
        "rows": len(targets),
        **half,
        "calibration_error": calibration(probabilities, targets).error,
        "bootstrap": {"draws": draws, "seed": seed, "level": LEVEL},
        "tuned": {name: value for name, value in tuned.items() if name != "labels"},
        "labels": rows,
        "labels_tuned": tuned["labels"],
    }


def _at(
    labels: Sequence[str],
    probabilities: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: Any,
    ap: NDArray[np.float64],
) -> dict[str, Any]:
    figures: dict[str, Any] = asdict(scores(probabilities, targets, thresholds, ap))
    figures["labels"] = per_label(tuple(labels), probabilities, targets, thresholds, ap)
    return figures


def _add_intervals(figures: dict[str, Any], found: dict[str, Any]) -> None:
    figures["intervals"] = {name: _pair(found[name]) for name in HEADLINE}
    for i, row in enumerate(figures["labels"]):
        row["intervals"] = {name: _pair(found[name][i]) for name in OF_LABELS}


def _pair(interval: NDArray[np.float64]) -> list[float] | None:
    return None if np.isnan(interval).any() else [float(end) for end in interval]
