"""The sampling plan is a pure function, loses no row, and reaches its targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipelines.draws import ANGLE, BRIGHTNESS, CONTRAST, HUE, SMALLEST_CROP, draw, uniform_numbers
from pipelines.sampling import (
    draw_weights,
    epoch_rows,
    label_odds,
    oversample_target,
    positive_weights,
    rank_slice,
    repeat_factors,
    repeats,
)
from pipelines.table import read_table

Targets = NDArray[np.bool_]
tables = st.tuples(st.integers(1, 40), st.integers(1, 6)).flatmap(lambda shape: arrays(np.bool_, shape))


@given(tables, st.integers(0, 5), st.integers(0, 3))
def test_uniform_is_a_permutation(targets: Targets, seed: int, epoch: int) -> None:
    assert sorted(epoch_rows(targets, "uniform", seed, epoch)) == list(range(len(targets)))


@settings(deadline=None)
@given(tables, st.integers(1, 60), st.integers(0, 5))
def test_oversampling_reaches_the_target_and_loses_no_row(targets: Targets, target: int, seed: int) -> None:
    rows = epoch_rows(targets, "oversample", seed, 0, target)
    assert set(rows) == set(range(len(targets)))
    occurring = targets.any(0)
    assert (targets[rows].sum(0)[occurring] >= target).all()


@given(tables, st.integers(1, 60))
def test_oversampling_repeats_only_rows_of_labels_that_lack_pictures(targets: Targets, target: int) -> None:
    count = repeats(targets, target, 0)
    lacking = targets[:, targets.sum(0) < target].any(1)
    assert (count[~lacking] == 1).all()


@settings(deadline=None)
@given(tables, st.integers(1, 60), st.integers(0, 5))
def test_oversampling_adds_no_row_in_vain_and_repeats_none_too_often(targets: Targets, target: int, seed: int) -> None:
    """One fewer of a repeated row and a label lacks; none stands more often than its rarest label needs."""
    count = repeats(targets, target, seed)
    reached = count @ targets
    for row in np.flatnonzero(count > 1):
        assert (reached[targets[row]] <= target).any()
        assert count[row] <= -(-target // targets.sum(0)[targets[row]].min())


def test_oversampling_prefers_rows_that_serve_two_labels_and_no_frequent_one() -> None:
    targets = np.zeros((100, 3), bool)
    targets[:, 0] = True  # frequent
    targets[:4, 1] = targets[2:6, 2] = True  # two rare ones; rows 2 and 3 have both
    targets[0, 0] = targets[2, 0] = False
    count = repeats(targets, 8, 0)
    assert count.sum() - 100 == 6  # 4 a label lack; rows 2 and 3 may be added once each, which serves both
    assert count[[2, 3]].tolist() == [2, 2]
    assert count[0] == 2


def test_oversampling_adds_nothing_that_rounding_made_superfluous() -> None:
    """Three labels, a row for each pair of them: the programme adds half a row of each, two whole ones do."""
    targets = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
    count = repeats(targets, 3, 0)
    assert (count @ targets >= 3).all()
    assert count.sum() == 5


def test_oversampling_prefers_rows_with_few_frequent_labels() -> None:
    targets = np.zeros((60, 3), bool)
    targets[:, 0] = targets[:, 1] = True
    targets[:6, 2] = True  # a rare label, half of its rows without one of the frequent ones
    targets[:3, 1] = False
    assert repeats(targets, 9, 0)[:6].tolist() == [2, 2, 2, 1, 1, 1]


def test_oversampling_decides_between_equal_rows_by_chance() -> None:
    targets = np.zeros((60, 1), bool)
    targets[:20] = True
    chosen = {tuple(np.flatnonzero(repeats(targets, 25, seed) > 1)) for seed in range(8)}
    assert len(chosen) == 8
    assert all(len(rows) == 5 for rows in chosen)


@settings(deadline=None)
@given(tables, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_repeat_factor_rounds_each_factor_and_keeps_an_epoch_s_length(
    targets: Targets, target: int, seed: int, epoch: int
) -> None:
    factors = repeat_factors(targets, target)
    count = np.bincount(epoch_rows(targets, "repeat-factor", seed, epoch, target), minlength=len(targets))
    assert abs(count.sum() - factors.sum()) <= 0.5 + 1e-9
    assert count.sum() == len(epoch_rows(targets, "repeat-factor", seed, epoch + 1, target))
    extra = factors - 1
    extra *= (count.sum() - len(targets)) / (extra.sum() or 1)  # what is dealt out is a whole number of rows
    assert (count >= 1 + np.floor(extra + 1e-9)).all()
    assert (count <= 1 + np.ceil(extra - 1e-9)).all()
    have = targets.sum(0)
    for label in np.flatnonzero(have):
        assert factors[targets[:, label]].min() >= max(1, np.sqrt(target / have[label])) - 1e-9


def test_repeat_factors_are_met_on_average() -> None:
    targets = np.zeros((40, 2), bool)
    targets[:, 0] = True
    targets[:7, 1] = True
    counts = [np.bincount(epoch_rows(targets, "repeat-factor", 0, epoch, 20), minlength=40) for epoch in range(300)]
    mean = np.mean(counts, 0)
    assert mean[:7] == pytest.approx(np.sqrt(20 / 7), abs=0.12)
    assert (mean[7:] == 1).all()
    assert len({tuple(count) for count in counts}) > 15  # of 7 over 2: not the same rows together


@given(
    tables,
    st.sampled_from(["uniform", "oversample", "weighted", "repeat-factor"]),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_any_number_of_ranks_sees_the_same_epoch(
    targets: Targets, strategy: str, seed: int, ranks: int, share: int
) -> None:
    """Shares of the ranks are disjoint and cover each step of the one plan."""
    rows, batch = epoch_rows(targets, strategy, seed, 1), ranks * share  # type: ignore[arg-type]
    steps = len(rows) // batch
    dealt = [rows[rank_slice(step, batch, rank, ranks)] for step in range(steps) for rank in range(ranks)]
    assert np.array_equal(np.concatenate([*dealt, rows[steps * batch :]]), rows)


@pytest.mark.parametrize("strategy", ["uniform", "oversample", "weighted", "repeat-factor"])
def test_same_seed_same_plan_and_another_order_each_epoch(strategy: str) -> None:
    targets = np.random.default_rng(0).random((200, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]
    first = epoch_rows(targets, strategy, 7, 0)  # type: ignore[arg-type]
    assert np.array_equal(first, epoch_rows(targets, strategy, 7, 0))  # type: ignore[arg-type]
    assert not np.array_equal(first, epoch_rows(targets, strategy, 7, 1))  # type: ignore[arg-type]
    assert not np.array_equal(first, epoch_rows(targets, strategy, 8, 0))  # type: ignore[arg-type]


def test_weighted_draws_follow_the_rarest_label() -> None:
    targets = np.zeros((1000, 2), bool)
    targets[:900, 0] = True
    targets[:100, 1] = True  # rows 0 to 99 have both labels, 900 to 999 none
    weights = draw_weights(targets)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] / weights[500] == pytest.approx(9)
    assert weights[950] == pytest.approx(weights[500])
    rows = epoch_rows(targets, "weighted", 0, 0)
    assert len(rows) == 1000
    assert 400 < targets[rows, 1].sum() < 600  # 100 · 9 of 1,800


def test_target_is_scaled_to_small_data_sets() -> None:
    assert [oversample_target(n) for n in (100_000, 30_000, 9_600, 12, 1)] == [2500, 2500, 800, 1, 1]


def test_positive_weights_are_clipped() -> None:
    targets = np.zeros((1000, 3), bool)
    targets[:, 0] = True
    targets[:250, 1] = True
    targets[:1, 2] = True
    assert positive_weights(targets).tolist() == pytest.approx([0.05, 3.0, 20.0])


def test_label_odds_of_labels_that_all_some_and_no_pictures_have() -> None:
    targets = np.zeros((100, 3), bool)
    targets[:, 0] = True
    targets[:20, 1] = True
    assert label_odds(targets).tolist() == pytest.approx([201, 20.5 / 80.5, 1 / 201])


@given(st.integers(0, 9), st.integers(1, 8), st.integers(1, 4))
def test_ranks_cover_a_step_without_overlap(step: int, share: int, ranks: int) -> None:
    batch = share * ranks
    places = [range(1000)[rank_slice(step, batch, rank, ranks)] for rank in range(ranks)]
    assert [place for part in places for place in part] == list(range(step * batch, (step + 1) * batch))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 500), st.integers(1, 40), st.integers(0, 39))
def test_draws_do_not_depend_on_the_batches_they_come_in(
    seed: int, epoch: int, start: int, count: int, at: int
) -> None:
    at %= count
    whole = draw(seed, epoch, start, count, 128)
    alone = draw(seed, epoch, start + at, 1, 128)
    assert np.array_equal(whole.matrix[at], alone.matrix[0])
    assert np.array_equal(whole.colour[at], alone.colour[0])


def test_draws_are_spread_as_stated() -> None:
    numbers = uniform_numbers(0, 0, 0, 20_000)
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.03
    matrix = draw(0, 0, 0, 20_000, 320).matrix
    turn = matrix[:, :, :2].astype(np.float64)
    flipped = np.linalg.det(turn) < 0
    assert flipped.mean() == pytest.approx(0.5, abs=0.02)
    zoom = np.sqrt(np.abs(np.linalg.det(turn)))
    assert (zoom.min(), zoom.max()) == (pytest.approx(SMALLEST_CROP, abs=1e-3), pytest.approx(1, abs=1e-3))
    angle = np.rad2deg(np.arctan2(turn[:, 1, 1] * 0 - turn[:, 0, 1], turn[:, 1, 1]))
    assert (angle.min(), angle.max()) == (pytest.approx(-ANGLE, abs=0.1), pytest.approx(ANGLE, abs=0.1))
    shift = turn @ np.full(2, 160.0) + matrix[:, :, 2] - 160
    room = (1 - zoom)[:, None] * 160
    assert (np.abs(shift) <= room + 1e-3).all()  # the crop stays in the picture
    assert np.abs(shift / room.clip(1)).max() > 0.99  # and takes the room it has
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.03


def test_colours_are_spread_as_stated() -> None:
    """What becomes of grey, white, black and red tells brightness, contrast and hue of each draw."""
    colour = draw(0, 0, 0, 20_000, 320).colour.astype(np.float64)
    grey, white, black, red = (colour @ [*pixel, 1.0] for pixel in ([128] * 3, [255] * 3, [0] * 3, [228, 128, 128]))
    luma = np.array([0.299, 0.587, 0.114])
    brightness = grey @ luma / 128
    contrast = (white - black) @ luma / 255 / brightness
    assert np.abs(grey - grey[:, :1]).max() < 0.3  # none has a tint
    i, q = (red - grey) @ [0.596, -0.274, -0.321], (red - grey) @ [0.211, -0.523, 0.311]
    hue = np.rad2deg(np.arctan2(0.211, 0.596) - np.arctan2(q, i))
    for found, middle, reach in ((brightness, 1, BRIGHTNESS), (contrast, 1, CONTRAST), (hue, 0, HUE)):
        assert found.mean() == pytest.approx(middle, abs=0.02 * reach)
        assert (found.min(), found.max()) == pytest.approx((middle - reach, middle + reach), abs=0.01 * reach)
    assert np.abs(np.corrcoef([brightness, contrast, hue]) - np.eye(3)).max() < 0.03


def test_epochs_and_seeds_draw_differently() -> None:
    draws = [uniform_numbers(seed, epoch, 0, 4) for seed in (0, 1) for epoch in (0, 1)]
    assert len({d.tobytes() for d in draws}) == 4


def test_every_label_of_the_study_reaches_2500(photographs, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """30,000 rows, 90 to 1; the growth is the one that docs/data.md quotes."""
    text = (photographs / "study_labels" / "train.csv").read_bytes()
    (tmp_path / "train.csv").write_bytes(text)
    for line in text.decode().splitlines():
        name = line.partition(",")[0]
        if name.endswith(".jpg"):
            (tmp_path / name).touch()
    targets = read_table(tmp_path).targets
    rows = epoch_rows(targets, "oversample", 0, 0)
    assert targets[rows].sum(0).min() >= 2500
    assert len(rows) / len(targets) == pytest.approx(1.495, abs=0.002)
