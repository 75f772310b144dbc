"""The user's cache folder, and files that appear there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Folder for what can be made again, absolute; the environment's MANYLABEL_CACHE overrides the system's place."""
    return Path(os.environ.get("MANYLABEL_CACHE") or platformdirs.user_cache_dir("manylabel")).absolute()


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, flushed to the disk and renamed to `path` at the end; removed on an error.

    After a power cut, too, the old file is there or the new one: the folder is flushed with it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
