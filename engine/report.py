"""python -m engine.report: RUN/report.html, one self-contained page about a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from engine import command
from pipelines.errors import InputError

if TYPE_CHECKING:
    from engine.predicted import Predicted
    from engine.run import Run
    from engine.trained import Trained
    from pipelines.dataset import Dataset

ENOUGH = 5  # pictures from which on a label is called weak
WEAK = 5  # labels that are named
ROWS = 1000  # of the table, at most
PAGE = Path(__file__).parent / "page"
NO_DATA = "The data set is not where the run found it: no pictures. python -m engine.report RUN --data DIR shows them."


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes report.html and figures/ into a run's folder; of a run that has not finished, of its best epoch so far."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Folder of the data set, where it is no longer where the run found it."""


def main() -> int:
    """Parses the command line and writes; the exit status."""
    return report(command.parse(Arguments, "python -m engine.report"))


def report(arguments: Arguments) -> int:
    """Writes the page as the command line says; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from engine.answers import Stopped
    from engine.final_report import write_figures
    from engine.run import Run
    from pipelines.progress import bar, say

    run = Run(arguments.run)
    content = run.read_config()
    trained = _unreported(run)
    dataset = _dataset(run, content, arguments.data, needed=trained is not None)
    if trained is not None:
        assert dataset is not None
        if trained.labels != dataset.labels:
            raise InputError(f"{dataset.root}: has other labels than the run was trained for")
        say(f"figures of epoch {trained.epoch}, which the run keeps so far")
        with command.Interrupt() as interrupt, bar("evaluating") as advance:
            try:
                write_figures(
                    run,
                    trained.network,
                    trained.epoch,
                    dataset,
                    trained.config,
                    interrupt,
                    lambda n, m: advance(n, m, ""),
                )
            except Stopped:
                return interrupt.status
    write_page(run, dataset)
    say(f"{run.page}")
    return command.OK


def _unreported(run: "Run") -> "Trained | None":
    """The run's best network, if it has no figures yet or those of an epoch that it has left behind."""
    from engine.trained import load_trained

    if not all(path.exists() for path in (run.report, run.thresholds, run.validation)):
        return load_trained(run.folder)
    reported = run.reported()
    try:
        trained = load_trained(run.folder)
    except InputError:  # its checkpoints are gone, which a page can do without
        return None
    return trained if reported is not None and reported[0] != trained.epoch else None


def _dataset(run: "Run", content: dict[str, Any], data: Path | None, needed: bool) -> "Dataset | None":
    """The data set of the run, or None where it is not there and can be done without."""
    from engine.config import Config
    from engine.data import data_of_run, with_validation_of
    from pipelines.progress import say

    config = replace(Config.load(content, run.config), allow_bad=True)
    try:
        dataset = data_of_run(config, data, config.layout, run.rejected_files())
    except InputError as error:
        if needed or data is not None:
            raise
        say(f"note: {error}; the page has no pictures")
        return None
    if data is None and content.get("fingerprint") != dataset.fingerprint():
        say(f"note: {dataset.root} has changed since the run was trained")
    return with_validation_of(run, dataset) if needed else dataset


def write_page(run: "Run", dataset: "Dataset | None") -> None:
    """Writes the page of a run with figures, and figures/*.png; `dataset` is where the pictures come from."""
    from engine.predicted import Predicted
    from engine.run_figures import write_run_figures
    from pipelines.cache import replace_file

    figures, thresholds = _read_figures(run)
    found = Predicted.load(run.validation, len(figures["labels"]))
    page = _page(run, figures, thresholds, found, dataset)
    with replace_file(run.page) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    write_run_figures(run, figures, run.metric_lines())


def _read_figures(run: "Run") -> tuple[dict[str, Any], dict[str, float]]:
    """report.json and thresholds.json.

    Raises:
        InputError: they are not what a run writes.
    """
    import json

    try:
        figures, thresholds = (json.loads(path.read_text()) for path in (run.report, run.thresholds))
        whole = {"epoch", "tuned", "labels_tuned", "bootstrap", "calibration_error"} <= figures.keys()
        if whole and all(isinstance(thresholds[row["label"]], float) for row in figures["labels"]):
            return figures, thresholds
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{run.report}, {run.thresholds}: not the figures of a run; deleted, they are made again")


def _page(
    run: "Run", figures: dict[str, Any], thresholds: dict[str, float], found: "Predicted", dataset: "Dataset | None"
) -> str:
    import base64
    import hashlib

    import jinja2
    import numpy as np
    from markupsafe import Markup
    from rich.cells import cell_len

    from engine import report_charts as charts
    from engine.config import Config
    from engine.cooccurrence import co_occurrence, confusions
    from engine.gallery import confident_mistakes, pipeline_sheet, shown

    config, epochs = run.read_config(), run.metric_lines()
    labels = [row["label"] for row in figures["labels"]]
    at = np.array([thresholds[label] for label in labels], np.float32)
    decided = found.probabilities >= at
    rows = _rows(figures, thresholds, decided, found)
    dataset = None if dataset is None or set(found.files).isdisjoint(dataset.files) else dataset
    mistakes = {
        kind: shown(confident_mistakes(found.probabilities, found.targets, at, wrong), found, labels, dataset)
        for kind, wrong in (("wrong", True), ("missed", False))
    }
    own = Config.load(config, run.config)
    script = (PAGE / "script.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"short": charts.short, "cells": cell_len}
    best, weak = figures["epoch"], _weak(rows)
    return environment.get_template("report.html.jinja").render(
        run=run.folder.resolve().name,
        report={"intervals": None, **figures},
        rows=rows,
        shown_rows=min(ROWS, len(rows)),
        epochs=epochs,
        config=config,
        duration=_duration(epochs[-1]["seconds"]) if epochs else "",
        rate=float(np.median([line.get("images_per_s", 0) for line in epochs])) if epochs else 0.0,
        wait=_wait(epochs),
        weak=weak,
        few=ENOUGH if weak and weak[0]["support"] >= ENOUGH else 0,
        absent=[row["label"] for row in rows if not row["support"]],
        errors={
            "missed": int((found.targets & ~decided).sum()),
            "wrong": int((decided & ~found.targets).sum()),
            "positive": int(found.targets.sum()),
        },
        confused=confusions(labels, decided, found.targets),
        together=co_occurrence(labels, decided, found.targets),
        frequency=charts.f1_by_frequency(rows),
        losses=charts.loss_curves(epochs, best) if epochs else None,
        curves=charts.score_curves(epochs, best) if epochs else None,
        speed=charts.speed_curve(epochs) if epochs else None,
        precision_recall=charts.precision_recall(found, labels, figures["labels"]),
        sweep=charts.threshold_sweep(found) if len(found.files) else None,
        reliability=charts.reliability(found),
        **mistakes,
        pictures=dataset is not None,
        without_pictures=NO_DATA if dataset is None else "None of the training pictures can be decoded any more.",
        sheet=[] if dataset is None else pipeline_sheet(dataset, own),
        options=own.values(),
        provenance={
            key: config[key] for key in ("fingerprint", "git", "python", "machine", "versions") if key in config
        },
        style=Markup((PAGE / "style.css").read_text()),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _rows(
    figures: dict[str, Any], thresholds: dict[str, float], decided: Any, found: "Predicted"
) -> list[dict[str, Any]]:
    """Of each label the figures at its own threshold, F1 at 0.5 and counts of mistakes; the most frequent first."""
    made = []
    for i, (half, tuned) in enumerate(zip(figures["labels"], figures["labels_tuned"], strict=True)):
        said, true = decided[:, i], found.targets[:, i]
        counts = {
            "hits": int((said & true).sum()),
            "missed": int((true & ~said).sum()),
            "wrong": int((said & ~true).sum()),
        }
        made.append({"intervals": None, **tuned, **counts, "half": half["f1"], "threshold": thresholds[tuned["label"]]})
    return sorted(made, key=lambda row: -row["support"])


def _weak(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels of the lowest F1, of those that have ENOUGH pictures, where there are such."""
    present = [row for row in rows if row["support"]]
    enough = [row for row in present if row["support"] >= ENOUGH]
    return sorted(enough or present, key=lambda row: row["f1"])[:WEAK]


def _wait(epochs: list[dict[str, Any]]) -> float | None:
    """Share of training's time that was spent waiting for pictures."""
    import statistics

    known = [line["data_wait_fraction"] for line in epochs if "data_wait_fraction" in line]
    return statistics.median(known) if known else None


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


if __name__ == "__main__":
    command.main(main)
