"""`python -m bench.dry_run`: whether commands would start, which bench/gpu.sh --dry-run asks of all its parts at once.

Standard input has a part a line, its words separated by tabs: a name, then `pytest` or a module, then arguments. Tests
are collected; a module is imported and its arguments are read. A line for each part that does not start, and exit
status 1 if there is one.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from importlib import import_module

import pytest

from engine import command
from pipelines.errors import InputError


def objection(words: Sequence[str]) -> str | None:
    """Why a command would not start; None: it would."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if words[0] == "pytest":
                status = int(pytest.main([*words[1:], "--collect-only", "-q"]))
            else:
                command.parse(import_module(words[0]).Arguments, f"python -m {words[0]}", words[1:])
                status = 0
        except InputError as error:
            return f"exit status {command.BAD_INPUT}, {error}"
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except Exception as error:  # of the module's import, say
            return f"{type(error).__name__}: {error}"
    lines = said.getvalue().strip().splitlines()
    return None if status == 0 else f"exit status {status}{f', {lines[-1]}' if lines else ''}"


def main() -> int:
    """Reads standard input; the exit status."""
    found = 0
    for line in sys.stdin:
        name, *words = line.rstrip("\n\t").split("\t")
        if (why := objection(words)) is not None:
            print(f"{name} does not start: {why}")
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main())
