"""RUN/figures: a run's charts as PNG files, for papers and slides."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.run import Run
from pipelines.cache import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f66b0", "#c45a12", "#2b8050", "#8647a5", "#0b7f86", "#5c6670")
LONGEST = 24  # characters of a label
NAMED = 150  # labels that have room for their names


def write_run_figures(run: Run, report: dict[str, Any], epochs: list[dict[str, Any]]) -> None:
    """Learning curves, and F1 of each label."""
    run.figures.mkdir(exist_ok=True)
    if epochs:
        save(draw_curves(epochs), run.figures / "learning_curves.png")
    save(draw_labels(report["labels"], "F1 at 0.5"), run.figures / "f1_of_each_label.png")


def draw_curves(epochs: list[dict[str, Any]]) -> "Figure":
    """Losses, and figures of merit, against the epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = {"loss": ("train_loss", "val_loss"), "validation": ("micro_f1", "macro_f1", "map")}
    for axes, (title, names) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            axes.plot([e["epoch"] for e in epochs], [e[name] for e in epochs], marker=".", color=colour, label=name)
        axes.set(title=title, xlabel="epoch")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    return figure


def draw_labels(labels: list[dict[str, Any]], title: str) -> "Figure":
    """A bar of F1 a label, the most frequent label first; `labels` as report.json has them."""
    from matplotlib.figure import Figure

    shown = sorted(labels, key=lambda row: -row["support"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(shown)), [row["f1"] for row in shown], yerr=_deviations(shown), color=COLOURS[0], ecolor="0.3")
    name_labels(axes, [row["label"] for row in shown])
    axes.set(ylim=(0, 1), ylabel="F1", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _deviations(shown: list[dict[str, Any]]) -> list[float] | None:
    return [row["f1_deviation"] for row in shown] if shown and "f1_deviation" in shown[0] else None


def name_labels(axes: Any, names: Sequence[str], counts: Sequence[int] | None = None) -> None:
    """Names of labels below the x axis, with counts in brackets; nothing in them is taken for mathematics."""
    shown = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    if counts is not None:
        shown = [f"{name} ({count:,})" for name, count in zip(shown, counts, strict=True)]
    size = max(4, min(9, 600 // max(1, len(shown))))
    if len(shown) <= NAMED:
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=size, parse_math=False)
    else:
        axes.set(xlabel="labels by frequency")
    axes.set_xlim(-0.6, len(shown) - 0.4)


def save(figure: "Figure", path: Path) -> None:
    """Writes the figure as its name's ending says."""
    with warnings.catch_warnings(), replace_file(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font does not have
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)
