"""Finds pictures that do not decode, with the decoder that training uses; remembers what it found."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.cache import cache_dir, replace_file

BATCH = 16  # decoded pictures that are in memory together


def undecodable(
    root: Path, files: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> list[tuple[int, str]]:
    """(row, reason) of each file that does not decode.

    A file is decoded once: the outcome is kept in the user's cache folder and holds while size and time of change stay.
    """
    stats = [os.stat(f"{root}/{file}") for file in files]
    seen = pl.DataFrame(
        {
            "file": list(files),
            "size": np.fromiter((s.st_size for s in stats), np.int64, len(stats)),
            "changed": np.fromiter((s.st_mtime_ns for s in stats), np.int64, len(stats)),
        },
        schema={"file": pl.String, "size": pl.Int64, "changed": pl.Int64},
    )
    memory = cache_dir() / "checks" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.parquet"
    known = seen.join(_remembered(memory), on=["file", "size", "changed"], how="left", maintain_order="left")
    reasons: list[str | None] = known["reason"].to_list()
    unknown = [row for row, reason in enumerate(reasons) if reason is None]
    if unknown:
        paths = [str(root / files[row]) for row in unknown]
        for row, reason in zip(unknown, decode_failures(paths, progress), strict=True):
            reasons[row] = reason
        result = seen.with_columns(pl.Series("reason", reasons, pl.String))
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
            memory.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(memory) as temporary:
                result.write_parquet(temporary)
    return [(row, reason) for row, reason in enumerate(reasons) if reason]


def _remembered(memory: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(memory).unique(["file", "size", "changed"])
    except (OSError, pl.exceptions.PolarsError):
        schema = {"file": pl.String, "size": pl.Int64, "changed": pl.Int64, "reason": pl.String}
        return pl.DataFrame(schema=schema)


def decode_failures(paths: list[str], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """A reason a path, empty where the picture decodes. A batch that fails is tried again picture by picture."""
    reasons: list[str] = []
    with _decoder_silenced():
        batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
        decode = _decoder(batches)
        for number, batch in enumerate(batches):
            try:
                decode()
                reasons += [""] * len(batch)
            except RuntimeError:
                reasons += [_reason(path) if not _decodes(path) else "" for path in batch]
                decode = _decoder(batches[number + 1 :])  # a pipeline that failed is not used again
            if progress is not None:
                progress(len(reasons), len(paths))
    return reasons


def _decoder(batches: Sequence[list[str]]) -> Callable[[], object]:
    """A function that decodes the next batch each time and raises RuntimeError where a picture does not decode."""
    from nvidia.dali import Pipeline, fn, types

    def paths(batch: int) -> list[np.ndarray]:
        if batch >= len(batches):
            raise StopIteration
        return [np.frombuffer(os.fsencode(path), np.uint8) for path in batches[batch]]

    cores = len(os.sched_getaffinity(0))
    pipeline = Pipeline(batch_size=BATCH, num_threads=cores, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        path = fn.external_source(paths, batch=True, dtype=types.UINT8, ndim=1)
        image = fn.decoders.image(fn.io.file.read(path), device="cpu", output_type=types.RGB)
        pipeline.set_outputs(image.shape())
    run: Callable[[], object] = pipeline.run
    return run


def _decodes(path: str) -> bool:
    try:
        _decoder([[path]])()
    except RuntimeError:
        return False
    return True


def _reason(path: str) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        if os.path.getsize(path) == 0:
            return "empty file"
        with Image.open(path) as image:
            form = image.format
            image.load()
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not a picture"
    except Exception as error:  # whatever a damaged file makes of the reader
        return f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return f"cannot be decoded as {form}"


@contextlib.contextmanager
def _decoder_silenced() -> Iterator[None]:
    """The decoder writes its own lines to the standard error for each bad picture; ours name them."""
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
