"""Decision thresholds of labels, tuned on validation with a guard against chance.

The threshold of best F1 of a label with few pictures is mostly chance, and low ones cost many false alarms (Lipton,
Elkan and Naryanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014). So each label's own
threshold is drawn towards the one that is best for all answers together, the more so the fewer pictures it has: between
both, in log-odds, it lies where `strength` pictures more with the common threshold would put it.

The strength is chosen by cross-validation, as thresholds are in Fan and Lin, "A Study on Threshold Selection for
Multi-label Classification", 2007: of those that cost no micro-F1 against 0.5 on pictures that were not tuned on, the
one of the highest micro-F1 and macro-F1 together. Where all of them cost some, 0.5 stays.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, math.inf)
FOLDS, REPEATS = 5, 3
SURE = 1e-6  # probabilities nearer to 0 or 1 count as this

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answers from the most to the least probable, with their truth and the rows that they are of."""

    scores: Floats
    targets: NDArray[np.bool_]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[np.float32], targets: NDArray[np.bool_], rows: NDArray[np.int64]) -> "Ranked":
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order].astype(np.float64), targets[order], rows[order])

    def best(self, used: NDArray[np.bool_]) -> float:
        """The threshold of best F1 on the rows used; nan where none of their answers is true."""
        kept = used[self.rows]
        scores, targets = self.scores[kept], self.targets[kept]
        positive = targets.sum()
        if not positive:
            return math.nan
        f1 = 2 * np.cumsum(targets) / (np.arange(1, len(scores) + 1) + positive)
        f1[:-1][scores[:-1] == scores[1:]] = 0  # equal scores are decided alike
        best = int(f1.argmax())
        following = scores[best + 1] if best + 1 < len(scores) else 0.0
        return float((scores[best] + following) / 2)  # halfway to the next score: not on a picture's own


def tuned_thresholds(
    probabilities: NDArray[np.float32], targets: NDArray[np.bool_], seed: int = 0
) -> NDArray[np.float32]:
    """[labels] thresholds, tuned on [rows, labels]; `seed` is of the folds."""
    count, labels = targets.shape
    if not targets.any():
        return np.full(labels, 0.5, np.float32)
    rows = np.arange(count)
    single = [Ranked.of(probabilities[:, i], targets[:, i], rows) for i in range(labels)]
    together = Ranked.of(probabilities.ravel(), targets.ravel(), np.repeat(rows, labels))
    strength = _strength(probabilities, targets, single, together, seed)
    if strength is None:
        return np.full(labels, 0.5, np.float32)
    own, common, positive = _fitted(single, together, targets, np.ones(count, bool))
    return shrunk(own, common, positive, strength).astype(np.float32)


def shrunk(own: Floats, common: float, positive: NDArray[np.int64], strength: float) -> Floats:
    """Own thresholds [labels] drawn towards the common one; `positive` [labels] are the pictures they were tuned on.

    A label whose own threshold is nan takes the common one.
    """
    odds = _log_odds(np.where(np.isnan(own), common, own))
    share = positive / (positive + strength) if math.isfinite(strength) else np.zeros(len(own))
    return 1 / (1 + np.exp(-(share * odds + (1 - share) * _log_odds(np.array(common)))))


def _log_odds(probability: Floats) -> Floats:
    held = np.clip(probability, SURE, 1 - SURE)
    odds: Floats = np.log(held / (1 - held))
    return odds


def _fitted(
    single: list[Ranked], together: Ranked, targets: NDArray[np.bool_], used: NDArray[np.bool_]
) -> tuple[Floats, float, NDArray[np.int64]]:
    """Own thresholds, the common one, and true answers a label, of the rows used."""
    common = together.best(used)
    return (
        np.array([ranked.best(used) for ranked in single]),
        0.5 if math.isnan(common) else common,
        targets[used].sum(0),
    )


def _strength(
    probabilities: NDArray[np.float32], targets: NDArray[np.bool_], single: list[Ranked], together: Ranked, seed: int
) -> float | None:
    """The strength that cross-validation chooses; None where each costs micro-F1 against 0.5."""
    rng = np.random.default_rng(seed)
    positive = targets.sum(0)
    micro, macro = np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    for _ in range(REPEATS):
        fold = rng.permutation(len(targets)) % FOLDS
        counts = np.zeros((len(STRENGTHS), 2, targets.shape[1]))  # of hits and of decisions
        for number in range(min(FOLDS, len(targets))):
            held = fold == number
            fitted = _fitted(single, together, targets, ~held)
            for i, strength in enumerate(STRENGTHS):
                counts[i] += _counts(probabilities[held], targets[held], shrunk(*fitted, strength))
        for i, (hits, decided) in enumerate(counts):
            micro[i] += 2 * hits.sum() / (decided + positive).sum() / REPEATS
            macro[i] += np.mean(2 * hits / np.maximum(1, decided + positive)) / REPEATS
    hits, decided = _counts(probabilities, targets, np.full(targets.shape[1], 0.5))
    free = micro >= 2 * hits.sum() / (decided + positive).sum()
    return STRENGTHS[int(np.where(free, micro + macro, -1.0).argmax())] if free.any() else None


def _counts(probabilities: NDArray[np.float32], targets: NDArray[np.bool_], thresholds: Floats) -> NDArray[np.int64]:
    """[2, labels]: decisions that are right, and all decisions."""
    decided = probabilities >= thresholds.astype(np.float32)
    return np.stack([(decided & targets).sum(0), decided.sum(0)])
