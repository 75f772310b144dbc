"""What every command shares: its options, one line for bad input, exit status."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import TextIO, TypeVar

import tyro

from pipelines.errors import InputError

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
NO_ROOM = "failed to map segment"  # the system's words for a library that does not fit into memory

# What the parser says of a value in terms of its own types, and the same in those of a command line.
PLAIN = (
    (
        r"^Error parsing (\S+): no type matching (?:\{None\}\|)?(\S+) could be instantiated from \['(.*)'\]$",
        r"\1 \3: must be \2",
    ),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: '(.*)'$", r"\1 \2: must be INT"),
    (r"^Error parsing (\S+): could not convert string to float: '(.*)'$", r"\1 \2: must be FLOAT"),
    (r"^invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)$", r"\2 \1: must be one of \3"),
    (r"'None', |, 'None'", ""),
)

Arguments = TypeVar("Arguments")


def parse(arguments: type[Arguments], prog: str, words: Sequence[str] | None = None) -> Arguments:
    """The command line as a dataclass.

    Args:
        arguments: the dataclass.
        prog: what is typed to start the command.
        words: what follows it; by default what this process was started with.

    Raises:
        InputError: a command line that does not fit.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            try:
                return tyro.cli(arguments, prog=prog, args=words)
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # --help | head: whoever reads no further has read enough
        _close_unwritable(sys.stdout)
        sys.exit(OK)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise InputError(f"{_in_a_line(said.getvalue())} ({prog} --help lists the options)") from None


def _in_a_line(box: str) -> str:
    """What the parser says in a box of several lines, up to its first rule or list, and the option it has in mind.

    The title is in the upper edge of the box or, where standard output does not take such letters, above a rule.
    """
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    kept = list(takewhile(lambda line: line.strip("-─╰╯"), lines[lines[0].startswith("--" * 8) :]))
    meant = next(
        (after.split()[0].rstrip(",") for before, after in pairwise(lines) if before == "Perhaps you meant:"), None
    )
    text = " ".join(kept).rstrip(".")
    for pattern, plain in PLAIN:
        text = re.sub(pattern, plain, text)
    return text + (f"; {meant}?" if meant else "")


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from pipelines.progress import say

        say(f"{record.levelname.lower()}: {record.getMessage()}")


def main(command: Callable[[], int]) -> None:
    """Runs a command and leaves with its exit status."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logger = logging.getLogger("manylabel")
    logger.handlers, logger.propagate = [_Lines()], False
    try:
        status = command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = BAD_INPUT
    except OSError as error:  # a full disk, a folder taken away, a reader of our lines that went away
        _close_unwritable(sys.stdout)
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        status = BAD_INPUT
    except (MemoryError, ImportError, RuntimeError) as error:
        gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not loaded everywhere
        if not isinstance(error, MemoryError) and not gpu and NO_ROOM not in str(error):
            raise
        which = "the GPU has no more" if gpu else "the system or a limit (ulimit -v) leaves this process too little"
        print(f"error: out of memory; {which}", file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def _close_unwritable(stream: TextIO) -> None:
    """Lets the interpreter's last flush go nowhere where it would fail."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
