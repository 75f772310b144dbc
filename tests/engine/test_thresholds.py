"""Tuned thresholds: better where there is something to gain, never chance, never far from where they belong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from engine.metrics import scores
from engine.thresholds import SURE, Ranked, shrunk, tuned_thresholds
from tests.engine.answers import Answers, answers


def noisy(rows: int, shares: list[float], lift: float, seed: int = 0) -> Answers:
    """Labels of the given shares; the true ones are `lift` more probable, on average."""
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, len(shares))) < shares
    return np.clip(targets * lift + rng.random(targets.shape) * 0.4, 0, 1).astype(np.float32), targets


@given(answers())
@settings(max_examples=60, deadline=None)
def test_any_answers_give_a_threshold_a_label(case: Answers) -> None:
    thresholds = tuned_thresholds(*case)
    assert thresholds.dtype == np.float32
    assert thresholds.shape == (case[1].shape[1],)
    assert ((thresholds > 0) & (thresholds < 1)).all()
    assert np.array_equal(thresholds, tuned_thresholds(*case))


PROBABILITY = st.floats(0.001, 0.999)


@given(PROBABILITY, PROBABILITY, st.integers(0, 1000), st.integers(0, 1000), st.sampled_from([5.0, 100.0, math.inf]))
def test_more_pictures_go_further_from_the_common_threshold(
    own: float, common: float, few: int, more: int, strength: float
) -> None:
    few, more = sorted((few, more))
    found = shrunk(np.array([own, own]), common, np.array([few, more]), strength)
    low, high = sorted((own, common))
    assert ((found >= low - 1e-9) & (found <= high + 1e-9)).all()
    assert abs(found[0] - common) <= abs(found[1] - common) + 1e-9


def test_no_picture_or_no_bound_is_the_common_threshold() -> None:
    assert shrunk(np.array([0.9]), 0.2, np.array([0]), 5.0) == pytest.approx([0.2])
    assert shrunk(np.array([0.9]), 0.2, np.array([500]), math.inf) == pytest.approx([0.2])
    assert shrunk(np.array([math.nan]), 0.2, np.array([0]), 5.0) == pytest.approx([0.2])
    assert shrunk(np.array([1.0]), 1.0, np.array([50]), 5.0) == pytest.approx([1 - SURE])


def test_labels_with_many_pictures_gain() -> None:
    """All answers lie below 0.5: at 0.5 little is found; checked on pictures that were not tuned on."""
    shares = [0.5, 0.3, 0.2, 0.1]
    thresholds = tuned_thresholds(*noisy(500, shares, 0.15))
    fresh = noisy(2000, shares, 0.15, seed=1)
    half, tuned = scores(*fresh), scores(*fresh, thresholds)
    assert tuned.micro_f1 > half.micro_f1 + 0.1
    assert tuned.macro_f1 > half.macro_f1 + 0.1


def test_rare_labels_of_a_weak_network_do_not_cost_micro_f1() -> None:
    """Of labels that the network does not know, the best threshold says nearly always yes: F1 rises, micro-F1 falls."""
    rng = np.random.default_rng(3)
    shares = np.array([0.6, *[0.04] * 12])

    def weak(rows: int) -> Answers:
        targets = rng.random((rows, 13)) < shares
        odds = np.log(shares / (1 - shares)) + rng.normal(0, 0.3, targets.shape)
        odds[:, 0] += 2 * targets[:, 0]
        return (1 / (1 + np.exp(-odds))).astype(np.float32), targets

    tuned_on, fresh = weak(800), weak(4000)
    thresholds = tuned_thresholds(*tuned_on)
    assert scores(*fresh, thresholds).micro_f1 > scores(*fresh).micro_f1 - 0.01


def test_a_label_without_pictures_takes_the_common_threshold() -> None:
    probabilities, targets = noisy(400, [0.4, 0.4, 0.0, 0.0], 0.2)
    thresholds = tuned_thresholds(probabilities, targets)
    assert thresholds[2] == thresholds[3]
    assert thresholds[2] != thresholds[0]


def test_no_positives_at_all() -> None:
    assert tuned_thresholds(np.full((5, 2), 0.3, np.float32), np.zeros((5, 2), bool)).tolist() == [0.5, 0.5]
    assert tuned_thresholds(np.empty((0, 2), np.float32), np.zeros((0, 2), bool)).tolist() == [0.5, 0.5]


@given(answers(most_labels=1))
@settings(max_examples=60, deadline=None)
def test_no_other_threshold_has_a_better_f1_on_the_answers_it_was_tuned_on(case: Answers) -> None:
    probabilities, targets = case[0][:, 0], case[1][:, 0]
    best = Ranked.of(probabilities, targets, np.arange(len(targets))).best(np.ones(len(targets), bool))
    assert math.isnan(best) == (not targets.any())
    if targets.any():
        others = [f1_score(targets, probabilities >= at / 20, zero_division=0) for at in range(21)]
        assert f1_score(targets, probabilities >= best, zero_division=0) == pytest.approx(max(others))
