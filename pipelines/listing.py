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
    files = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    pictures = [path for path in files if path.lower().endswith(SUFFIXES)]
    if not pictures:
        others = f"; its {len(files):,} files are none by their names" if files else ""
        raise InputError(f"{folder}: no pictures in this folder{others}")
    return list(natsorted(pictures))


def _table(table: Path) -> Iterator[str]:
    """Pictures beside the table or in the folders that a data set has; a name that is not found stays as it is."""
    folders = PictureFolders(table.parent, (table.stem, *PICTURE_FOLDERS))
    for name in read_csv(table, columns=1, is_picture=folders.has).pictures:
        found = folders.find(name)
        yield str(table.parent / (found or name))


def as_text(path: str) -> str:
    """A path as a table can hold it: bytes that are no UTF-8 as \\x.. ."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
