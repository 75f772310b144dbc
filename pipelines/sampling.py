"""The sampling plan: which row stands where in an epoch. Pure functions of labels, strategy, seed and epoch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["uniform", "oversample", "weighted"]

STUDY_TARGET, STUDY_ROWS = 2500, 30_000


def oversample_target(rows: int) -> int:
    """The study's target of 2,500 pictures a label of its 30,000, scaled down in proportion for smaller data sets."""
    return max(1, round(STUDY_TARGET * min(1.0, rows / STUDY_ROWS)))


def repeats(targets: NDArray[np.bool_], target: int, seed: int) -> NDArray[np.int64]:
    """How often each row stands in an oversampled epoch: at least once, and each label `target` times or more.

    The rarest label goes first; its rows are repeated as evenly as can be, those with few frequent labels before
    others. What its rows add to other labels counts for these.

    Args:
        targets: bool [rows, labels].
        target: pictures that each label shall have; a label without any picture stays without.
        seed: decides between equal rows.
    """
    count = np.ones(len(targets), np.int64)
    have = targets.sum(0).astype(np.int64)
    frequency = targets @ have
    ties = np.random.default_rng((seed, 1)).permutation(len(targets))
    for label in np.argsort(have, kind="stable"):
        rows = np.flatnonzero(targets[:, label])
        lacking = target - int(have[label])
        if lacking <= 0 or not len(rows):
            continue
        rows = rows[np.lexsort((ties[rows], frequency[rows]))]
        added = np.full(len(rows), lacking // len(rows), np.int64)
        added[: lacking % len(rows)] += 1
        count[rows] += added
        have += added @ targets[rows]
    return count


def draw_weights(targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probability of each row in weighted sampling: in proportion to 1 / pictures of the row's rarest label.

    A row without labels weighs as much as one of the most frequent label.
    """
    have = targets.sum(0).astype(np.float64)
    rarest = np.where(targets, have, np.inf).min(1, initial=np.inf)
    weights = 1 / np.where(np.isfinite(rarest), rarest, max(1.0, have.max(initial=1.0)))
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised


def epoch_rows(
    targets: NDArray[np.bool_], strategy: Sampling, seed: int, epoch: int, target: int | None = None
) -> NDArray[np.int64]:
    """Row numbers of one epoch, in order.

    Args:
        targets: bool [rows, labels] of the training rows.
        strategy: "uniform": each row once; "oversample": as `repeats` says; "weighted": as many draws with
            replacement as there are rows, by `draw_weights`.
        seed, epoch: decide the order and the draws.
        target: pictures a label for "oversample"; by default `oversample_target`.
    """
    rng = np.random.default_rng((seed, epoch, 0))
    rows = len(targets)
    if strategy == "weighted":
        return rng.choice(rows, size=rows, p=draw_weights(targets))
    if strategy == "oversample":
        wanted = oversample_target(rows) if target is None else target
        return rng.permutation(np.repeat(np.arange(rows), repeats(targets, wanted, seed)))
    return rng.permutation(rows)


def positive_weights(targets: NDArray[np.bool_], limit: float = 20.0) -> NDArray[np.float32]:
    """Weight of each label's positive cases in the loss: negatives / positives, clipped to [1/limit, limit]."""
    positives = targets.sum(0)
    ratio = (len(targets) - positives) / np.maximum(positives, 1)
    weights: NDArray[np.float32] = np.clip(ratio, 1 / limit, limit).astype(np.float32)
    return weights


def label_odds(targets: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Odds of each label, positives / negatives of bool [rows, labels]; half a picture more on both sides."""
    positives = targets.sum(0)
    odds: NDArray[np.float32] = ((positives + 0.5) / (len(targets) - positives + 0.5)).astype(np.float32)
    return odds


def rank_slice(step: int, batch: int, rank: int = 0, ranks: int = 1) -> slice:
    """Positions of a rank's share of one step: the ranks' batches lie side by side, whatever their number.

    Args:
        step: number of the step in the epoch.
        batch: pictures a step of all ranks together; a multiple of `ranks`.
    """
    share = batch // ranks
    start = step * batch + rank * share
    return slice(start, start + share)
