"""The report tells three rates and which of both waits, and leaves no run behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import loader_report
from engine.train import Arguments, train

Make = Callable[..., Path]


@pytest.mark.parametrize(("limit", "words"), [(-1.0, "training waits for pictures"), (1.1, "the loader waits")])
def test_loader_report(
    table: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: float,
    words: str,
) -> None:
    monkeypatch.setattr(loader_report, "SECONDS", 0.01)
    monkeypatch.setattr(loader_report, "ROUNDS", 1)
    monkeypatch.setattr(loader_report, "WAITING", limit)
    out = tmp_path / "run"
    arguments = Arguments(
        data=table(), out=out, preset="demo", batch_size=4, image_size=75, width=0.125, loader_report=True
    )
    assert train(arguments) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("loader alone", "network alone", "both together", words))
    assert not out.exists()
