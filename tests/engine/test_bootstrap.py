"""Intervals: each draw is what scikit-learn makes of the rows drawn, and what holds of any interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from engine.bootstrap import AFFORDABLE, DRAWS, FEWEST_DRAWS, Resampled, affordable_draws, resampled
from engine.metrics import scores
from tests.engine.answers import Answers, answers


@given(answers())
@settings(max_examples=20, deadline=None)
def test_each_draw_is_what_scikit_learn_makes_of_the_rows_drawn(case: Answers) -> None:
    probabilities, targets = case
    (got,) = resampled(probabilities, targets, (0.5,), draws=3, seed=5)
    rng = np.random.default_rng(5)
    for draw, rows in enumerate(rng.integers(0, len(targets), (3, len(targets)))):
        true, chance = targets[rows], probabilities[rows]
        for i in range(targets.shape[1]):
            decided = chance[:, i] >= 0.5
            assert got.precision[draw, i] == pytest.approx(
                precision_score(true[:, i], decided, zero_division=0), abs=1e-6
            )
            assert got.recall[draw, i] == pytest.approx(recall_score(true[:, i], decided, zero_division=0), abs=1e-6)
            assert got.f1[draw, i] == pytest.approx(f1_score(true[:, i], decided, zero_division=0), abs=1e-6)
            if true[:, i].any():
                assert got.ap[draw, i] == pytest.approx(average_precision_score(true[:, i], chance[:, i]), abs=1e-6)
            else:
                assert np.isnan(got.ap[draw, i])
        whole = scores(chance, true)
        assert got.micro_f1[draw] == pytest.approx(whole.micro_f1, abs=1e-6)
        assert got.macro_f1[draw] == pytest.approx(whole.macro_f1, abs=1e-6)
        assert np.nan_to_num(got.map[draw]) == pytest.approx(whole.map, abs=1e-6)


def drawn(case: Answers, draws: int = 200, seed: int = 0) -> Resampled:
    (got,) = resampled(*case, (0.5,), draws, seed)
    return got


@given(answers())
@settings(max_examples=15, deadline=None)
def test_intervals_lie_between_0_and_1_and_depend_on_the_seed_alone(case: Answers) -> None:
    found, again = (drawn(case, 50).intervals(scores(*case).map) for _ in range(2))
    for name, interval in found.items():
        assert np.array_equal(interval, again[name], equal_nan=True)
        interval = interval[~np.isnan(interval).any(-1)] if interval.ndim > 1 else interval
        if not np.isnan(interval).any():
            assert (interval >= 0).all()
            assert (interval <= 1).all()
            assert (interval[..., 0] <= interval[..., 1]).all()
    if not np.isnan(scores(*case).map):
        assert found["map"][0] <= scores(*case).map <= found["map"][1]  # rare labels may be in few draws


def noisy(rows: int, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]
    return np.clip(targets * 0.3 + rng.random((rows, 5)) * 0.6, 0, 1).astype(np.float32), targets


def test_pictures_that_are_all_alike_leave_no_doubt() -> None:
    probabilities = np.tile(np.array([[0.9, 0.2, 0.7]], np.float32), (20, 1))
    targets = np.tile(np.array([[True, False, False]]), (20, 1))
    interval = drawn((probabilities, targets)).intervals(1.0)
    assert interval["micro_f1"] == pytest.approx([2 / 3, 2 / 3])
    assert interval["f1"][:, 0] == pytest.approx(interval["f1"][:, 1])
    assert np.isnan(interval["ap"][1]).all()


def test_sixteen_times_the_pictures_leave_a_quarter_of_the_interval() -> None:
    few, many = (np.ptp(drawn(noisy(rows), 1000).intervals(0.5)["micro_f1"]) for rows in (200, 3200))
    assert many == pytest.approx(few / 4, rel=0.25)


def weak(rows: int, seed: int) -> Answers:
    """Twenty labels, the rarest one in 2 % of the pictures."""
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, 20)) < np.geomspace(0.4, 0.02, 20)
    return (1 / (1 + np.exp(2 - 2 * targets - rng.normal(0, 1.5, targets.shape)))).astype(np.float32), targets


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """60 sets of 300 pictures each: 95 % intervals rarely miss the figures of very many pictures.

    Percentiles alone would miss mAP more often than not.
    """
    truth = scores(*weak(50_000, seed=999))
    held = {"micro_f1": 0, "macro_f1": 0, "map": 0}
    for seed in range(60):
        case = weak(300, seed)
        found = drawn(case, 200, seed).intervals(scores(*case).map)
        for name in held:
            held[name] += found[name][0] <= getattr(truth, name) <= found[name][1]
    assert held["micro_f1"] >= 54
    assert held["macro_f1"] >= 50
    assert held["map"] >= 45


def test_two_thresholds_share_the_draws() -> None:
    probabilities, targets = noisy(100)
    one, other = resampled(probabilities, targets, (0.5, np.full(5, 0.5, np.float32)), draws=20)
    assert np.array_equal(one.f1, other.f1)
    assert np.array_equal(one.map, drawn((probabilities, targets), 20).map)


def test_draws_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pictures are drawn in parts, lest memory run out."""
    whole = drawn(noisy(64), 40)
    monkeypatch.setattr("engine.bootstrap.CHUNK", 64 * 8)
    assert np.array_equal(whole.f1, drawn(noisy(64), 40).f1)


def test_fewer_draws_of_very_many_answers() -> None:
    assert affordable_draws(1200, 18) == DRAWS
    assert affordable_draws(10**6, 1000) == FEWEST_DRAWS
    assert affordable_draws(AFFORDABLE // 500, 1) == 500
