"""The photographs that a command line means: files, folders, globs, tables, and lists on the standard input."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from natsort import natsorted

from pipelines.delimited import read_csv
from pipelines.errors import InputError
from pipelines.pictures import SUFFIXES, PictureFolders
from pipelines.table import PICTURE_FOLDERS

TABLES = (".csv", ".tsv")
STANDARD_INPUT = "-"


def photographs(arguments: Iterable[str], standard_input: Iterable[str]) -> list[str]:
    """Paths of all photographs meant, each once, in the order given; those of a folder in natural order.

    Args:
        arguments: a file; a folder, whose pictures below it are meant; a glob; a table, whose first column names
            pictures as a data set's does; "-": the lines of `standard_input`.

    Raises:
        InputError: nothing is there, or nothing of it is a picture.
    """
    found = list(dict.fromkeys(path for argument in arguments for path in _meant(argument, standard_input)))
    if not found:
        raise InputError("no photographs were named")
    return found


def _meant(argument: str, standard_input: Iterable[str]) -> Iterator[str]:
    if argument == STANDARD_INPUT:
        yield from (name for line in standard_input if (name := line.rstrip("\r\n")))
    elif os.path.isdir(argument):
        yield from _folder(argument)
    elif argument.lower().endswith(TABLES):
        yield from _table(Path(argument))
    elif os.path.exists(argument):
        yield argument
    else:
        matches = natsorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
        if not matches:
            raise InputError(f"{argument}: no such file or folder")
        for match in matches:
            yield from _folder(match) if os.path.isdir(match) else [match]


def _folder(folder: str) -> list[str]:
    closed: dict[str, str] = {}
    files = list(_files(folder, closed))
    if folder in closed:
        raise InputError(f"{folder}: cannot be read: {closed[folder]}")
    pictures = [path for path in files if path.lower().endswith(SUFFIXES)]
    pictures += closed  # which are answered as pictures that cannot be read
    if not pictures:
        others = f"; its {len(files):,} files are none by their names" if files else ""
        raise InputError(f"{folder}: no pictures in this folder{others}")
    return list(natsorted(pictures))


def _files(folder: str, closed: dict[str, str]) -> Iterator[str]:
    """All files below a folder, once each; `closed` gets the folders that cannot be listed, and why.

    Links to folders elsewhere are followed; what lies below the folder itself is met there.
    """
    top = os.path.realpath(folder)
    seen = {top}

    def note(error: OSError) -> None:
        closed[error.filename] = error.strerror or str(error)

    def is_new(path: str) -> bool:
        real = os.path.realpath(path)
        if real in seen or (os.path.islink(path) and os.path.commonpath((top, real)) == top):
            return False
        seen.add(real)
        return True

    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        folders[:] = [name for name in folders if is_new(os.path.join(place, name))]
        yield from (os.path.join(place, name) for name in names)


def _table(table: Path) -> Iterator[str]:
    """Pictures beside the table or in the folders that a data set has; a name that is not found stays as it is."""
    folders = PictureFolders(table.parent, (table.stem, *PICTURE_FOLDERS))
    for name in read_csv(table, columns=1, is_picture=folders.has, header=False).pictures:
        found = folders.find(name)
        yield str(table.parent / (found or name))


def as_text(path: str) -> str:
    """A path as a table can hold it: bytes that are no UTF-8 as \\x.. ."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
