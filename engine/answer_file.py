"""The table of answers: written as they come, whole at the end, and gone on with after an interruption.

Until it is finished it lies beside its place as JSON lines, a line a photograph, whatever it is to become: a line is
whole or it is not, so that what an interruption leaves can be read. The name has a digest of the network in it, lest
one goes on with another's answers.
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cache import replace_file
from pipelines.errors import InputError

ENDINGS = (".csv", ".jsonl", ".parquet")
DIGITS = 7  # of a probability, after the point
FIXED = ("file", "labels", "error")  # columns beside those of the labels


class AnswerFile:
    """A file of answers in the making.

    JSON lines have `file`, `labels` (the decided ones), `error` and `probabilities` by label. CSV and Parquet have
    `file`, `labels` (in CSV separated by |), `error` and a column a label. Of a photograph that could not be read, all
    but `file` and `error` are empty.

    Args:
        out: the file; its ending decides what it is.
        labels: of the network.
        digest: of what decides the answers.
        resume: whether to go on with an interrupted file.
        rank: of this process among several that answer for a part of the files each. Each has a file of its own until
            the first, who alone knows what was there already, puts them together.

    Attributes:
        done: files that were there already, whichever process answered for them; with the first.
        rows, unreadable: of this process so far, and with the first those that were there already.

    Raises:
        InputError: another ending, a folder, a place that cannot be written, and with the first an interrupted file
            without `resume`, or none with.
    """

    def __init__(self, out: Path, labels: Sequence[str], digest: str, resume: bool, rank: int = 0) -> None:
        if out.suffix.lower() not in ENDINGS:
            raise InputError(f"--out {out}: the file's name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
        if out.is_dir():
            raise InputError(f"--out {out}: is a folder; give the name of a file")
        self.out, self.labels = out, list(labels)
        self._name = f"{out.name}.{digest}"
        self.partial = out.with_name(f"{self._name}{f'.{rank}' if rank else ''}.partial")
        self.rows = self.unreadable = 0
        self.done: set[str] = set()
        self._own: set[str] = set()  # of `done`, those in this process's file
        try:
            if not rank:
                self._take_up(resume)
            elif resume and self.partial.exists():
                os.truncate(self.partial, sum(len(line) for _, line in _rows(self.partial)))
            self._file = self.partial.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{out}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # the disk is full
            self._file.close()
        if not _size(self.partial):
            self.partial.unlink(missing_ok=True)

    def _partials(self) -> list[Path]:
        """The files of all processes that have something in them, the first one's first."""
        own = self.out.with_name(f"{self._name}.partial")
        others = self.out.parent.glob(f"{glob.escape(self._name)}.*.partial")
        ordered = (own, *sorted(others, key=lambda path: int(path.suffixes[-2][1:])))
        return [path for path in ordered if _size(path)]

    def _take_up(self, resume: bool) -> None:
        """Notes whose photographs are there; of the own file it cuts off a line that was not finished.

        Raises:
            InputError: there is something without `resume`, or nothing with.
        """
        there = self._partials()
        if there and not resume:
            each = ", ".join(map(str, there))
            raise InputError(f"{each} is left from an interrupted run; --resume goes on, deleting it starts anew")
        if resume and not there:
            raise InputError(f"--resume: no interrupted run of this network with these options wrote {self.out}")
        for path in there:
            whole = 0
            for row, line in _rows(path):
                whole += len(line)
                if row["file"] not in self.done:  # in two files if putting them together was interrupted
                    self.done.add(row["file"])
                    self.unreadable += row["error"] is not None
            if path == self.partial:
                os.truncate(path, whole)
                self._own = set(self.done)
        self.rows = len(self.done)

    def add(
        self,
        files: Sequence[str],
        decided: Sequence[Sequence[str]],
        probabilities: NDArray[np.float32],
        errors: Sequence[str | None],
    ) -> None:
        """A row for each file.

        Args:
            files: their names.
            decided, probabilities: of those without an error, in their order.
            errors: why a file could not be read; None where it could.

        Raises:
            InputError: the disk is full, or fails otherwise.
        """
        answers = iter(zip(decided, np.round(probabilities.astype(np.float64), DIGITS).tolist(), strict=True))
        lines = []
        for file, error in zip(files, errors, strict=True):
            names, values = next(answers) if error is None else (None, None)
            chances = None if values is None else dict(zip(self.labels, values, strict=True))
            row = {"file": file, "labels": names, "error": error, "probabilities": chances}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        try:
            self._file.write("".join(lines))
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None
        self.rows += len(files)
        self.unreadable += sum(error is not None for error in errors)

    def finish(self) -> None:
        """Puts the whole file in its place.

        Raises:
            InputError: the disk is full, or fails otherwise.
        """
        import polars as pl

        try:
            others = [path for path in self._partials() if path != self.partial]
            for path in others:
                self._file.writelines(line.decode() for row, line in _rows(path) if row["file"] not in self._own)
            self._file.flush()
            os.fsync(self._file.fileno())
            if self.out.suffix.lower() == ".jsonl":
                self.partial.replace(self.out)
            else:
                with replace_file(self.out) as temporary:
                    self._convert(temporary)
                self.partial.unlink()
            for path in others:
                path.unlink(missing_ok=True)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._failed(error) from None

    def _convert(self, path: Path) -> None:
        import polars as pl

        chances = pl.Struct({label: pl.Float32 for label in self.labels})
        schema: dict[str, Any] = {
            "file": pl.String,
            "labels": pl.List(pl.String),
            "error": pl.String,
            "probabilities": chances,
        }
        rows = pl.scan_ndjson(self.partial, schema=schema)
        columns = [pl.col("probabilities").struct.field(label).alias(_column(label)) for label in self.labels]
        if self.out.suffix.lower() == ".csv":
            rows.select("file", pl.col("labels").list.join("|"), "error", *columns).sink_csv(path)
        else:
            rows.select(*FIXED, *columns).sink_parquet(path)

    def _failed(self, error: Exception) -> InputError:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return InputError(f"{self.out}: cannot be written: {why}; what is done is in {self.partial}, --resume goes on")


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none: another process may take an empty one away at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows of JSON lines, each with its line, up to one that was not finished."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else {}
                if not isinstance(row["file"], str) or "error" not in row:
                    return
            except (ValueError, KeyError, TypeError):
                return
            yield row, line


def digest(content: bytes, threshold: float | None) -> str:
    """Of what decides the answers: the network's file and the threshold asked for."""
    return hashlib.sha256(content + repr(threshold).encode()).hexdigest()[:12]


def _column(label: str) -> str:
    return f"{label} (label)" if label in FIXED else label
