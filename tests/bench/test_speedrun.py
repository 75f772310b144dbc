"""The race of two presets: the clock stands while a network is looked at, and the figures are those of the outcomes."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import speedrun as module
from bench.race import Look, Outcome, Watch, race
from bench.speedrun import Arguments, speedrun
from bench.speedrun_figures import compared, medians, rarest, told
from engine.answers import Stopped
from engine.config import Config, resolve
from engine.device import decide
from engine.run import Run, write_json
from engine.trainer import Trainer
from pipelines.errors import InputError
from pipelines.read import read_dataset

Make = Callable[..., Path]
TINY = {"image_size": 75, "width": 0.125, "batch_size": 4, "device": "cpu"}


def outcome(*points: tuple[float, float], f1: float = 0.5, average_precision: float = 0.4) -> Outcome:
    """Looks at (seconds, micro-F1), the last of them the outcome."""
    looks = [Look(seconds, round(10 * seconds), 0.1, micro, micro / 2, average_precision) for seconds, micro in points]
    final = {"micro_f1": points[-1][1], "macro_f1": points[-1][1] / 2, "map": average_precision}
    return Outcome(looks, {"val": {**final, "f1": {"rare": f1, "frequent": 0.9}}})


def test_a_clock_that_stands() -> None:
    """Seconds while it stands count for nothing."""
    now = iter([10.0, 12.0, 15.0, 15.5, 20.0])
    watch = Watch(lambda: next(now))
    assert watch.seconds() == 2
    assert watch.stop() == 5
    watch.go_on()
    assert watch.seconds() == pytest.approx(5 + 20 - 15.5)


def test_time_to_target_and_differences() -> None:
    """The target is what paper ends with, not its best; the sprint's time counts to the first look that has it."""
    found = compared(
        {
            "paper": outcome((10, 0.3), (20, 0.6), (40, 0.5), f1=0.1, average_precision=0.3),
            "sprint": outcome((4, 0.4), (8, 0.5), (10, 0.4)),
            "fast": outcome((20, 0.6), (40, 0.58)),
        },
        ["rare"],
    )
    assert found["target"] == 0.5
    assert found["seconds"] == {"paper": 40, "paper_first": 20, "sprint": 8}
    assert (found["ratio"], found["ratio_first"]) == (0.2, 0.4)
    difference = found["difference"]["val"]
    assert difference == pytest.approx({"micro_f1": 0.08, "macro_f1": 0.04, "map": 0.1, "rarest_f1": 0.4})


def test_a_target_that_is_not_reached_counts_as_never() -> None:
    """Two of three seeds without it: there is no median, and the line says so."""
    reached = {"paper": outcome((40, 0.5)), "sprint": outcome((8, 0.6)), "fast": outcome((40, 0.7))}
    missed = {**reached, "sprint": outcome((8, 0.4))}
    found = [compared(race, ["rare"]) for race in (missed, reached, missed)]
    median = medians(found)
    assert (found[0]["ratio"], found[1]["ratio"], median["ratio"]) == (None, 0.2, None)
    assert "never" in told(median, 3)[0]
    assert medians([found[0], found[1], found[1]])["ratio"] == 0.2


def test_looks_change_nothing(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raced network is that of engine.train, whatever it was looked at; the last batch is the last that was asked."""
    monkeypatch.setattr("engine.trainer.write_page", lambda *_: None)
    dataset = read_dataset(table(), val_fraction=0.25)
    config = resolve("paper", {**TINY, "epochs": 2, "sampling": "uniform"})

    def trainer(name: str) -> Trainer:
        run = Run(tmp_path / name)
        run.create()
        write_json(run.config, config.values())
        return Trainer(config, dataset, decide("cpu", False, "off"), run, lambda: False)

    trained = trainer("trained")
    trained.fit()
    slow = race(trainer("raced"), 1e9)
    often = trainer("often")
    fast = race(often, 1e-9)
    epochs = [(line["val_loss"], line["micro_f1"], line["map"]) for line in trained.run.metric_lines()]
    assert [(look.loss, look.micro_f1, look.map) for look in slow.looks] == epochs
    assert slow.final == fast.final
    assert len(fast.looks) == often.total > len(slow.looks) == 2
    assert [look.pictures for look in fast.looks] == [4 * (i + 1) for i in range(often.total)]
    assert not (tmp_path / "raced" / "checkpoints" / "last.pt").exists()


def test_a_race_can_be_stopped(table: Make, tmp_path: Path) -> None:
    """Ctrl-C between two steps."""
    dataset = read_dataset(table(), val_fraction=0.25)
    asked = iter([False, True])
    config = resolve("paper", {**TINY, "epochs": 2})
    trainer = Trainer(config, dataset, decide("cpu", False, "off"), Run(tmp_path), lambda: next(asked))
    with pytest.raises(Stopped):
        race(trainer, 1e9)


def test_the_status_says_which_signal_stopped_it(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in engine.train: what a batch scheduler sends is not Ctrl-C."""

    def stopped(*_: object) -> float:
        signal.raise_signal(signal.SIGTERM)
        raise Stopped

    monkeypatch.setattr(module, "_pace", stopped)
    arguments = Arguments(data=table(), out=tmp_path / "out", **TINY)  # type: ignore[arg-type]
    assert speedrun(arguments) == 128 + signal.SIGTERM


def test_the_whole_command(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON and picture; paper, then fast for a quarter of its time and for all of it."""
    monkeypatch.setattr("engine.pace.TIMED", 2)
    monkeypatch.setattr("engine.pace.WARM", 1)
    monkeypatch.setattr(module, "LOOKS", 4)
    root = table()
    text = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(text[:17]) + "\n")
    (root / "val.csv").write_text("\n".join([text[0], *text[17:]]) + "\n")
    out = tmp_path / "out"
    arguments = Arguments(data=root, out=out, seeds=2, epochs=2, **TINY)  # type: ignore[arg-type]
    assert speedrun(arguments) == 0
    found = json.loads((out / "speedrun.json").read_text())
    assert found["configs"]["paper"]["epochs"] == 2
    assert [found["configs"][name]["preset"] for name in ("paper", "fast")] == ["paper", "fast"]
    assert [list(seed["runs"]) for seed in found["races"]] == [["paper", "sprint", "fast"]] * 2
    for run in (run for seed in found["races"] for run in seed["runs"].values()):
        assert run["seconds"] == run["looks"][-1]["seconds"] > 0
        assert set(run["final"]) == {"val"}
    assert found["rarest_labels"] == rarest(read_dataset(root)) == ["bird"]
    assert set(found["median"]["difference"]["val"]) == {"micro_f1", "macro_f1", "map", "rarest_f1"}
    assert (out / "speedrun.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"epochs": 2, "budget_minutes": 1.0}, "exclude each other"),
        ({"budget_minutes": 0.0}, "--budget-minutes 0"),
        ({"budget_minutes": float("inf")}, "--budget-minutes inf"),
        ({"epochs": 2, "test": True}, "no test split"),
    ],
)
def test_bad_input_is_told_before_training(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    """One line, and no folder."""
    monkeypatch.setattr(module, "_pace", lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError, match=message):
        speedrun(Arguments(data=table(), out=tmp_path / "out", **{**TINY, **changes}))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_place_for_the_figures_is_made_before_training(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_pace", lambda *_: pytest.fail("training began"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*file: cannot be made: File exists"):
        speedrun(Arguments(data=table(), out=tmp_path / "file", **TINY))  # type: ignore[arg-type]


def test_batches_are_no_larger_than_an_epoch(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fast` takes 64 pictures at once, this set has fewer."""
    sizes = []

    def stopped(config: Config, *_: object) -> float:
        sizes.append(config.batch_size)
        raise Stopped

    monkeypatch.setattr(module, "_pace", stopped)
    root = table(pictures=8)
    arguments = Arguments(data=root, out=tmp_path / "out", **{**TINY, "batch_size": 64})  # type: ignore[arg-type]
    speedrun(arguments)
    assert sizes[0] < 64
