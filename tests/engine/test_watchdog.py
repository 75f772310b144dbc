"""Standing still is told, with the place; moving is not."""

import io
import threading

import pytest

from engine.watchdog import Watchdog


class Lines(io.StringIO):
    """Standard error that says when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


def test_a_place_that_is_not_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the main thread is at, in words and as the line of ours; each time the seconds have passed again."""
    lines = Lines()
    monkeypatch.setattr("sys.stderr", lines)
    with Watchdog(0.05, "rank 3: ") as watchdog:
        watchdog.moved("waiting for the pictures of step 4 of epoch 2")
        for _ in range(2):
            assert lines.written.wait(60)
            lines.written.clear()
    first = lines.getvalue().splitlines()[0]
    assert first.startswith("rank 3: no progress for 0 s: waiting for the pictures of step 4 of epoch 2 (tests/engine/")
    assert "test_watchdog.py:" in first


def test_a_watchdog_that_was_told_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Watchdog(0.001):
        threading.Event().wait(0.05)
    assert capsys.readouterr().err == ""
