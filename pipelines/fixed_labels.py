"""labels.txt, which fixes the labels of a table or of shards and their order."""

from pathlib import Path

from pipelines.accents import composed
from pipelines.errors import reading


def fixed_labels(root: Path) -> tuple[str, ...] | None:
    """The labels that root/labels.txt has a line each, once each; None where there is no such file.

    Raises:
        InputError: it cannot be read.
    """
    path = root / "labels.txt"
    if not path.is_file():
        return None
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(dict.fromkeys(composed(line.strip()) for line in lines if line.strip()))
