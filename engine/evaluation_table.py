"""The figures of an evaluation as a person reads them in a terminal."""

from typing import Any

from rich.cells import cell_len

from pipelines.progress import say

NAMES = {"micro_f1": "micro-F1", "macro_f1": "macro-F1", "map": "mAP"}
LONGEST = 40  # characters of a label


def print_figures(content: dict[str, Any]) -> None:
    """Headline figures and a line a label, the most frequent first."""
    tuned, bootstrap = content["tuned"], content["bootstrap"]
    rows = [["", "at 0.5", "tuned thresholds"]]
    for name, title in NAMES.items():
        rows.append([title, _figure(content, name, 4), _figure(tuned, name, 4) if name != "map" else ""])
    say(
        f"{content['split']} of {content['data']}: {content['rows']:,} pictures, {len(content['labels'])} labels, "
        f"epoch {content['epoch']}; loss {content['loss']:.4f}, calibration error {content['calibration_error']:.4f}"
    )
    _print(rows)
    if "intervals" in content:
        say(f"in brackets: 95 % intervals of {bootstrap['draws']:,} bootstrap draws, seed {bootstrap['seed']}")
    _print(_labels(content))


def _labels(content: dict[str, Any]) -> list[list[str]]:
    heads = ["label", "pictures", "AP", "precision", "recall", "F1 at 0.5", "threshold", "precision", "recall", "F1"]
    rows = [heads]
    pairs = zip(content["labels"], content["labels_tuned"], strict=True)
    for half, tuned in sorted(pairs, key=lambda pair: -pair[0]["support"]):
        name = half["label"]
        rows.append(
            [
                name if len(name) <= LONGEST else name[: LONGEST - 1] + "…",
                f"{half['support']:,}",
                "–" if half["ap"] is None else _figure(half, "ap", 3),
                *_decided(half),
                f"{content['thresholds'][name]:.3f}",
                *_decided(tuned),
            ]
        )
    return rows


def _decided(row: dict[str, Any]) -> list[str]:
    """Precision, recall and F1 of a label; of one without pictures there are none."""
    if not row["support"]:
        return ["–"] * 3
    return [*(f"{row[figure]:.3f}" for figure in ("precision", "recall")), _figure(row, "f1", 3)]


def _print(rows: list[list[str]]) -> None:
    """Columns under each other, the first to the left; lines are as long as they are, on a terminal and elsewhere."""
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        padded = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [row[0] + padded[0], *(space + cell for space, cell in zip(padded[1:], row[1:], strict=True))]
        say("  ".join(cells).rstrip())


def _figure(row: dict[str, Any], name: str, digits: int) -> str:
    interval = row.get("intervals", {}).get(name)
    bounds = "" if interval is None else " ({:.2f}–{:.2f})".format(*interval)
    return f"{row[name]:.{digits}f}{bounds}"
