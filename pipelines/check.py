"""Finds pictures that do not decode, with the decoder that training uses; remembers what it found."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipelines.augment import DECODE_ERRORS
from pipelines.cache import cache_dir, replace_file
from pipelines.shards import location, read, read_or_none, size_and_time, without_location

if TYPE_CHECKING:
    from PIL import Image

BATCH = 16  # decoded pictures that are in memory together
FOREGROUND = 2000  # files that are decoded before training begins
CHUNK = 2000  # files after which the background check keeps what it has found
TOLERATED = 0.05  # share of bad rows above which a run stops

SCHEMA = {"file": pl.String, "size": pl.Int64, "changed": pl.Int64, "reason": pl.String}
# reason: "" decodes, null nothing known


def undecodable(
    root: Path, files: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> list[tuple[int, str]]:
    """(row, reason) of each file that is known not to decode.

    What was found out is kept in the user's cache folder and holds while size and time of change stay. Of files that
    nothing is known of, FOREGROUND are decoded now, and all of them if more than TOLERATED of these are bad;
    `BackgroundCheck` looks at the rest while training runs.
    """
    stats = [size_and_time(f"{root}/{file}") for file in files]
    seen = pl.DataFrame(
        {
            "file": list(files),
            "size": np.fromiter((size for size, _ in stats), np.int64, len(stats)),
            "changed": np.fromiter((changed for _, changed in stats), np.int64, len(stats)),
        },
        schema={name: kind for name, kind in SCHEMA.items() if name != "reason"},
    )
    memory = _memory(root)
    known = seen.join(_remembered(memory), on=["file", "size", "changed"], how="left", maintain_order="left")
    if known["reason"].null_count():
        reasons: list[str | None] = known["reason"].to_list()
        for row, (size, _) in enumerate(stats):
            if not size:
                reasons[row] = "empty file"
        unknown = [row for row, reason in enumerate(reasons) if reason is None]
        sample = unknown[:: max(1, -(-len(unknown) // FOREGROUND))]
        _check(root, files, reasons, sample, progress)
        if sum(bool(reasons[row]) for row in sample) > TOLERATED * len(sample):
            _check(root, files, reasons, sorted({*unknown} - {*sample}), progress)
        known = seen.with_columns(pl.Series("reason", reasons, pl.String))
        _remember(memory, known)
    bad = known.with_row_index().filter(pl.col("reason") != "")
    return list(zip(bad["index"], bad["reason"], strict=True))


def _check(
    root: Path,
    files: Sequence[str],
    reasons: list[str | None],
    rows: list[int],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Decodes some of the files and writes down what came of it."""
    failures = decode_failures([f"{root}/{files[row]}" for row in rows], progress)
    for row, reason in zip(rows, failures, strict=True):
        reasons[row] = reason


class BackgroundCheck:
    """Decodes the files that nothing is known of, in a process of the lowest priority, as long as the context lasts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> "BackgroundCheck":
        unchecked = _remembered(_memory(self.root))["reason"].null_count()
        command = [sys.executable, "-m", "pipelines.check", str(self.root.resolve())]
        silent = subprocess.DEVNULL
        self.process = (
            subprocess.Popen(
                command,
                stdin=silent,
                stdout=silent,
                stderr=silent,
                start_new_session=True,  # Ctrl-C is for the run
                cwd=Path(__file__).parents[1],
                env={**os.environ, "MANYLABEL_CACHE": str(cache_dir())},  # may be given from the folder we are in
            )
            if unchecked
            else None
        )
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def found(self) -> list[tuple[str, str]]:
        """(file, reason) of all that are known not to decode by now."""
        bad = _remembered(_memory(self.root)).filter(pl.col("reason") != "")
        return list(zip(bad["file"], bad["reason"], strict=True))


def check_the_rest(root: Path) -> None:
    """Decodes every file that nothing is known of, and keeps what it finds every CHUNK files."""
    memory = _memory(root)
    table = _remembered(memory)
    files: list[str] = table["file"].to_list()
    reasons: list[str | None] = table["reason"].to_list()
    unknown = [row for row, reason in enumerate(reasons) if reason is None]
    for first in range(0, len(unknown), CHUNK):
        _check(root, files, reasons, unknown[first : first + CHUNK])
        _remember(memory, table.with_columns(pl.Series("reason", reasons, pl.String)))


def _memory(root: Path) -> Path:
    return cache_dir() / "checks" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.parquet"


def _remembered(memory: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(memory).select(list(SCHEMA)).unique(["file", "size", "changed"], maintain_order=True)
    except (OSError, pl.exceptions.PolarsError):
        return pl.DataFrame(schema=SCHEMA)


def _remember(memory: Path, table: pl.DataFrame) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(memory) as temporary:
            table.write_parquet(temporary)


def decode_failures(paths: list[str], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """A reason a path, empty where the picture decodes. A batch that fails is tried again picture by picture."""
    reasons: list[str] = []
    with decoder_silenced():
        batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
        decode = _decoder(batches)
        for number, batch in enumerate(batches):
            try:
                decode()
                reasons += [_misread(path) for path in batch]
            except DECODE_ERRORS:
                reasons += [_reason(path) if not _decodes(path) else _misread(path) for path in batch]
                decode = _decoder(batches[number + 1 :])  # a pipeline that failed is not used again
            if progress is not None:
                progress(len(reasons), len(paths))
    return reasons


def _decoder(batches: Sequence[list[str]]) -> Callable[[], object]:
    """A function that decodes the next batch each time and raises of DECODE_ERRORS where a picture does not decode."""
    from nvidia.dali import Pipeline, fn, types

    from pipelines.augment import decode, decode_bytes

    packed = any(batches) and location(batches[0][0]) is not None

    def paths(batch: int) -> list[np.ndarray]:
        if batch >= len(batches):
            raise StopIteration
        if packed:
            return [read_or_none(path) for path in batches[batch]]
        return [np.frombuffer(os.fsencode(path), np.uint8) for path in batches[batch]]

    cores = len(os.sched_getaffinity(0))
    pipeline = Pipeline(batch_size=BATCH, num_threads=cores, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        path = fn.external_source(paths, batch=True, dtype=types.UINT8, ndim=1)
        image = decode_bytes(path, "cpu") if packed else decode(path, "cpu")
        pipeline.set_outputs(image.shape())
    run: Callable[[], object] = pipeline.run
    return run


def _decodes(path: str) -> bool:
    try:
        _decoder([[path]])()
    except DECODE_ERRORS:
        return False
    return True


def _misread(path: str) -> str:
    """A reason against a picture that decodes, but to something else than a viewer shows."""
    from PIL import Image

    if not without_location(path).lower().endswith((".tif", ".tiff")):
        return ""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(read(path))) as image:
            return unsupported(image)
    except Exception:  # whatever it is that Pillow cannot read, the decoder could
        return ""


def unsupported(image: "Image.Image") -> str:
    """A reason against a picture by its header: the decoder makes something else of a TIFF of 32-bit numbers."""
    return "numbers of 32 bits are not supported" if image.format == "TIFF" and image.mode in ("F", "I") else ""


def _reason(path: str) -> str:
    from PIL import Image, UnidentifiedImageError

    from pipelines.augment import LARGEST

    try:
        content = read(path)
        if not content:
            return "empty file"
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of large ones itself
            image = Image.open(io.BytesIO(content))
        with image:
            form = image.format
            image.load()
    except Image.DecompressionBombError:  # above the same limit as ours
        return f"too large (at most {LARGEST // 10**6} million pixels)"
    except FileNotFoundError:
        return "no such file"
    except PermissionError:
        return "permission denied"
    except UnidentifiedImageError:
        return "not a picture"
    except Exception as error:  # whatever a damaged file makes of the reader
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return f"cannot be decoded as {form}"


_silent = RLock()  # a process has one standard error


@contextlib.contextmanager
def decoder_silenced() -> Iterator[None]:
    """The decoder writes its own lines to the standard error for each bad picture; ours name them."""
    with _silent:
        sys.stderr.flush()
        kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(nowhere)
            os.close(kept)


if __name__ == "__main__":
    os.nice(19)
    check_the_rest(Path(sys.argv[1]))
