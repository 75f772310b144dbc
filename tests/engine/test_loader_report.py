"""The report tells three rates and which of both waits, and leaves no run behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine import loader_report
from engine.train import Arguments, train

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("limit", "words", "sizes"),
    [(-1.0, "training waits for pictures", []), (1.1, "the loader waits", ["80×80:", "96×96:"])],
)
def test_loader_report(
    table: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: float,
    words: str,
    sizes: list[str],
) -> None:
    monkeypatch.setattr(loader_report, "SECONDS", 0.01)
    monkeypatch.setattr(loader_report, "ROUNDS", 1)
    monkeypatch.setattr(loader_report, "WAITING", limit)
    out = tmp_path / "run"
    arguments = Arguments(
        data=table(), out=out, preset="demo", batch_size=4, image_size=96, width=0.125, loader_report=True
    )
    assert train(replace(arguments, picture_sizes="growing" if sizes else "full")) == 0
    said = capsys.readouterr().out.splitlines()
    for name in ("loader alone", "network alone", "both together", words):
        assert sum(line.startswith(name) for line in said) == max(1, len(sizes))
    assert [line for line in said if "×" in line and line.endswith(":")] == sizes
    assert not out.exists()
