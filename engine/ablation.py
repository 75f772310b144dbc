"""The outcome of a study: figures of its runs on validation and test, as JSON, CSV and a table of means."""

import csv
import io
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.arms import ARMS, Arm
from engine.config import Device
from engine.evaluate import evaluation
from engine.provenance import provenance
from engine.run import Run, write_json
from engine.trained import load_trained
from pipelines.cache import replace_file
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.progress import bar, say

COLUMNS = ("micro_f1", "macro_f1", "map", "tuned_micro_f1", "tuned_macro_f1")
TITLES = ("micro-F1", "macro-F1", "mAP", "micro-F1, tuned", "macro-F1, tuned")
NOTE = "Percent, mean ± standard deviation over seeds, of the epoch that each run keeps."


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        figures: of its best epoch by split, as report.json has them.
        epochs: that it was trained for.
        minutes: that this took.
    """

    arm: Arm
    seed: int
    figures: dict[str, dict[str, Any]]
    epochs: int
    minutes: float

    def values(self, split: str) -> dict[str, float]:
        """The COLUMNS on a split."""
        figures = self.figures[split]
        tuned = {f"tuned_{name}": figures["tuned"][name] for name in ("micro_f1", "macro_f1")}
        return {**{name: figures[name] for name in COLUMNS[:3]}, **tuned}


@dataclass(frozen=True, slots=True)
class Results:
    """All finished runs of a study on a data set, and what it is: name, label names, training pictures a label."""

    data: str
    labels: tuple[str, ...]
    frequency: tuple[int, ...]
    splits: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def arms(self) -> list[Arm]:
        """Those with a finished run, in the order of ARMS."""
        return [arm for arm in ARMS if any(outcome.arm == arm for outcome in self.outcomes)]

    def of(self, arm: Arm) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.arm == arm]

    def label_f1(self, arm: Arm, split: str) -> list[tuple[float, float]]:
        """Mean and deviation over seeds of F1 at 0.5, a label."""
        runs = [[row["f1"] for row in outcome.figures[split]["labels"]] for outcome in self.of(arm)]
        return [_mean_and_deviation(values) for values in zip(*runs, strict=True)]


def collect(
    done: Sequence[tuple[Arm, int, Path]], dataset: Dataset, device: Device, stopped: Callable[[], bool]
) -> Results:
    """Reads the figures of finished runs on validation; those on test are measured once and kept in RUN/test.json.

    Raises:
        Stopped: `stopped` became true.
        InputError: a run that is damaged.
    """
    splits = ("val", "test") if len(dataset.splits.get("test", ())) else ("val",)
    outcomes = []
    for arm, seed, folder in done:
        run, kept = Run(folder), folder / "test.json"
        figures = {"val": _read(run.report)}
        if "test" in splits:
            if not kept.exists() or _read(kept).get("epoch") != figures["val"]["epoch"]:  # the run has gone on since
                with bar(f"{ARMS[arm].title}, seed {seed}, on test") as advance:
                    trained = load_trained(folder)
                    _, found = evaluation(
                        trained,
                        dataset,
                        "test",
                        device,
                        stopped=stopped,
                        progress=lambda done, total, advance=advance: advance(done, total, ""),  # type: ignore[misc]
                    )
                write_json(kept, found)
            figures["test"] = _read(kept)
        lines = run.metric_lines()
        outcomes.append(Outcome(arm, seed, figures, len(lines), lines[-1]["seconds"] / 60))
    counts = dataset.targets[dataset.splits["train"]].sum(0).tolist()
    return Results(dataset.root.resolve().name, dataset.labels, tuple(counts), splits, tuple(outcomes))


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if {"micro_f1", "tuned", "labels"} <= found.keys():
            return found
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path}: not the figures of a run")


def write_summary(results: Results, folder: Path) -> None:
    """ablation.json, ablation.csv, ablation-labels.csv, ablation.md and figures/ of a study."""
    from engine.ablation_figures import write_figures

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ablation.json", _summary(results))
    _write(folder / "ablation.csv", _csv(_runs(results)))
    _write(folder / "ablation-labels.csv", _csv(_labels(results)))
    table = markdown(results)
    _write(folder / "ablation.md", table)
    write_figures(results, folder / "figures")
    say(table)
    say(f"{folder / 'ablation.md'}, and figures in {folder / 'figures'}")


def markdown(results: Results) -> str:
    """A table a split: means over seeds in percent, with deviations, and the study's own number beside them."""
    lines = []
    for split in results.splits:
        rows = results.outcomes[0].figures[split]["rows"]
        name = {"val": "validation", "test": "test"}[split]
        lines += [f"{results.data}, {name}: {rows:,} pictures, {len(results.labels)} labels", ""]
        heads = ["arm", "the study's micro-F1", *TITLES, "epochs", "minutes", "seeds"]
        lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
        for arm in results.arms:
            runs, option = results.of(arm), ARMS[arm]
            values = [outcome.values(split) for outcome in runs]
            cells = [option.title, "–" if option.published is None else f"{option.published:.2f}"]
            cells += [_percent([value[column] for value in values]) for column in COLUMNS]
            cells += [
                _short(statistics.mean(r.epochs for r in runs)),
                _short(statistics.mean(r.minutes for r in runs)),
            ]
            lines.append(f"| {' | '.join([*cells, str(len(runs))])} |")
        lines.append("")
    return "\n".join([*lines, NOTE]) + "\n"


def _short(value: float) -> str:
    return f"{value:,.0f}" if (value >= 10 and float(value).is_integer()) or value >= 100 else f"{value:.2g}"


def _percent(values: Sequence[float]) -> str:
    mean, deviation = _mean_and_deviation(values)
    return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if len(values) > 1 else "")


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Deviation with n - 1; 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _summary(results: Results) -> dict[str, Any]:
    arms = []
    for arm in results.arms:
        runs, option = results.of(arm), ARMS[arm]
        means: dict[str, Any] = {}
        for split in results.splits:
            values = [outcome.values(split) for outcome in runs]
            pairs = {column: _mean_and_deviation([value[column] for value in values]) for column in COLUMNS}
            means[split] = {column: {"mean": mean, "deviation": dev} for column, (mean, dev) in pairs.items()}
        arms.append(
            {
                "arm": arm,
                "title": option.title,
                "options": option.values,
                "study_micro_f1": None if option.published is None else option.published / 100,
                **means,
                "runs": [
                    {
                        "seed": r.seed,
                        "epochs": r.epochs,
                        "minutes": r.minutes,
                        **{split: r.values(split) for split in results.splits},
                    }
                    for r in runs
                ],
            }
        )
    versions = provenance()
    return {
        "data": results.data,
        "labels": len(results.labels),
        "splits": {split: results.outcomes[0].figures[split]["rows"] for split in results.splits},
        "versions": versions["versions"],
        "cpus": os.cpu_count(),
        "gpu": versions["machine"]["gpu"],
        "git": versions["git"],
        "arms": arms,
    }


def _runs(results: Results) -> list[list[Any]]:
    rows: list[list[Any]] = [["arm", "seed", "split", *COLUMNS, "loss", "best_epoch", "epochs", "minutes"]]
    for r in results.outcomes:
        for split in results.splits:
            figures = r.figures[split]
            values = [f"{value:.6f}" for value in (*r.values(split).values(), figures["loss"])]
            rows.append([r.arm, r.seed, split, *values, figures["epoch"], r.epochs, f"{r.minutes:.2f}"])
    return rows


def _labels(results: Results) -> list[list[Any]]:
    rows: list[list[Any]] = [["split", "label", "training_pictures"]]
    rows[0] += [f"{arm}_{name}" for arm in results.arms for name in ("f1", "f1_deviation")]
    for split in results.splits:
        columns = [results.label_f1(arm, split) for arm in results.arms]
        for i, label in enumerate(results.labels):
            values = [f"{value:.6f}" for column in columns for value in column[i]]
            rows.append([split, label, results.frequency[i], *values])
    return rows


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="")
