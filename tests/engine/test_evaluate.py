"""Evaluating as a user starts it: the file's own answers, any data set, one line for what does not fit."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from engine.answers import answers
from engine.classifier import Classifier
from engine.command import main
from engine.evaluate import Arguments, evaluate, evaluation
from engine.metrics import scores
from engine.report import Arguments as ReportArguments
from engine.report import report
from engine.run import Run, write_json
from engine.trained import load_trained
from pipelines.errors import InputError
from pipelines.read import read_dataset
from tests.conftest import picture
from tests.engine.conftest import LABELS

Exported = Callable[..., Path]


def own_data(run: Path) -> Path:
    return run.parent / "data"


def test_answers_are_those_of_the_exported_file(trained_run: Path, exported: Exported) -> None:
    dataset = read_dataset(own_data(trained_run), val_fraction=0.4)
    found, content = evaluation(load_trained(trained_run), dataset, "val", draws=0)
    assert len(found.files) == content["rows"] == len(dataset.splits["val"])
    _, probabilities = Classifier(exported(), "cpu")([str(dataset.root / file) for file in found.files])
    assert np.abs(probabilities - found.probabilities).max() < 1e-4
    assert content["micro_f1"] == pytest.approx(scores(found.probabilities, found.targets).micro_f1)
    at = np.array([0.45, 0.5, 0.55], np.float32)
    assert content["tuned"]["micro_f1"] == pytest.approx(scores(found.probabilities, found.targets, at).micro_f1)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_figures_and_probabilities_as_files(
    trained_run: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, predictions = tmp_path / "figures.json", tmp_path / f"answers.{ending}"
    arguments = Arguments(run=trained_run, split="train", out=out, predictions=predictions, draws=50)
    assert evaluate(arguments) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (*LABELS, "micro-F1", "macro-F1", "mAP", "50 bootstrap draws"))
    found = json.loads(out.read_text())
    assert (found["split"], found["rows"], found["data"]) == ("train", 25, "data")
    low, high = found["intervals"]["micro_f1"]
    assert 0 <= low <= found["micro_f1"] <= high <= 1
    assert [row["label"] for row in found["labels"]] == list(LABELS)
    assert all(set(row["intervals"]) == {"precision", "recall", "f1", "ap"} for row in found["labels_tuned"])
    if ending == "csv":
        rows = list(csv.DictReader(predictions.open()))
    elif ending == "parquet":
        rows = pl.read_parquet(predictions).to_dicts()
    else:
        lines = [json.loads(line) for line in predictions.read_text().splitlines()]
        rows = [line | line["probabilities"] for line in lines]
    assert len(rows) == 25
    assert {"file", "labels", "bird", "cat", "dog"} <= rows[0].keys()
    assert sorted(tmp_path.iterdir()) == sorted([out, predictions])


def other_data(root: Path, labels: list[str]) -> Path:
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(12):
        picture(i, 50, 40).save(root / "images" / f"{i}.png")
        rows.append(f"{i}.png,{labels[i % len(labels)]}")
    for name, part in (("train", rows[:4]), ("val", rows[4:8]), ("test", rows[8:])):
        (root / f"{name}.csv").write_text("image,labels\n" + "\n".join(part) + "\n")
    return root


def test_labels_of_another_data_set_are_matched_by_name(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """dog, unicorn, cat: in another order, one that the network does not know, and no bird."""
    data, out = other_data(tmp_path / "other", ["dog", "unicorn", "cat"]), tmp_path / "figures.json"
    assert evaluate(Arguments(run=trained_run, data=data, split="test", out=out)) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: figures are of the 2 labels that both have: the data set lacks bird; the network does not know unicorn"
    ]
    found = json.loads(out.read_text())
    assert [row["label"] for row in found["labels"]] == ["cat", "dog"]
    assert [row["support"] for row in found["labels"]] == [2, 1]
    assert found["thresholds"] == {"cat": 0.5, "dog": 0.55}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "data: has no pictures in test; it has train, val"),
        ({"draws": -1}, "--draws -1"),
        ({"out": Path("/no/such/folder/x.json")}, "--out .*there is no folder"),
        ({"predictions": Path("answers.xml")}, "--predictions answers.xml: must end in .csv"),
        ({"run": Path("/no/run")}, "no run in it"),
        ({"data": Path("/no/data")}, "/no/data: no such folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(trained_run: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(Arguments(**{"run": trained_run, **changes}))  # type: ignore[arg-type]


def test_no_label_in_common_is_one_line(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = other_data(tmp_path / "other", ["unicorn", "griffin"])
    with pytest.raises(SystemExit) as leaving:
        main(lambda: evaluate(Arguments(run=trained_run, data=data)))
    assert leaving.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {data}: has none of the labels that the run was trained for"
    ]


def test_a_run_without_thresholds_says_so(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "unfinished")
    run.create()
    run.best.write_bytes(Run(trained_run).best.read_bytes())
    run.config.write_text(Run(trained_run).config.read_text())
    assert evaluate(Arguments(run=run.folder, draws=0)) == 0
    assert "thresholds 0.5: the run has not finished" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "report", "ablate"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; sys.argv[1:] = ['--help']; import engine.{command} as c\ntry: c.main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'torch', 'nvidia', 'sklearn', 'polars', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr


def test_large_batches_are_for_training(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's batch may be that of many GPUs, more than the one that evaluates can hold; and TF32 is off, alone."""
    seen = []

    def part(*arguments: object) -> tuple[torch.Tensor, np.ndarray]:
        cudnn = torch.backends.cudnn
        seen.append((arguments[3], cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32))
        return torch.zeros(0, 3), np.zeros(0, np.int64)

    monkeypatch.setattr("engine.answers.predict_part", part)
    trained, before = load_trained(trained_run), torch.backends.cudnn.allow_tf32
    dataset = read_dataset(own_data(trained_run), val_fraction=0.4)
    for batch in (4, 2048):
        answers(trained.network, dataset, "val", replace(trained.config, batch_size=batch), "cpu")
    enabled = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
    assert seen == [(4, *enabled, False), (64, *enabled, False)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_data_that_changed_since_the_run_are_told(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another validation set may have been split off, of pictures that the network was trained on."""
    data, run = shutil.copytree(own_data(trained_run), tmp_path / "data"), Run(tmp_path / "run")
    shutil.copytree(trained_run, run.folder)
    write_json(run.config, {**run.read_config(), "data": str(data)})
    assert evaluate(Arguments(run=run.folder, draws=0)) == 0
    assert "has changed" not in capsys.readouterr().out
    dataset = read_dataset(data, val_fraction=0.4)
    held = {dataset.files[row] for row in dataset.splits["val"]}
    assert report(ReportArguments(run=run.folder)) == 0  # which leaves the validation pictures' names
    gone = sorted(held)[0]
    (data / gone).unlink()
    assert evaluate(Arguments(run=run.folder, draws=0, predictions=tmp_path / "p.csv")) == 0
    assert "has changed since the run was trained" in capsys.readouterr().out
    assert set(pl.read_csv(tmp_path / "p.csv")["file"]) == held - {gone}
    rows = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join(row for row in rows if not row.startswith(Path(gone).name)))
    left = [row.partition(",")[0] for row in (data / "train.csv").read_text().splitlines()[1:]]
    for name in left[:9]:
        (data / "images" / name).unlink()
    with pytest.raises(InputError, match=r"9 of 39 rows have no usable picture .*--allow-bad"):
        evaluate(Arguments(run=run.folder, draws=0))


def test_the_data_set_of_a_run_in_another_place_keeps_the_run_s_validation_pictures(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One picture less would split another set off, most of which the network was trained on."""
    run = Run(shutil.copytree(trained_run, tmp_path / "run"))
    assert report(ReportArguments(run=run.folder)) == 0
    moved = shutil.copytree(own_data(trained_run), tmp_path / "moved")
    dataset = read_dataset(moved, val_fraction=0.4)
    held = {dataset.files[row] for row in dataset.splits["val"]}
    rows = (moved / "train.csv").read_text().splitlines()
    (moved / "train.csv").write_text("\n".join(row for row in rows if not row.startswith("0.png")) + "\n")
    drawn = read_dataset(moved, val_fraction=0.4)
    assert {drawn.files[row] for row in drawn.splits["val"]} != held - {"images/0.png"}
    capsys.readouterr()
    assert evaluate(Arguments(run=run.folder, data=moved, draws=0, predictions=tmp_path / "p.csv")) == 0
    assert "has changed since the run was trained" in capsys.readouterr().out
    assert set(pl.read_csv(tmp_path / "p.csv")["file"]) == held - {"images/0.png"}


def test_another_data_set_with_a_validation_set_of_its_own_keeps_it(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever names of pictures both have."""
    run = Run(shutil.copytree(trained_run, tmp_path / "run"))
    assert report(ReportArguments(run=run.folder)) == 0
    other = shutil.copytree(own_data(trained_run), tmp_path / "other")
    header, *rows = (other / "train.csv").read_text().splitlines()
    for name, part in (("train", rows[:25]), ("val", rows[25:])):
        (other / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    capsys.readouterr()
    assert evaluate(Arguments(run=run.folder, data=other, draws=0, predictions=tmp_path / "p.csv")) == 0
    assert "has changed" not in capsys.readouterr().out
    assert set(pl.read_csv(tmp_path / "p.csv")["file"]) == {f"images/{row.partition(',')[0]}" for row in rows[25:]}
