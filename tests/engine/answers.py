"""Answers beside the truth, of all kinds, for tests of figures."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

Answers = tuple[NDArray[np.float32], NDArray[np.bool_]]  # probabilities and targets, [rows, labels]


@st.composite
def answers(draw: st.DrawFn, most_rows: int = 30, most_labels: int = 4) -> Answers:
    """Few rows; probabilities of a coarse grid, so that many are equal; labels that are never or always true."""
    shape = draw(st.integers(1, most_rows)), draw(st.integers(1, most_labels))
    tenths = draw(arrays(np.int64, shape, elements=st.integers(0, 10)))
    targets = draw(arrays(np.bool_, shape))
    for i in range(shape[1]):
        kind = draw(st.sampled_from(["mixed", "mixed", "never", "always"]))
        if kind != "mixed":
            targets[:, i] = kind == "always"
    return (tenths / 10).astype(np.float32), targets
