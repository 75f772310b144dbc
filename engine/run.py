"""A run's folder: where each file lies, and how it is written so that nothing is ever half there."""

import contextlib
import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cache import replace_file
from pipelines.errors import InputError, reading

FIGURES = ("epoch", "train_loss", "val_loss", "micro_f1", "macro_f1", "map", "seconds")  # that a line must have


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
    def previous(self) -> Path:
        return self.folder / "checkpoints" / "previous.pt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.pt"

    @property
    def thresholds(self) -> Path:
        return self.folder / "thresholds.json"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.npz"

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
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def sampling(self) -> Path:
        return self.folder / "sampling.csv"

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
        """Raises InputError where the folder has a run in it already, or cannot be one: before any work, not after."""
        with reading(self.folder):
            exists = self.config.exists()
            place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if exists:
            raise InputError(f"{self.folder}: there is a run in it; --resume {self.folder} continues it")
        if not place.is_dir():
            raise InputError(f"{self.folder}: {'is' if place == self.folder else f'{place} is'} a file, not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{self.folder}: {place} is not ours to write in; --out RUN takes another")

    def create(self) -> None:
        """Makes the folder.

        Raises:
            InputError: it cannot be written.
        """
        try:
            for folder in (self.last.parent, self.figures, self.tensorboard):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{error.filename or self.folder}: cannot be written: {error.strerror}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process trains in the folder while the context lasts; the lock goes with the process, however it
        ends. Where files cannot be locked, as in some network's folders, nobody is kept out.

        Raises:
            InputError: one does already.
        """
        folder = os.open(self.last.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(f"{self.folder}: another process is training in it") from None
            yield
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def created(self) -> Iterator[None]:
        """A new run's folder, ours alone; what an error leaves there without a checkpoint is taken away, lest it be in
        the way.

        Raises:
            InputError: it cannot be written, or another process was quicker.
        """
        try:
            self.create()
        except BaseException:
            self._remove_empty()
            raise
        with self.locked():
            self.require_new()
            try:
                yield
            except BaseException:
                if not self.last.exists() and not self.best.exists():
                    self._remove()
                raise

    def _remove(self) -> None:
        """The files of a run without checkpoints, and folders that are empty then."""
        files = [self.config, self.metrics, self.rejected, self.sampling, *self.tensorboard.glob("events.out.*")]
        with contextlib.suppress(OSError):
            for file in files:
                file.unlink(missing_ok=True)
        self._remove_empty()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            for folder in (self.last.parent, self.figures, self.tensorboard, self.folder):
                folder.rmdir()

    def reported(self) -> tuple[int, bool] | None:
        """The epoch that report.json and the thresholds beside it are of, and whether training had come to its end;
        None where there is no report."""
        try:
            content = json.loads(self.report.read_text())
            return int(content["epoch"]), content.get("finished", True) is True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def read_config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            InputError: there is no run in the folder, or config.json is not one of ours.
        """
        with reading(self.config):
            if not self.config.exists():
                raise InputError(f"{self.folder}: no run in it (config.json is missing)")
            try:
                content = json.loads(self.config.read_text())
            except ValueError as error:
                raise InputError(f"{self.config}: not JSON: {error}") from None
        if not isinstance(content, dict):
            raise InputError(f"{self.config}: not a configuration")
        return content

    def metric_lines(self) -> list[dict[str, Any]]:
        """A mapping an epoch.

        Raises:
            InputError: a line that is not one of ours.
        """
        if not self.metrics.exists():
            return []
        with reading(self.metrics):
            text = self.metrics.read_text()
        try:
            lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
            if not all(isinstance(line[name], int | float) for line in lines for name in FIGURES):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{self.metrics}: has a line that is not an epoch's figures") from None
        return sorted(lines, key=lambda line: line["epoch"])

    def write_metrics(self, lines: Iterable[dict[str, Any]]) -> None:
        """All epochs' lines."""
        with replace_file(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_json(path: Path, content: Any) -> None:
    """JSON that a person can read, whole or not at all."""
    with replace_file(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", errors="backslashreplace")  # paths that are not UTF-8, as JSON escapes them
