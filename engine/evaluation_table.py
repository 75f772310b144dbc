"""The figures of an evaluation as a person reads them in a terminal."""

from typing import Any

from rich.table import Table
from rich.text import Text

from engine.progress import console, say

NAMES = {"micro_f1": "micro-F1", "macro_f1": "macro-F1", "map": "mAP"}
LONGEST = 40  # characters of a label
WIDTH = 160  # characters of a line, where the terminal has fewer or there is none


def print_figures(content: dict[str, Any]) -> None:
    """Headline figures and a line a label, the most frequent first."""
    tuned, bootstrap = content["tuned"], content["bootstrap"]
    table = Table("", "at 0.5", "tuned thresholds", box=None)
    for name, title in NAMES.items():
        table.add_row(title, _figure(content, name, 4), _figure(tuned, name, 4) if name != "map" else "")
    say(
        f"{content['split']} of {content['data']}: {content['rows']:,} pictures, {len(content['labels'])} labels, "
        f"epoch {content['epoch']}; loss {content['loss']:.4f}, calibration error {content['calibration_error']:.4f}"
    )
    _print(table)
    if "intervals" in content:
        say(f"in brackets: 95 % intervals of {bootstrap['draws']:,} bootstrap draws, seed {bootstrap['seed']}")
    _print(_labels(content))


def _print(table: Table) -> None:
    console.print(table, width=max(console.width, WIDTH), no_wrap=True, crop=False)


def _labels(content: dict[str, Any]) -> Table:
    table = Table("label", box=None)
    for title in ("pictures", "AP", "precision", "recall", "F1 at 0.5", "threshold", "precision", "recall", "F1 there"):
        table.add_column(title, justify="right")
    pairs = zip(content["labels"], content["labels_tuned"], strict=True)
    for half, tuned in sorted(pairs, key=lambda pair: -pair[0]["support"]):
        name = half["label"]
        table.add_row(
            Text(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"),
            f"{half['support']:,}",
            "–" if half["ap"] is None else _figure(half, "ap", 3),
            *(f"{half[figure]:.3f}" for figure in ("precision", "recall")),
            _figure(half, "f1", 3),
            f"{content['thresholds'][name]:.3f}",
            *(f"{tuned[figure]:.3f}" for figure in ("precision", "recall")),
            _figure(tuned, "f1", 3),
        )
    return table


def _figure(row: dict[str, Any], name: str, digits: int) -> str:
    interval = row.get("intervals", {}).get(name)
    bounds = "" if interval is None else " ({:.2f}–{:.2f})".format(*interval)
    return f"{row[name]:.{digits}f}{bounds}"
