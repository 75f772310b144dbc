"""What every command shares: one line for bad input, a state saved on Ctrl-C, exit status."""

import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from pipelines.errors import InputError

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130


class Interrupt:
    """Ctrl-C as a question: false until pressed. Pressed again, it stops at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        return self.pressed

    def _press(self, _signal: int, _frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from engine.progress import say

        say(f"{record.levelname.lower()}: {record.getMessage()}")


def main(command: Callable[[], int]) -> None:
    """Runs a command and leaves with its exit status."""
    logger = logging.getLogger("manylabel")
    logger.handlers, logger.propagate = [_Lines()], False
    try:
        status = command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
