"""Says where a run stands when it has stood there for long."""

import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

ROOT = Path(__file__).parents[1]


class Watchdog:
    """A thread that looks whether the main thread still moves from one place to the next.

    Args:
        seconds: at one place after which it says so, and after as many again, again.
        name: of the process, before the line.
    """

    def __init__(self, seconds: float, name: str = "") -> None:
        self.seconds, self.name = seconds, name
        self._place, self._since, self._told = "", time.monotonic(), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def moved(self, place: str) -> None:
        """The main thread is there now: what it does or waits for."""
        self._place, self._since, self._told = place, time.monotonic(), 0

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 20)):
            stood = time.monotonic() - self._since
            if self._place and stood > self.seconds * (self._told + 1):
                self._told += 1
                # Past the console, which the other ranks keep silent.
                print(f"{self.name}no progress for {stood:.0f} s: {self._place} ({_main_thread()})", file=sys.stderr)


def _main_thread() -> str:
    """The innermost line of ours that the main thread is at."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the project"
