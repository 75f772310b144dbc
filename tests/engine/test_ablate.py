"""A study: runs of their own, gone on with and not repeated; a crash leaves the others; tables with any names."""

import csv
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import ablate as ablating
from engine.ablate import Arguments, ablate
from engine.ablation import COLUMNS, Outcome, Results, markdown, write_summary
from engine.arms import ARMS, Arm, command_line
from engine.command import Interrupt
from engine.config import PRESETS
from engine.pace import seconds_an_epoch
from engine.run import Run, write_json
from pipelines.errors import InputError
from pipelines.read import read_dataset

Make = Callable[..., Path]
TINY = {"image_size": 75, "width": 0.125, "batch_size": 4, "device": "cpu"}
TEST = "image,labels\n" + "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(6))


def of(root: Path, out: Path, **changes: Any) -> Arguments:
    return Arguments(**{"data": root, "out": out, "seeds": 1, "epochs": 1, **TINY, **changes})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_arms_from_beginning_to_end(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs in processes of their own; started again, nothing is left to do."""
    root, out = table(test=TEST), tmp_path / "study"
    arguments = of(root, out, arms=("baseline", "weights"))
    assert ablate(arguments) == 0
    found = json.loads((out / "ablation.json").read_text())
    assert [arm["arm"] for arm in found["arms"]] == ["baseline", "weights"]
    assert found["splits"] == {"val": 2, "test": 6}
    configs = [Run(out / "runs" / f"{arm}-0").read_config() for arm in ("baseline", "weights")]
    assert [(c["augment"], c["sampling"], c["epochs"]) for c in configs] == [(False, "uniform", 1)] * 2
    assert [c["class_weights"] for c in configs] == [False, True]
    assert configs[0]["fingerprint"] == configs[1]["fingerprint"]
    rows = rows_of(out / "ablation.csv")
    expected = [(arm, split) for arm in ("baseline", "weights") for split in ("val", "test")]
    assert [(row["arm"], row["split"]) for row in rows] == expected
    text = (out / "ablation.md").read_text()
    assert "65.10" in text
    assert "68.21" in text
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"f1_baseline.png", "f1_weights.png", "f1_all_arms.png"}
    assert str(tmp_path) not in (out / "ablation.json").read_text() + text

    monkeypatch.setattr(ablating, "_train", lambda *_: pytest.fail("a finished run was started again"))
    (out / "ablation.json").unlink()
    assert ablate(arguments) == 0
    assert json.loads((out / "ablation.json").read_text()) == found


class Trainings:
    """In place of training: a finished run is put where the command line says, or what `happens` to it."""

    def __init__(self, finished: Path) -> None:
        self.finished, self.lines = finished, list[list[str]]()
        self.happens: dict[str, int] = {}  # exit status by the name of the run's folder

    def __call__(self, line: list[str], _stopped: object) -> int:
        self.lines.append(line)
        folder = Path(line[line.index("--out" if "--out" in line else "--resume") + 1])
        status = self.happens.pop(folder.name, 0)
        run, source = Run(folder), Run(self.finished)
        run.create()
        shutil.copy(source.config, run.config)
        if status:
            return status
        shutil.copy(source.best, run.best)
        shutil.copy(source.thresholds, run.thresholds)
        write_json(run.report, content(("bird", "cat", "dog"), 0.5))
        line_ = {"epoch": 1, "train_loss": 1, "val_loss": 1, "micro_f1": 1, "macro_f1": 1, "map": 1, "seconds": 60}
        run.write_metrics([line_])
        return 0


def content(labels: tuple[str, ...], micro: float) -> dict[str, Any]:
    """What report.json holds."""
    rows = [{"label": label, "f1": 0.1 * i, "support": 5 + i, "ap": None} for i, label in enumerate(labels)]
    scores = {"micro_f1": micro, "macro_f1": 0.25, "map": 0.75}
    return {"rows": 40, "epoch": 1, "finished": True, "loss": 0.5, **scores, "tuned": scores, "labels": rows}


@pytest.fixture
def trainings(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made = Trainings(trained_run)
    monkeypatch.setattr(ablating, "_train", made)
    return made


def begun(trainings: Trainings) -> list[str]:
    """Names of the folders of the runs that were started, and whether they were gone on with."""
    names = []
    for line in trainings.lines:
        again = "--resume" in line
        folder = Path(line[line.index("--resume" if again else "--out") + 1])
        names.append(f"{folder.name} again" if again else folder.name)
    return names


def test_a_crash_leaves_the_other_runs(
    table: Make, tmp_path: Path, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = table(test=TEST), tmp_path / "study"
    trainings.happens["weights-0"] = -9
    assert ablate(of(root, out)) == ablating.FAILED
    assert "missing: class weights, seed 0" in capsys.readouterr().out
    assert [row["arm"] for row in rows_of(out / "ablation.csv")][::2] == ["baseline", "augmentation", "ours"]
    trainings.lines.clear()
    assert ablate(of(root, out)) == 0
    assert begun(trainings) == ["weights-0 again"]
    assert [row["arm"] for row in rows_of(out / "ablation.csv")][::2] == list(ARMS)


def test_stopped_it_goes_on_where_it_was(table: Make, tmp_path: Path, trainings: Trainings) -> None:
    root, out = table(test=TEST), tmp_path / "study"
    trainings.happens["ours-0"] = 130
    assert ablate(of(root, out, arms=("baseline", "ours"), seeds=2)) == 130
    assert begun(trainings) == ["baseline-0", "ours-0"]
    assert not (out / "ablation.json").exists()
    trainings.lines.clear()
    assert ablate(of(root, out, arms=("baseline", "ours"), seeds=2)) == 0
    assert begun(trainings) == ["ours-0 again", "baseline-1", "ours-1"]


def test_a_report_in_between_ends_no_run(table: Make, tmp_path: Path, trainings: Trainings) -> None:
    """python -m engine.report of a run that was stopped writes the same files as the end of one."""
    root, out = table(test=TEST), tmp_path / "study"
    assert ablate(of(root, out, arms=("baseline",))) == 0
    trainings.lines.clear()
    report = Run(out / "runs" / "baseline-0").report
    write_json(report, {**json.loads(report.read_text()), "finished": False})
    assert ablate(of(root, out, arms=("baseline",))) == 0
    assert begun(trainings) == ["baseline-0 again"]


def test_a_picture_found_damaged_meanwhile_makes_no_other_study(
    table: Make, tmp_path: Path, trainings: Trainings
) -> None:
    """The rest of a large set is checked while training runs: what comes of it changes neither split nor study."""
    root, out = table(pictures=40), tmp_path / "study"
    assert ablate(of(root, out, arms=("baseline",))) == 0
    picture = root / "images" / "3.jpg"
    picture.write_bytes(bytes(picture.stat().st_size))
    assert ablate(of(root, out, arms=("baseline", "ours"))) == 0
    assert begun(trainings) == ["baseline-0", "ours-0"]


def test_a_run_that_has_gone_on_is_measured_on_test_again(table: Make, tmp_path: Path, trainings: Trainings) -> None:
    """Or else its figures on validation and test would be of two networks."""
    root, out = table(test=TEST), tmp_path / "study"
    assert ablate(of(root, out, arms=("baseline",))) == 0
    kept, report = out / "runs" / "baseline-0" / "test.json", Run(out / "runs" / "baseline-0").report
    write_json(report, {**json.loads(report.read_text()), "epoch": json.loads(kept.read_text())["epoch"]})
    write_json(kept, {**json.loads(kept.read_text()), "micro_f1": 0.111})
    assert ablate(of(root, out, arms=("baseline",))) == 0
    assert json.loads(kept.read_text())["micro_f1"] == 0.111
    write_json(kept, {**json.loads(kept.read_text()), "epoch": 77})
    assert ablate(of(root, out, arms=("baseline",))) == 0
    assert json.loads(kept.read_text())["micro_f1"] != 0.111


def test_a_study_begun_by_an_older_version_goes_on(table: Make, tmp_path: Path, trainings: Trainings) -> None:
    root, out = table(), tmp_path / "study"
    assert ablate(of(root, out, arms=("baseline",))) == 0
    for file, name in ((out / "study.json", "rejected"), (Run(out / "runs" / "baseline-0").report, "finished")):
        write_json(file, {key: value for key, value in json.loads(file.read_text()).items() if key != name})
    assert ablate(of(root, out, arms=("baseline",))) == 0
    assert begun(trainings) == ["baseline-0"]


def test_runs_of_another_recipe_are_found_where_an_older_version_wrote_none_down(
    table: Make, tmp_path: Path, trainings: Trainings
) -> None:
    root, out = table(), tmp_path / "study"
    arguments = of(root, out, arms=("baseline", "ours"))
    assert ablate(arguments) == 0
    study, arms = out / "study.json", {arm: Run(out / "runs" / f"{arm}-0") for arm in arguments.arms}
    write_json(study, {key: value for key, value in json.loads(study.read_text()).items() if key != "recipes"})
    for arm, run in arms.items():
        write_json(run.config, {**run.read_config(), **ablating._config(arguments, arm, 0).values()})
    whole = {key: value for key, value in arms["ours"].read_config().items() if key != "picture_sizes"}
    write_json(arms["ours"].config, whole)
    with pytest.raises(InputError, match=r"study\.json: .* was another recipe when the study began"):
        ablate(of(root, out, arms=("ours",)))
    assert ablate(of(root, out, arms=("baseline",))) == 0


def test_a_budget_is_measured_with_a_batch_that_an_epoch_has(table: Make, tmp_path: Path) -> None:
    """`ours` takes 64 pictures at once, this set has 18 to train on."""
    arguments = of(table(), tmp_path / "study", arms=("ours",), width=0.125, batch_size=None)
    dataset = read_dataset(arguments.data, val_fraction=0.25)
    config = ablating._config(arguments, "ours", 0)
    assert config.batch_size > len(dataset.splits["train"])
    assert seconds_an_epoch(replace(config, sampling="uniform"), dataset) > 0


def test_another_study_is_not_mixed_in(table: Make, tmp_path: Path, trainings: Trainings) -> None:
    root, out = table(test=TEST), tmp_path / "study"
    assert ablate(of(root, out, arms=("baseline",))) == 0
    with pytest.raises(InputError, match="the study there has another width"):
        ablate(of(root, out, width=0.25))
    assert ablate(of(root, out, arms=("baseline", "ours"), seeds=2, summary=tmp_path / "docs")) == 0
    assert begun(trainings) == ["baseline-0", "ours-0", "baseline-1", "ours-1"]
    assert (tmp_path / "docs" / "ablation.md").exists()
    (out / "study.json").write_text("[]")
    with pytest.raises(InputError, match=r"study\.json: not a study's"):
        ablate(of(root, out))


def test_a_budget_becomes_epochs(
    table: Make, tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oversampling makes an epoch longer: the same time is fewer of them."""
    seconds = {"uniform": 30.0, "oversample": 45.0}
    monkeypatch.setattr("engine.pace.seconds_an_epoch", lambda config, _: seconds[config.sampling])
    arguments = of(table(), tmp_path / "study", arms=("baseline", "augmentation"), epochs=None, budget_minutes=3.0)
    assert ablate(arguments) == 0
    assert [line[line.index("--epochs") + 1] for line in trainings.lines] == ["6", "4"]
    monkeypatch.setattr("engine.pace.seconds_an_epoch", lambda *_: pytest.fail("measured again"))
    assert ablate(arguments) == 0


@pytest.mark.usefixtures("trainings")
def test_runs_of_two_recipes_are_not_averaged(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset may change from one version to the next; the other arms go on."""
    arguments = of(table(), tmp_path / "study", arms=("baseline", "ours"))
    assert ablate(arguments) == 0
    monkeypatch.setitem(PRESETS, "fast", {**PRESETS["fast"], "lr": 0.5})
    with pytest.raises(InputError, match=r"study\.json: .* was another recipe when the study began"):
        ablate(arguments)
    assert ablate(replace(arguments, arms=("baseline",))) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"arms": ()}, "--arms"),
        ({"budget_minutes": 1.0}, "--epochs and --budget-minutes"),
        ({"epochs": None, "budget_minutes": 0.0}, "--budget-minutes 0"),
        ({"epochs": None, "budget_minutes": float("inf")}, "--budget-minutes inf"),
        ({"image_size": 10}, "--image-size 10"),
        ({"data": Path("/no/data")}, "/no/data: no such folder"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_bad_input_begins_nothing(table: Make, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        ablate(of(table(), tmp_path / "study", **changes))
    assert not (tmp_path / "study").exists()


def test_options_as_training_takes_them() -> None:
    values = {"preset": "paper", "augment": False, "class_weights": True, "width": None, "image_size": 96}
    assert command_line(values) == ["--preset", "paper", "--no-augment", "--class-weights", "--image-size", "96"]


def results(labels: tuple[str, ...], arms: tuple[Arm, ...] = ("baseline", "ours"), seeds: int = 2) -> Results:
    outcomes = tuple(
        Outcome(arm, seed, {"val": content(labels, 0.6 + 0.02 * seed)}, 4, 2.5) for seed in range(seeds) for arm in arms
    )
    return Results("data", labels, tuple(range(len(labels))), ("val",), outcomes)


def test_table_by_hand() -> None:
    """0.60 and 0.62: 61 in percent, deviation 2 / √2."""
    lines = markdown(results(("a", "b"))).splitlines()
    row = next(line for line in lines if line.startswith("| baseline"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["baseline", "65.10", "61.00 ± 1.41", "25.00 ± 0.00"]
    assert cells[-3:] == ["4", "2.5", "2"]
    assert len(cells) == len(COLUMNS) + 5
    assert next(line for line in lines if line.startswith("| ours")).split("|")[2].strip() == "–"
    assert "±" not in markdown(results(("a", "b"), seeds=1)).splitlines()[4]
    long = replace(results(("a",)), outcomes=tuple(replace(r, minutes=1254.0) for r in results(("a",)).outcomes))
    assert markdown(long).splitlines()[4].split("|")[-3].strip() == "1,254"


@pytest.mark.parametrize("count", [0, 40], ids=["bars", "running-means"])
def test_odd_names_in_tables_and_figures(tmp_path: Path, count: int) -> None:
    odd = ("<script>", "../../x", "long" * 50, "قطة صغيرة", 'a,"b"\n', "$x_2$", *(f"label {i}" for i in range(count)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_summary(replace(results(odd), data="a$_$b"), tmp_path)
    assert [row["label"] for row in rows_of(tmp_path / "ablation-labels.csv")] == list(odd)
    assert rows_of(tmp_path / "ablation-labels.csv")[1]["ours_f1"] == "0.100000"
    assert (tmp_path / "figures" / "f1_all_arms.png").stat().st_size > 5000


def test_ctrl_c_reaches_the_run_once_and_is_waited_for(tmp_path: Path) -> None:
    ready, told = tmp_path / "ready", tmp_path / "told"
    code = f"""
import pathlib, signal, sys
def press(*_):
    with open({str(told)!r}, "a") as file:
        file.write("pressed ")
    signal.alarm(1)  # what saving takes
signal.signal(signal.SIGINT, press)
signal.signal(signal.SIGALRM, lambda *_: sys.exit(130))
pathlib.Path({str(ready)!r}).touch()
while True:
    signal.pause()
"""

    class Pressed(Interrupt):
        def __call__(self) -> bool:
            return ready.exists()

    assert ablating._train([sys.executable, "-c", code], Pressed()) == 130
    assert told.read_text() == "pressed "
