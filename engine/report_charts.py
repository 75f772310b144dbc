"""The charts of a report, from the figures of a run and its answers on validation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size
from sklearn.metrics import precision_recall_curve

from engine.calibration import BINS, calibration
from engine.charts import CHARACTER, LABEL_GAP, Axis, Chart, Dot, Line
from engine.predicted import Predicted

SHARE = Axis(0, 1)
FAINT = 100  # labels that have a precision-recall curve of their own, at most
SWEPT = 100  # thresholds of the sweep, 0 to 0.99
WEAKEST, FREQUENT, BEST = 6, 3, 3  # labels that are named in the overview, where there is room
LONGEST = 22  # characters of a name in a chart; those of wide scripts count twice

Epochs = Sequence[dict[str, Any]]


def short(name: str, longest: int = LONGEST) -> str:
    """A name that fits into a chart."""
    return name if cell_len(name) <= longest else set_cell_size(name, longest - 1).rstrip() + "…"


def loss_curves(epochs: Epochs, best: int) -> Chart:
    """Training and validation loss of each epoch."""
    numbers = [line["epoch"] for line in epochs]
    values = [[line[name] for line in epochs] for name in ("train_loss", "val_loss")]
    every = [value for part in values for value in part if math.isfinite(value)]
    top = max(every, default=1.0) or 1.0
    return Chart(
        "Loss",
        f"Loss by epoch. Training ends at {values[0][-1]:.3f}, validation at {values[1][-1]:.3f}.",
        _epoch_axis(numbers),
        Axis(0, top * 1.05),
        (
            Line(numbers, values[0], "quiet", "training"),
            Line(numbers, values[1], "main", "validation"),
        ),
        _single(numbers, values, ("quiet", "main")),
        mark=(best, "kept"),
        read=True,
        digits=4,
    )


def score_curves(epochs: Epochs, best: int) -> Chart:
    """micro-F1, macro-F1 and mAP on validation of each epoch."""
    numbers = [line["epoch"] for line in epochs]
    names = {"micro_f1": ("main", "micro-F1"), "macro_f1": ("second", "macro-F1"), "map": ("third", "mAP")}
    values = [[line[key] for line in epochs] for key in names]
    said = ", ".join(f"{name} at {part[-1]:.3f}" for (_, name), part in zip(names.values(), values, strict=True))
    return Chart(
        "Validation at 0.5",
        f"Figures of merit on validation by epoch; at the end {said}.",
        _epoch_axis(numbers),
        SHARE,
        tuple(Line(numbers, part, style, name) for part, (style, name) in zip(values, names.values(), strict=True)),
        _single(numbers, values, tuple(style for style, _ in names.values())),
        mark=(best, "kept"),
        read=True,
    )


def speed_curve(epochs: Epochs) -> Chart:
    """Pictures a second in training, by epoch."""
    numbers = [line["epoch"] for line in epochs]
    speeds = [line.get("images_per_s", math.nan) for line in epochs]
    known = [speed for speed in speeds if math.isfinite(speed)]
    return Chart(
        "Pictures a second",
        f"Training speed by epoch, {min(known, default=0):.0f} to {max(known, default=0):.0f} pictures a second.",
        _epoch_axis(numbers),
        Axis(0, max(known, default=1.0) * 1.1 or 1.0),
        (Line(numbers, speeds, "main", "pictures/s"),),
        _single(numbers, [speeds], ("main",)),
        read=True,
        digits=0,
    )


def _epoch_axis(numbers: Sequence[int]) -> Axis:
    first, last = min(numbers, default=1), max(numbers, default=1)
    step = max(1, math.ceil((last - first) / 6))
    return Axis(first, last, "epoch", ticks=tuple(range(first, last + 1, step)))


def _single(numbers: Sequence[int], values: Sequence[Sequence[float]], styles: Sequence[str]) -> tuple[Dot, ...]:
    """Dots where a line of one epoch would not be seen."""
    if len(numbers) != 1:
        return ()
    return tuple(
        Dot(numbers[0], part[0], f"{part[0]:.4f}", style)
        for part, style in zip(values, styles, strict=True)
        if math.isfinite(part[0])
    )


def f1_by_frequency(rows: Sequence[dict[str, Any]]) -> Chart:
    """F1 of each label against its pictures, the weakest and the strongest named; `rows` as report.json has them."""
    present = sorted((row for row in rows if row["support"]), key=lambda row: row["f1"])
    most = max((row["support"] for row in present), default=1)
    least = min((row["support"] for row in present), default=1)
    few = ", ".join(f"{row['label']} {row['f1']:.2f}" for row in present[:3])
    chart = Chart(
        "F1 of each label against its frequency",
        f"{len(present)} labels by pictures in validation and F1. The weakest: {few or 'none'}.",
        Axis(max(0.8, least * 0.8), max(most, least + 1) * 1.25, "pictures in validation", log=True),
        Axis(0, 1, "F1"),
        width=460,
        height=330,
    )
    frequent = sorted(present, key=lambda row: -row["support"])[:FREQUENT]
    named = _with_room(chart, [*present[:WEAKEST], *frequent, *reversed(present[-BEST:])], present)
    dots = tuple(
        Dot(
            row["support"],
            row["f1"],
            f"{row['label']} · F1 {row['f1']:.2f} · {row['support']:,} pictures",
            name=short(row["label"]) if row["label"] in named else "",
        )
        for row in present
    )
    return replace(chart, dots=dots)


def _with_room(chart: Chart, wanted: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> set[str]:
    """Names of those labels whose name would touch neither another name nor another label's dot."""
    left, _, right, _ = chart.box
    places = {row["label"]: (chart.px(row["support"]), chart.py(row["f1"])) for row in rows}
    taken: dict[str, tuple[float, float, float]] = {}  # left, right and height of a name
    for row in wanted:
        if row["label"] in taken:
            continue
        x, y = places[row["label"]]
        length = CHARACTER * cell_len(short(row["label"]))
        start = x - 7 - length if x > (left + right) / 2 else x + 7
        names = any(start < b + 4 and a < start + length + 4 and abs(y - v) < LABEL_GAP for a, b, v in taken.values())
        dots = any(
            start - 4 < u < start + length + 4 and abs(y - v) < 8 for k, (u, v) in places.items() if k != row["label"]
        )
        if not names and not dots:
            taken[row["label"]] = (start, start + length, y)
    return set(taken)


def precision_recall(found: Predicted, labels: Sequence[str], rows: Sequence[dict[str, Any]]) -> Chart:
    """A curve of all answers together, and a faint one for each label."""
    grid = np.linspace(0, 1, 60)
    order = sorted((i for i, row in enumerate(rows) if row["support"]), key=lambda i: -rows[i]["support"])
    lines = [
        Line(
            grid,
            _precision_at(found.targets[:, i], found.probabilities[:, i], grid),
            "faint",
            tip=f"{labels[i]} · AP {rows[i]['ap']:.2f} · {rows[i]['support']:,} pictures",
        )
        for i in order[:FAINT]
    ]
    if found.targets.any():
        together = _precision_at(found.targets.ravel(), found.probabilities.ravel(), grid)
        lines.append(Line(grid, together, "main", tip="all labels together"))
    return Chart(
        "Precision against recall",
        f"Precision-recall curves: all answers together in bold, {len(order[:FAINT])} labels one by one in grey.",
        Axis(0, 1, "recall", percent=True),
        Axis(0, 1, "precision", percent=True),
        tuple(lines),
    )


def _precision_at(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float32], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Precision of the highest threshold that reaches each recall."""
    precision, recall, _ = precision_recall_curve(targets, probabilities)
    place = np.searchsorted(recall[::-1], grid, side="left")
    reached: NDArray[np.float64] = precision[::-1][np.minimum(place, len(precision) - 1)]
    return reached


def threshold_sweep(found: Predicted) -> Chart:
    """Precision, recall and F1 at one threshold for all labels."""
    at = np.arange(SWEPT) / 100
    place = np.minimum((found.probabilities.astype(np.float64) * 100).astype(np.int64), SWEPT - 1)
    labels = found.targets.shape[1]
    decided, hits = np.zeros((SWEPT, labels)), np.zeros((SWEPT, labels))
    for i in range(labels):  # answers at or above each threshold
        decided[:, i] = np.cumsum(np.bincount(place[:, i], minlength=SWEPT)[::-1])[::-1]
        hits[:, i] = np.cumsum(np.bincount(place[found.targets[:, i], i], minlength=SWEPT)[::-1])[::-1]
    positive = found.targets.sum(0)
    precision = _share(hits.sum(1), decided.sum(1))
    recall = _share(hits.sum(1), np.full(SWEPT, positive.sum(), float))
    micro = _share(2 * hits.sum(1), decided.sum(1) + positive.sum())
    macro = _share(2 * hits, decided + positive).mean(1)
    precision[decided.sum(1) == 0] = np.nan
    best = int(np.argmax(micro))
    return Chart(
        "One threshold for all labels",
        f"Precision, recall and F1 against the threshold; micro-F1 is highest, {micro[best]:.3f}, at {at[best]:.2f}.",
        Axis(0, 1, "threshold"),
        Axis(0, 1, percent=True),
        (
            Line(at, _ending(precision), "precision", "precision"),
            Line(at, recall, "recall", "recall"),
            Line(at, micro, "main", "micro-F1"),
            Line(at, macro, "second", "macro-F1"),
        ),
        mark=(0.5, "0.5"),
        read=True,
    )


def _ending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The last number held to the end, where the values end in none: the line's name stands there."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known):
        values[known[-1] :] = values[known[-1]]
    return np.nan_to_num(values)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def reliability(found: Predicted) -> Chart:
    """How often answers of each probability are right; below, how many there are of them."""
    bins = calibration(found.probabilities, found.targets)
    filled = np.flatnonzero(bins.count)
    most = math.log1p(bins.count.max(initial=1))
    dots = tuple(
        Dot(
            float(bins.said[i]),
            float(bins.true[i]),
            f"said {bins.said[i]:.0%}, true {bins.true[i]:.0%} · {bins.count[i]:,} answers",
            radius=2.5 + 3.5 * math.log1p(int(bins.count[i])) / most,
            whisker=_wilson(float(bins.true[i]), int(bins.count[i])),
        )
        for i in filled
    )
    bars = tuple(
        (math.log1p(int(n)) / most, f"{i / BINS:.0%} to {(i + 1) / BINS:.0%} · {n:,} answers")
        for i, n in enumerate(bins.count)
    )
    return Chart(
        "Said against true",
        f"Reliability diagram: share of true answers against their probability; mean distance {bins.error:.3f}.",
        Axis(0, 1, "probability said", percent=True),
        Axis(0, 1, "true", percent=True),
        (Line((0, 1), (0, 1), "guide"),),
        dots,
        bars=bars,
    )


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` (Wilson, 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half
