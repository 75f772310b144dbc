"""What the engine's commands share: those of `pipelines.command`, and a state saved when they are told to stop."""

import os
import signal
import sys
from types import FrameType
from typing import Any

from pipelines.command import BAD_INPUT, INTERRUPTED, OK, main, parse

__all__ = ["BAD_INPUT", "INTERRUPTED", "OK", "STOPPED", "Interrupt", "main", "parse"]

# Ctrl-C; what batch schedulers send before they take a job's machine away, and as an early warning; a closed terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED = tuple(128 + number for number in SIGNALS)  # exit status


class Interrupt:
    """A signal to stop as a question: false until it comes. Ctrl-C pressed again stops at once.

    Attributes:
        status: to leave with, 128 + the signal's number: 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP.
    """

    def __init__(self) -> None:
        self.came, self.status = False, INTERRUPTED

    def __enter__(self) -> "Interrupt":
        heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]  # nohup
        self._terminals = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.came

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            # The terminal is gone; an error on writing to it must not come in the way of saving.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
        if not self.came:
            self.came, self.status = True, 128 + number
