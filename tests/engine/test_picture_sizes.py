"""Pictures that grow over a run."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SMALLEST_IMAGE
from engine.picture_sizes import GROWING, MULTIPLE, Stage, stages


@given(
    full=st.integers(SMALLEST_IMAGE, 1024),
    epochs=st.integers(1, 50),
    steps=st.integers(1, 3000),
    together=st.integers(1, 40),
)
def test_stages(full: int, epochs: int, steps: int, together: int) -> None:
    """The run begins with the first and ends in the full size; sides grow; updates are not split between stages."""
    found = stages("growing", full, epochs * steps, steps, together)
    assert found[0].first == 0
    assert found[-1].size == full
    assert all(a.first < b.first and a.size < b.size for a, b in pairwise(found))
    assert all(stage.size >= SMALLEST_IMAGE for stage in found)
    assert all(stage.size % MULTIPLE == 0 for stage in found[:-1])
    assert all(stage.first % steps % together == 0 for stage in found)
    assert all(stage.first < epochs * steps for stage in found)
    assert stages("full", full, epochs * steps, steps, together) == [Stage(0, full)]


@pytest.mark.parametrize(
    ("full", "sizes"), [(320, [192, 256, 320]), (224, [128, 176, 224]), (96, [80, 96]), (80, [80]), (75, [75])]
)
def test_sizes(full: int, sizes: list[int]) -> None:
    """Shares of the side in round numbers, and nothing below what the network takes."""
    found = stages("growing", full, 1000, 100)
    assert [stage.size for stage in found] == sizes
    if len(sizes) == len(GROWING):
        assert [stage.first for stage in found] == [0, 500, 800]
