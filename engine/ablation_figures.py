"""Figures of a study: F1 of each label in each arm, and all arms beside each other against label frequency."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.ablation import Results
from engine.arms import ARMS, Arm
from engine.run_figures import COLOURS, draw_labels, name_labels, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 30  # labels that have bars side by side; more of them are dots with a running mean


def write_figures(results: Results, folder: Path) -> None:
    """f1_ARM.png for each arm and f1_all_arms.png, on the last of the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    split = results.splits[-1]
    for arm in results.arms:
        rows: list[dict[str, Any]] = [
            {"label": label, "support": count, "f1": mean, "f1_deviation": deviation}
            for label, count, (mean, deviation) in zip(
                results.labels, results.frequency, results.label_f1(arm, split), strict=True
            )
        ]
        runs = len(results.of(arm))
        title = f"{ARMS[arm].title}: F1 of each label on {split}, mean of {runs} run{'s' if runs > 1 else ''}"
        save(draw_labels(rows, f"{title}, the most frequent first"), folder / f"f1_{arm}.png")
    save(draw_arms(results, split), folder / "f1_all_arms.png")


def draw_arms(results: Results, split: str) -> "Figure":
    """F1 of each label in all arms; the most frequent label first."""
    from matplotlib.figure import Figure

    order = np.argsort([-count for count in results.frequency], kind="stable")
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots()
    draw = _bars if len(order) <= BARS else _running_means
    for number, arm in enumerate(results.arms):
        draw(axes, number, len(results.arms), arm, np.array(results.label_f1(arm, split))[order])
    name_labels(axes, [results.labels[i] for i in order], [results.frequency[i] for i in order])
    axes.set(ylim=(0, 1), ylabel="F1 at 0.5")
    axes.set_title(f"{results.data}, {split}: labels by pictures in training", parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=len(results.arms), loc="upper right")
    return figure


def _bars(axes: Any, number: int, arms: int, arm: Arm, f1: Any) -> None:
    width = 0.8 / arms
    places = np.arange(len(f1)) + (number - (arms - 1) / 2) * width
    colour = COLOURS[number]
    axes.bar(places, f1[:, 0], width, yerr=f1[:, 1], color=colour, ecolor="0.4", label=ARMS[arm].title)


def _running_means(axes: Any, number: int, arms: int, arm: Arm, f1: Any) -> None:
    places, reach = np.arange(len(f1)), max(1, len(f1) // 12)
    mean = [f1[max(0, i - reach) : i + reach + 1, 0].mean() for i in places]
    axes.plot(places, f1[:, 0], ".", color=COLOURS[number], alpha=0.35)
    axes.plot(places, mean, color=COLOURS[number], linewidth=2, label=ARMS[arm].title)
