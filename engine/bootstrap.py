"""Confidence intervals by the bootstrap: how much figures would move with another draw of as many pictures.

Pictures are drawn with replacement, all labels of a picture together, and the figures worked out anew; an interval
lies between the percentiles of the results (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13). A draw is how often each picture is in it, so that counts are a product of matrices. Training is not repeated: what
another seed would change is not in the interval.

Average precision of few pictures is too high on average, and that of draws, where pictures come twice, once more. Over
many labels this adds up: percentiles of mAP would mostly lie above the truth. Its interval is the basic one, with the
percentiles mirrored at the figure itself (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, 5.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED, LEVEL = 1000, 0, 0.95
FEWEST_DRAWS = 200  # where there are many answers
AFFORDABLE = 400_000_000  # answers of all draws, about ten seconds
CHUNK = 1 << 24  # numbers that are held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampled:
    """Figures of each draw.

    Attributes:
        micro_f1, macro_f1, map: [draws]; map is nan where no label occurs.
        precision, recall, f1, ap: [draws, labels]; ap is nan where the label does not occur in the draw.
    """

    micro_f1: Floats
    macro_f1: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    map: Floats
    ap: Floats

    def intervals(self, map: float, level: float = LEVEL) -> dict[str, Any]:
        """(lower, upper) of each figure by its name, [labels, 2] for those of labels; nan where it is never defined.

        `map` is that of the pictures as they are, and always within its interval.
        """
        found = {field.name: _interval(getattr(self, field.name), level) for field in fields(self)}
        low, high = np.clip(2 * map - found["map"][::-1], 0, 1)
        return {**found, "map": np.array([np.fmin(low, map), np.fmax(high, map)])}


def resampled(
    probabilities: NDArray[np.float32],
    targets: NDArray[np.bool_],
    thresholds: Sequence[Any] = (0.5,),
    draws: int = DRAWS,
    seed: int = SEED,
) -> list[Resampled]:
    """The figures of bootstrap draws of the rows of [rows, labels], as engine.metrics defines them.

    Args:
        thresholds: each a number or [labels]; the draws are the same for all of them.

    Returns:
        A result for each of `thresholds`.
    """
    decided = [probabilities >= at for at in thresholds]
    parts: list[list[tuple[Floats, ...]]] = [[] for _ in decided]
    for weights in _weights(len(targets), draws, seed):
        ranked = _ranking_figures(weights, probabilities, targets)
        for part, matrix in zip(parts, decided, strict=True):
            part.append((*_counted_figures(weights, matrix, targets), *ranked))
    return [Resampled(*(np.concatenate(columns) for columns in zip(*part, strict=True))) for part in parts]


def affordable_draws(rows: int, labels: int) -> int:
    """DRAWS, or fewer where that many would take long."""
    return max(FEWEST_DRAWS, min(DRAWS, AFFORDABLE // max(1, rows * labels)))


def _weights(rows: int, draws: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each row is in each draw, [some draws, rows]."""
    rng = np.random.default_rng(seed)
    most = max(1, CHUNK // max(1, rows))
    for first in range(0, draws, most):
        count = min(most, draws - first)
        drawn = rng.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float32)


def _counted_figures(
    weights: NDArray[np.float32], decided: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> tuple[Floats, ...]:
    """micro-F1, macro-F1, precision, recall and F1."""
    hits, predicted, positive = (
        (weights @ matrix.astype(np.float32)).astype(np.float64) for matrix in (decided & targets, decided, targets)
    )
    f1 = _share(2 * hits, predicted + positive)
    micro = _share(2 * hits.sum(1), (predicted + positive).sum(1))
    return micro, f1.mean(1), _share(hits, predicted), _share(hits, positive), f1


def _ranking_figures(
    weights: NDArray[np.float32], probabilities: NDArray[np.float32], targets: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """mAP and average precision."""
    by_row = np.ascontiguousarray(weights.T)
    ap = np.stack([_average_precision(by_row, p, t) for p, t in zip(probabilities.T, targets.T, strict=True)], axis=1)
    return _mean_of_defined(ap), ap


def _average_precision(by_row: NDArray[np.float32], scores: NDArray[np.float32], targets: NDArray[np.bool_]) -> Floats:
    """[draws] of one label, [rows, draws] saying how often each row counts; rows of one score count together."""
    draws = by_row.shape[1]
    if not targets.any():
        return np.full(draws, np.nan)
    order = np.argsort(-scores, kind="stable")
    tie = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])  # number of the score, from the highest
    hits = np.flatnonzero(targets[order])
    ties, first = np.unique(tie[hits], return_index=True)
    ends = np.searchsorted(tie, ties, side="right")  # rows down to and with each score that a positive row has
    found = np.add.reduceat(by_row[order[hits]], first, dtype=np.float64)
    seen = np.cumsum(np.add.reduceat(by_row[order], np.concatenate([[0], ends[:-1]]), dtype=np.float64)[: len(ends)], 0)
    if ends[-1] < len(order):  # the last segment ran on to the lowest score, where no positive is
        seen[-1] -= by_row[order[ends[-1] :]].sum(0, dtype=np.float64)
    precision = _share(np.cumsum(found, 0), seen)
    total = found.sum(0)
    return np.where(total > 0, _share((found * precision).sum(0), total), np.nan)


def _share(part: Floats, whole: Floats) -> Floats:
    """part / whole; 0 of nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the second axis of what is not nan; nan where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(1).astype(np.float64)
    return np.where(count > 0, _share(np.where(defined, values, 0.0).sum(1), count), np.nan)


def _interval(values: Floats, level: float) -> Floats:
    """[2] or [labels, 2]: percentiles over the draws in which the figure is defined."""
    ends = [50 * (1 - level), 50 * (1 + level)]
    if not np.isnan(values).any():
        return np.moveaxis(np.percentile(values, ends, axis=0), 0, -1)
    columns = [column[~np.isnan(column)] for column in values.reshape(len(values), -1).T]
    found = [np.percentile(column, ends) if len(column) else np.full(2, np.nan) for column in columns]
    return np.array(found).reshape(*values.shape[1:], 2)
