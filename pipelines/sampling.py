"""The sampling plan: which row stands where in an epoch. Pure functions of labels, strategy, seed and epoch."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Sampling = Literal["uniform", "oversample", "weighted", "repeat-factor"]

STUDY_TARGET, STUDY_ROWS = 2500, 30_000


def oversample_target(rows: int) -> int:
    """The study's target of 2,500 pictures a label of its 30,000, scaled down in proportion for smaller data sets."""
    return max(1, round(STUDY_TARGET * min(1.0, rows / STUDY_ROWS)))


def repeats(targets: NDArray[np.bool_], target: int, seed: int) -> NDArray[np.int64]:
    """How often each row stands in an oversampled epoch: at least once, and each label `target` times or more.

    The fewest rows that do it, if none may stand there more often than its rarest label needs were all of that label's
    rows repeated alike: without that limit, one picture of many rare labels would be shown hundreds of times. Rows of
    the same labels are alike: a linear programme finds how many each kind adds (HiGHS: Huangfu and Hall,
    "Parallelizing the dual revised simplex method", 2018); rounding up what is not whole costs at most a row a label.

    Args:
        targets: bool [rows, labels].
        target: pictures that each label shall have; a label without any picture stays without.
        seed: decides between equal rows.
    """
    count = np.ones(len(targets), np.int64)
    have = targets.sum(0).astype(np.int64)
    lacking = np.flatnonzero((have < target) & (have > 0))
    rows = np.flatnonzero(targets[:, lacking].any(1))
    if not len(rows):
        return count
    others = targets[rows].sum(1) - targets[np.ix_(rows, lacking)].sum(1)
    packed = np.packbits(targets[np.ix_(rows, lacking)], axis=1)  # sets of thousands of labels take memory
    kinds, kind, size = np.unique(np.column_stack([packed, others]), axis=0, return_inverse=True, return_counts=True)
    has = np.unpackbits(kinds[:, :-1].astype(np.uint8), axis=1, count=len(lacking)).astype(bool)
    others = kinds[:, -1]
    most = np.where(has, -(-target // have[lacking]) - 1, 0).max(1) * size
    added = _fewest(has, target - have[lacking], most, others)

    order = np.random.default_rng((seed, 1)).permutation(len(rows))
    order = order[np.argsort(kind.ravel()[order], kind="stable")]  # kind by kind, equal rows in random order
    place = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
    each = np.repeat(added // size, size) + (place < np.repeat(added % size, size))
    count[rows[order]] += each
    return count


def _fewest(
    has: NDArray[np.bool_], lacking: NDArray[np.int64], most: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The fewest rows of each kind, `most` at most, that add what each label lacks; rather those with few other labels.

    Args:
        has: bool [kinds, labels].
        lacking: pictures that each label lacks.
        most: rows of each kind that may be added.
        others: labels of each kind that lack nothing.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    cost = 1 + 1e-4 * others
    bounds = np.column_stack([np.zeros(len(most)), most])
    at_least = csr_array(-has.T.astype(float))
    solved = linprog(cost, A_ub=at_least, b_ub=-lacking.astype(float), bounds=bounds, method="highs-ds")
    added: NDArray[np.int64] = np.minimum(most, np.ceil(solved.x - 1e-6).astype(np.int64))
    spare = added @ has - lacking
    for kind in np.argsort(-cost, kind="stable"):  # what rounding up made superfluous
        if added[kind]:
            fewer = min(int(added[kind]), int(spare[has[kind]].min()))
            if fewer > 0:
                added[kind] -= fewer
                spare = spare - fewer * has[kind]
    return added


def repeat_factors(targets: NDArray[np.bool_], target: int) -> NDArray[np.float64]:
    """How often each row is repeated on average: by √(target / pictures of its rarest label), at least once.

    Gupta, Dollár and Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", 2019, section 5.2; their
    threshold on a label's frequency is target / rows.

    Args:
        targets: bool [rows, labels].
        target: pictures of a label from which on it is not repeated.
    """
    have = np.maximum(1, targets.sum(0))
    factor = np.maximum(1.0, np.sqrt(target / have))
    rows: NDArray[np.float64] = np.where(targets, factor, 1.0).max(1, initial=1.0)
    return rows


def _drawn_counts(factors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Each factor rounded up or down by chance, in its proportion; the sum is the same in all draws.

    What goes beyond 1 is scaled so that the sum is whole, and dealt out in one sweep over rows in random order.
    """
    rows, beyond = len(factors), factors - 1
    extra = round(float(beyond.sum()))
    if not extra:
        return np.ones(rows, np.int64)
    order = rng.permutation(rows)
    reached = np.cumsum(beyond[order]) * (extra / beyond.sum())
    reached[-1] = extra
    counts = np.empty(rows, np.int64)
    counts[order] = 1 + np.diff(np.floor(reached + rng.random()), prepend=0).astype(np.int64)
    return counts


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
            replacement as there are rows, by `draw_weights`; "repeat-factor": by `repeat_factors`, rounded anew each
            epoch.
        seed, epoch: decide the order and the draws.
        target: pictures a label for "oversample" and "repeat-factor"; by default `oversample_target`.
    """
    rng = np.random.default_rng((seed, epoch, 0))
    rows = len(targets)
    if strategy == "weighted":
        return rng.choice(rows, size=rows, p=draw_weights(targets))
    wanted = oversample_target(rows) if target is None else target
    if strategy == "repeat-factor":
        return rng.permutation(np.repeat(np.arange(rows), _drawn_counts(repeat_factors(targets, wanted), rng)))
    if strategy == "oversample":
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
    """Positions of a rank's share of one step: the ranks' shares lie side by side, whatever their number, and differ by
    one at most.

    Args:
        step: number of the step in the epoch.
        batch: pictures a step of all ranks together.
    """
    return slice(step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks)
