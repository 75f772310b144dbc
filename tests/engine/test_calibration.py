"""Calibration: by hand, and against a loop over bins."""

import numpy as np
import pytest
from hypothesis import given, settings

from engine.calibration import calibration
from tests.engine.answers import Answers, answers


def test_by_hand() -> None:
    found = calibration(np.array([[0.05, 0.95], [0.05, 0.75]], np.float32), np.array([[0, 1], [1, 1]], bool), bins=10)
    assert found.count.tolist() == [2, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert found.said[[0, 7, 9]] == pytest.approx([0.05, 0.75, 0.95])
    assert found.true[[0, 7, 9]] == pytest.approx([0.5, 1, 1])
    assert np.isnan(found.true[1])
    assert found.error == pytest.approx((2 * 0.45 + 0.25 + 0.05) / 4)


@given(answers())
@settings(max_examples=50, deadline=None)
def test_as_a_loop_over_bins_has_it(case: Answers) -> None:
    probabilities, targets = case
    chance, true = probabilities.ravel().astype(np.float64), targets.ravel()
    error = 0.0
    for i in range(15):
        held = (chance >= i / 15) & ((chance < (i + 1) / 15) | (i == 14))
        if held.any():
            error += held.mean() * abs(chance[held].mean() - true[held].mean())
    assert calibration(probabilities, targets).error == pytest.approx(error, abs=1e-6)


def test_nothing_has_no_error() -> None:
    assert calibration(np.empty((0, 3), np.float32), np.empty((0, 3), bool)).error == 0
