"""The one exception for input that a user can put right, and what makes it of files that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input, told in one line that names it; a command prints it and exits with status 2."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever the system, or a parser of the standard library, says against a file becomes an InputError of a line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    except UnicodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply") from None
