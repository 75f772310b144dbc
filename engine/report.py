"""RUN/report.html: one self-contained page about a run, drawn from its figures."""

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.run import Run
from pipelines.cache import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2a6fbb", "#d1602b", "#3a8f5c")


def write_page(run: Run, dataset: Any = None) -> None:
    """Draws the figures and writes the page of a finished run."""
    import json

    import jinja2

    report, config, epochs = json.loads(run.report.read_text()), run.read_config(), run.metric_lines()
    thresholds = json.loads(run.thresholds.read_text())
    figures = {"learning curves": draw_curves(epochs), "F1 of each label": draw_labels(report["labels"])}
    pictures = {name: _save(run.figures, name, figure) for name, figure in figures.items()}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html.jinja")
    page = template.render(
        report=report, config=config, epochs=epochs, thresholds=thresholds, pictures=pictures, run=run.folder.name
    )
    with replace_file(run.page) as temporary:
        temporary.write_text(page, encoding="utf-8")


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


def draw_labels(labels: list[dict[str, Any]]) -> "Figure":
    """A bar of F1 a label, the most frequent label first."""
    from matplotlib.figure import Figure

    shown = sorted(labels, key=lambda row: -row["support"])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(shown)), [row["f1"] for row in shown], color=COLOURS[0])
    names = [row["label"].replace("$", r"\$")[:24] for row in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=max(4, min(9, 400 // len(shown))))
    axes.set(ylim=(0, 1), ylabel="F1 at 0.5", title="labels by frequency in validation")
    return figure


def _save(folder: Path, name: str, figure: "Figure") -> str:
    """Writes the figure as PNG; as a data URL for the page."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font does not have
        figure.savefig(buffer, format="png", dpi=110)
    (folder / f"{name.replace(' ', '_').lower()}.png").write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
