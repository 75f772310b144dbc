"""Presets are what they say, and impossible values are refused by name."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from engine.config import PRESETS, Config, resolve
from engine.run import write_json
from engine.schedule import learning_rate
from pipelines import draws
from pipelines.errors import InputError


def test_paper_is_the_study_s_configuration() -> None:
    config = resolve("paper", {})
    assert (config.image_size, config.width, config.dropout, config.batch_size, config.epochs) == (
        320,
        1.0,
        0.2,
        32,
        20,
    )
    assert (config.lr, config.schedule, config.sampling, config.augment) == (0.001, "constant", "oversample", True)
    assert config.patience is not None
    assert config.oversample_target is None  # 2,500, see pipelines.sampling
    assert (config.class_weights, config.positive_weight) == (False, 1)
    assert (config.optimizer, config.branch_init) == ("adam", "he")
    assert draws.ANGLE == 15


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_resolve_and_survive_json(preset: str) -> None:
    config = resolve(preset, {"epochs": 3, "lr": None})  # type: ignore[arg-type]
    assert config.epochs == 3
    assert config.lr == PRESETS[preset].get("lr", 0.001)  # type: ignore[index]
    assert Config.load({**json.loads(json.dumps(config.values())), "fingerprint": "x"}) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"batch_size": 1}, "--batch-size 1"),
        ({"image_size": 74}, "--image-size 74"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
        ({"oversample_target": 0}, "--oversample-target 0"),
        ({"patience": 0}, "--patience 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32}, "--seed 4294967296: must be 4,294,967,295 at most"),
        ({"width": float("inf")}, "--width inf: must be 16 at most"),
        ({"lr": float("inf")}, "--lr inf"),
        ({"oversample_target": 10**13}, "--oversample-target 10000000000000: must be 1,000,000 at most"),
        ({"image_size": 100_000}, "--image-size 100000: must be 4,096 at most"),
        ({"picture_memory": float("nan")}, "--picture-memory nan"),
        ({"width": 0.0}, "--width 0.0"),
        ({"accumulate": 0}, "--accumulate 0: must be above 0"),
        ({"clip_grad_norm": -1.0}, "--clip-grad-norm -1.0: must be above 0"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0: must lie between 0 and 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_values(values: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve("paper", values)


@pytest.mark.parametrize(
    "values",
    [{"epochs": "many"}, {"epochs": 2.5}, {"epochs": True}, {"lr": None}, {"schedule": "odd"}, {"data": []}],
    ids=str,
)
def test_values_from_a_file_are_of_their_types(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a configuration's"):
        Config.load(values)
    assert Config.load({"lr": 1, "patience": None, "data": "x"}).patience is None


def test_learning_rates() -> None:
    assert {learning_rate("constant", 0.1, step, 100) for step in range(100)} == {0.1}
    rates = [learning_rate("one-cycle", 0.1, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (19, 20)
    assert all(a < b for a, b in pairwise(rates[:20]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert 0 < rates[-1] < 0.001
    cosine = [learning_rate("cosine", 0.1, step, 100) for step in range(100)]
    assert cosine[0] == 0.1
    assert cosine[50] == pytest.approx(0.05)
    assert all(a > b > 0 for a, b in pairwise(cosine))


def test_a_folder_whose_name_is_no_text_comes_back(tmp_path: Path) -> None:
    """Of bytes that are not UTF-8; what is written is."""
    data = os.fsdecode("größe ".encode() + b"\xf6")
    write_json(tmp_path / "config.json", resolve("demo", {"data": data}).values())
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["data"] == data
