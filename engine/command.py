"""What the engine's commands share: those of `pipelines.command`, and a state saved on Ctrl-C."""

import signal
from types import FrameType
from typing import Any

from pipelines.command import BAD_INPUT, INTERRUPTED, OK, main, parse

__all__ = ["BAD_INPUT", "INTERRUPTED", "OK", "Interrupt", "main", "parse"]


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
