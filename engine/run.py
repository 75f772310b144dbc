"""A run's folder: where each file lies, and how it is written so that nothing is ever half there."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.cache import replace_file
from pipelines.errors import InputError

LINE = {"epoch", "train_loss", "val_loss", "micro_f1", "macro_f1", "map", "lr", "images_per_s", "seconds"}  # of metrics


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one training run."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"

    @property
    def thresholds(self) -> Path:
        return self.folder / "thresholds.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.csv"

    def rejected_files(self) -> dict[str, str]:
        """Files that the run leaves out, with the reasons."""
        if not self.rejected.is_file():
            return {}
        with self.rejected.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}

    def require_new(self) -> None:
        """Raises InputError where a run has left more than its configuration in the folder, or no file can be there."""
        try:
            begun = self.config.exists() and (self.last.exists() or self.best.exists())
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror}") from None
        if begun:
            raise InputError(f"{self.folder}: there is a run in it; --resume {self.folder} continues it")

    def create(self) -> None:
        """Makes the folder.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "figures").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def read_config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            InputError: there is no run in the folder.
        """
        try:
            content: dict[str, Any] = json.loads(self.config.read_text())
        except FileNotFoundError:
            raise InputError(f"{self.folder}: no run in it (config.json is missing)") from None
        except OSError as error:
            raise InputError(f"{self.folder}: no run in it ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"{self.config}: not JSON: {error}") from None
        if not isinstance(content, dict):
            raise InputError(f"{self.config}: holds no configuration")
        return content

    def metric_lines(self) -> list[dict[str, Any]]:
        """A mapping an epoch.

        Raises:
            InputError: a line that is not one of ours.
        """
        if not self.metrics.exists():
            return []
        try:
            lines = [json.loads(line) for line in self.metrics.read_text().splitlines()]
            if not all(line.keys() >= LINE for line in lines):
                raise KeyError
            return sorted(lines, key=lambda line: int(line["epoch"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{self.metrics}: has a line that is not an epoch's figures") from None

    def write_metrics(self, lines: Iterable[dict[str, Any]]) -> None:
        """All epochs' lines."""
        with replace_file(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_json(path: Path, content: Any) -> None:
    """JSON that a person can read, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values to a file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replace_file(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch has its own for a full disk
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({why}); what was saved before is whole") from None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises:
        InputError: no such file, or it is damaged or holds more than tensors and plain values.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception as error:  # whatever a damaged file makes of the reader
        raise InputError(f"{path}: not a usable checkpoint ({type(error).__name__})") from None
    return state
