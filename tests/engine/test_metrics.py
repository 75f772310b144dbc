"""Figures of merit in ordinary and degenerate cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from engine.metrics import average_precision, per_label, scores
from tests.engine.answers import Answers, answers


def test_scores_of_a_small_table_by_hand() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    probabilities = np.array([[0.9, 0.6], [0.4, 0.7], [0.8, 0.2], [0.1, 0.3]], np.float32)
    got = scores(probabilities, targets)
    # label 0: 1 hit, 1 false alarm, 1 miss; label 1: the same
    assert got.micro_f1 == pytest.approx(0.5)
    assert got.macro_f1 == pytest.approx(0.5)
    # label 0: 0.9 hit, 0.8 no, 0.4 hit: (1 + 2/3) / 2; label 1: 0.7 hit, 0.6 no, 0.3 hit
    assert got.map == pytest.approx((1 + 2 / 3) / 2)


def test_a_single_label_by_hand() -> None:
    """One column is a label with and without, not two classes that count alike."""
    probabilities = np.array([[0.9], [0.8], [0.2], [0.1], [0.7], [0.3]], np.float32)
    targets = np.array([[1], [0], [1], [0], [0], [0]], bool)
    (row,) = per_label(("only",), probabilities, targets)
    assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((1 / 3, 0.5, 0.4))
    assert row["support"] == 2
    got = scores(probabilities, targets)
    assert (got.micro_f1, got.macro_f1) == pytest.approx((0.4, 0.4))
    assert scores(probabilities, np.zeros_like(targets)).micro_f1 == 0


@pytest.mark.parametrize("labels", [2, 5])
def test_several_labels_as_scikit_learn_has_them(labels: int) -> None:
    rng = np.random.default_rng(labels)
    targets, probabilities = rng.random((60, labels)) < 0.3, rng.random((60, labels)).astype(np.float32)
    got = scores(probabilities, targets)
    for average, f1 in (("micro", got.micro_f1), ("macro", got.macro_f1)):
        assert f1 == pytest.approx(f1_score(targets, probabilities >= 0.5, average=average))
    each = [row["f1"] for row in per_label(tuple(map(str, range(labels))), probabilities, targets)]
    assert each == pytest.approx(f1_score(targets, probabilities >= 0.5, average=None))


def test_labels_without_and_with_only_positives() -> None:
    targets = np.array([[0, 1], [0, 1], [0, 1]], bool)
    probabilities = np.full((3, 2), 0.7, np.float32)
    rows = per_label(("none", "all"), probabilities, targets)
    assert (rows[0]["ap"], rows[0]["f1"], rows[0]["support"]) == (None, 0.0, 0)
    assert (rows[1]["ap"], rows[1]["f1"], rows[1]["support"]) == (1.0, 1.0, 3)
    assert np.isnan(average_precision(probabilities, targets)[0])
    assert scores(probabilities, targets).map == 1.0
    assert scores(probabilities[:, :1], targets[:, :1]).map == 0.0


def test_a_single_label() -> None:
    """The library would take one column for two classes."""
    targets = np.array([[1], [0], [1], [0], [0], [0]], bool)
    probabilities = np.array([[0.9], [0.8], [0.2], [0.1], [0.7], [0.3]], np.float32)
    got = scores(probabilities, targets)
    assert (got.micro_f1, got.macro_f1) == (pytest.approx(0.4), pytest.approx(0.4))
    (row,) = per_label(("cat",), probabilities, targets)
    assert (row["precision"], row["recall"], row["support"]) == (pytest.approx(1 / 3), pytest.approx(0.5), 2)


@given(answers())
@settings(max_examples=60, deadline=None)
def test_any_answers_as_scikit_learn_has_them_label_by_label(case: Answers) -> None:
    """Labels without a positive, with nothing else, and equal probabilities among them."""
    probabilities, targets = case
    labels = tuple(f"label {i}" for i in range(targets.shape[1]))
    rows = per_label(labels, probabilities, targets)
    for i, row in enumerate(rows):
        true, decided = targets[:, i], probabilities[:, i] >= 0.5
        for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert row[name] == pytest.approx(function(true, decided, zero_division=0), abs=1e-6)
        if true.any():
            assert row["ap"] == pytest.approx(average_precision_score(true, probabilities[:, i]), abs=1e-6)
        else:
            assert row["ap"] is None
    got = scores(probabilities, targets)
    assert got.macro_f1 == pytest.approx(np.mean([row["f1"] for row in rows]), abs=1e-6)
    micro = f1_score(targets.ravel(), probabilities.ravel() >= 0.5, zero_division=0)
    assert got.micro_f1 == pytest.approx(micro, abs=1e-6)
    aps = [row["ap"] for row in rows if row["ap"] is not None]
    assert got.map == pytest.approx(np.mean(aps) if aps else 0, abs=1e-6)
