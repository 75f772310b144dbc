"""Pictures a label before and after sampling, for the log and for RUN/sampling.csv."""

import csv

import numpy as np

from engine.config import Config
from engine.run import Run
from pipelines.dataset import Dataset
from pipelines.sampling import epoch_rows, oversample_target

SHOWN = 5  # labels of either end in the log


def sampling_report(dataset: Dataset, config: Config, run: Run) -> list[str]:
    """Lines for the log; none for uniform sampling. Writes all labels' counts to the run's folder."""
    if config.sampling == "uniform":
        return []
    targets = dataset.targets[dataset.splits["train"]]
    drawn = epoch_rows(targets, config.sampling, config.seed, 0, config.oversample_target)
    before, after = targets.sum(0), targets[drawn].sum(0)
    with run.sampling.open("w", newline="", encoding="utf-8") as file:
        rows = zip(dataset.labels, before.tolist(), after.tolist(), strict=True)
        csv.writer(file).writerows([("label", "before", "after"), *rows])
    lines = []
    if config.sampling == "oversample":
        target = config.oversample_target or oversample_target(len(targets))
        scaled = config.oversample_target is None and target != oversample_target(10**9)
        why = f" (the study's 2,500 of 30,000 pictures, scaled to {len(targets):,})" if scaled else ""
        lines.append(f"oversample: at least {target:,} pictures a label{why}")
    unseen = [label for label, count in zip(dataset.labels, before, strict=True) if not count]
    if unseen:
        more = f" and {len(unseen) - SHOWN:,} other labels" if len(unseen) > SHOWN else ""
        lines.append(f"{config.sampling}: no training picture has {', '.join(unseen[:SHOWN])}{more}: nothing to repeat")
    order = np.argsort(before, kind="stable")
    counts = [f"{dataset.labels[i]} {before[i]:,} → {after[i]:,}" for i in order]
    if len(counts) > 2 * SHOWN:
        counts[SHOWN:-SHOWN] = [f"{len(counts) - 2 * SHOWN:,} labels between them"]
    growth = f"{len(targets):,} → {len(drawn):,} rows an epoch ({len(drawn) / len(targets):.2f}×)"
    lines.append(f"{config.sampling}: {growth}; {', '.join(counts)}")
    major = before >= np.median(before)
    grown = after[major].sum() / max(1, before[major].sum())
    lines.append(f"{config.sampling}: the more frequent half of the labels grew {grown:.2f}× along with the others")
    return lines
