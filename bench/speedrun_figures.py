"""speedrun.json and speedrun.png: what races came to."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.race import Outcome
from engine.config import Config, Preset
from engine.provenance import provenance
from engine.run import write_json
from engine.run_figures import COLOURS, save
from pipelines.dataset import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAREST = 0.25  # share of the labels


def write_figures(
    races: Sequence[dict[str, Outcome]], configs: dict[Preset, Config], dataset: Dataset, out: Path
) -> list[str]:
    """Writes both files; what they say, a line each.

    Args:
        races: the outcomes "paper", "sprint" and "fast" of each seed.
        configs: of the presets, of any seed.
        out: folder; made where it is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    rare = rarest(dataset)
    found = [compared(race, rare) for race in races]
    median = medians(found)
    content = {
        "data": dataset.root.name,
        "configs": {preset: config.values() for preset, config in configs.items()},
        "rarest_labels": rare,
        "median": median,
        "races": [
            {**figures, "runs": {name: outcome.values() for name, outcome in race.items()}}
            for figures, race in zip(found, races, strict=True)
        ],
        **provenance(),
    }
    write_json(out / "speedrun.json", content)
    save(draw(races, f"{dataset.root.name}, {configs['paper'].image_size} pixels, width {configs['paper'].width:g}"),
         out / "speedrun.png")  # fmt: skip
    return told(median, len(races))


def rarest(dataset: Dataset) -> list[str]:
    """The rarest quarter of the labels in training, one at least."""
    count = dataset.targets[dataset.splits["train"]].sum(0)
    number = max(1, int(len(count) * RAREST))
    return [dataset.labels[i] for i in np.argsort(count, kind="stable")[:number]]


def compared(race: dict[str, Outcome], rare: Sequence[str]) -> dict[str, Any]:
    """The figures of one seed.

    `target` is what paper ends with on validation: the micro-F1 of the network that it keeps. `ratio` is the time in
    which the sprint first has it over the time that paper trains, `ratio_first` over the time in which paper first
    had it; null where the sprint never has it. Differences are fast's over paper's after the same time, by split.
    """
    paper, sprint, fast = race["paper"], race["sprint"], race["fast"]
    target = paper.final["val"]["micro_f1"]
    reached, first = sprint.reached(target), paper.reached(target)
    return {
        "target": target,
        "seconds": {"paper": paper.seconds, "paper_first": first, "sprint": reached},
        "ratio": None if reached is None else reached / paper.seconds,
        "ratio_first": None if reached is None or first is None else reached / first,
        "difference": {
            split: {
                **{
                    name: fast.final[split][name] - paper.final[split][name] for name in ("micro_f1", "macro_f1", "map")
                },
                "rarest_f1": rarest_f1(fast, split, rare) - rarest_f1(paper, split, rare),
            }
            for split in paper.final
        },
    }


def rarest_f1(outcome: Outcome, split: str, rare: Sequence[str]) -> float:
    """Mean F1 of these labels at 0.5."""
    return statistics.fmean(outcome.final[split]["f1"][label] for label in rare)


def medians(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds, of each figure that all of them have; a ratio that a seed has not counts as never."""
    ratios: dict[str, Any] = {}
    for name in ("ratio", "ratio_first"):
        middle = statistics.median(np.inf if seed[name] is None else seed[name] for seed in found)
        ratios[name] = middle if np.isfinite(middle) else None
    difference = {
        split: {name: statistics.median(seed["difference"][split][name] for seed in found) for name in figures}
        for split, figures in found[0]["difference"].items()
    }
    return {"target": statistics.median(seed["target"] for seed in found), **ratios, "difference": difference}


def told(median: dict[str, Any], seeds: int) -> list[str]:
    """The medians in words."""
    ratio = "never" if median["ratio"] is None else f"after {median['ratio']:.2f} of paper's time"
    lines = [f"median of {seeds}: fast has paper's final micro-F1, {median['target']:.4f}, {ratio}"]
    for split, figures in median["difference"].items():
        lines.append(
            f"after the same time, on {split}: micro-F1 {100 * figures['micro_f1']:+.1f}, "
            f"mAP {100 * figures['map']:+.1f}, macro-F1 {100 * figures['macro_f1']:+.1f}, "
            f"F1 of the rarest quarter {100 * figures['rarest_f1']:+.1f}"
        )
    return lines


def draw(races: Sequence[dict[str, Outcome]], title: str) -> "Figure":
    """micro-F1 and mAP on validation against seconds of training, a line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, (name, written) in zip(figure.subplots(1, 2), (("micro_f1", "micro-F1"), ("map", "mAP")), strict=True):
        for number, race in enumerate(races):
            for (run, outcome), colour, style in zip(race.items(), COLOURS, ("-", ":", "-"), strict=False):
                looks = [asdict(look) for look in outcome.looks]
                axes.plot(
                    [look["seconds"] for look in looks],
                    [look[name] for look in looks],
                    style,
                    color=colour,
                    marker=".",
                    label=None if number else {"sprint": "fast, a quarter of the time"}.get(run, run),
                )
        axes.set(xlabel="seconds of training", ylabel=f"{written} on validation", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure
