"""Labels that come together, in the truth and in what the network decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHOWN = 16  # labels, the most frequent ones
PAIRS = 6  # pairs that differ most, and confusions
FEWEST = 3  # pictures of a confusion that is told


@dataclass(frozen=True, slots=True)
class Pair:
    """Two labels, and pictures with both of them in the truth and as decided."""

    first: str
    second: str
    true: int
    decided: int


@dataclass(frozen=True, slots=True)
class CoOccurrence:
    """Of the most frequent labels.

    Attributes:
        labels: their names, the most frequent first.
        true, decided: float64 [labels, labels]: of the pictures with the label of the row, the share that has that of
            the column too; nan where there are none.
        pairs: those whose number differs most.
    """

    labels: tuple[str, ...]
    true: NDArray[np.float64]
    decided: NDArray[np.float64]
    pairs: tuple[Pair, ...]


def co_occurrence(labels: Sequence[str], decided: NDArray[np.bool_], targets: NDArray[np.bool_]) -> CoOccurrence:
    """Of decisions and truth, [pictures, labels]."""
    order = np.argsort(-targets.sum(0), kind="stable")[:SHOWN]
    true, said = (matrix[:, order].astype(np.int64) for matrix in (targets, decided))
    together_true, together_said = true.T @ true, said.T @ said
    first, second = np.triu_indices(len(order), 1)
    difference = np.abs(together_said - together_true)[first, second]
    largest = [k for k in np.argsort(-difference, kind="stable")[:PAIRS] if difference[k]]
    names = [labels[i] for i in order]
    pairs = [
        Pair(names[i], names[j], int(together_true[i, j]), int(together_said[i, j]))
        for i, j in zip(first[largest], second[largest], strict=True)
    ]
    return CoOccurrence(tuple(names), _conditional(together_true), _conditional(together_said), tuple(pairs))


def _conditional(together: NDArray[np.int64]) -> NDArray[np.float64]:
    own = together.diagonal().astype(np.float64)[:, None]
    shares: NDArray[np.float64] = np.divide(together, own, out=np.full(together.shape, np.nan), where=own > 0)
    return shares


def confusions(
    labels: Sequence[str], decided: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> list[tuple[str, str, int]]:
    """(missed label, label said in its place, pictures), the most frequent first: where one was missed and the other
    said wrongly in the same picture."""
    # In float32, by BLAS: exact up to 2^24 pictures, and thousands of labels take seconds, not minutes.
    missed, wrong = (targets & ~decided).astype(np.float32), (decided & ~targets).astype(np.float32)
    count = (missed.T @ wrong).astype(np.int64)
    order = np.argsort(-count, axis=None, kind="stable")[:PAIRS]
    places = [np.unravel_index(k, count.shape) for k in order]
    return [(labels[i], labels[j], int(count[i, j])) for i, j in places if count[i, j] >= FEWEST]
