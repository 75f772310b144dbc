"""bench.tune, up to what only a GPU can say: the shapes of a step, and that every row has some and can be tried."""

import pytest
import torch

from bench import candidates, pretend


def test_every_row_is_launched_as_its_candidates_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed; a name that has changed in kernels, or a shape that no row takes, is found."""
    monkeypatch.setattr(candidates, "DEVICE", "cpu")
    with pretend.launches(90, compiles=False) as launched:
        seen = candidates.shapes_of_step(2, 96)
        assert launched.launched > 100
    with pretend.launches(90) as launched:
        assert all(any(row.takes(shape) for row in candidates.ROWS.values()) for shape in seen)
        for name, row in candidates.ROWS.items():
            shape = next(shape for shape in seen if row.takes(shape))
            before, current = launched.launched, getattr(row.module, name)
            with torch.no_grad(), candidates.tried(row, name, row.candidates[0]):
                for call in row.calls(shape):
                    call()
            assert launched.launched > before
            assert getattr(row.module, name) is current
    assert seen["norm", (128,), (2, 4, 4)] == 20
