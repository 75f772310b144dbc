"""The network that is exported is the network that was trained, for any weights, statistics and widths."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from engine.any_size import Letterbox
from engine.folded import FoldedNetwork
from pipelines.augment import MEAN, STD, letterbox
from tests.engine.conftest import looks_trained


@pytest.mark.parametrize("width", [0.125, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_as_the_trained_network_does(width: float, seed: int) -> None:
    """As near to float64 as the network itself is in float32, up to a factor of 2."""
    network = looks_trained(5, width, seed)
    pictures = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 83, 83, 3), dtype=np.uint8))
    with torch.inference_mode():
        answers = FoldedNetwork(network).eval()(pictures)
        own = torch.sigmoid(network(((pictures.float() - MEAN) / STD).permute(0, 3, 1, 2)))
        exact = torch.sigmoid(network.double()(((pictures.double() - MEAN) / STD).permute(0, 3, 1, 2)))
    assert exact.std() > 0.05  # else anything would agree
    error, own_error = ((found - exact).abs().max().item() for found in (answers, own))
    assert error <= 2 * own_error + 1e-6


def test_the_trained_network_stays_as_it_is() -> None:
    network = looks_trained(2, 0.125)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = FoldedNetwork(network)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def letterboxed(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """As the pipeline does it."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        given_image = fn.external_source(lambda: [image], batch=True, layout="HWC", dtype=types.UINT8, ndim=3)
        pipeline.set_outputs(letterbox(given_image, size))
    (pictures,) = pipeline.run()
    return np.array(pictures.at(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(75, 130), st.integers(0, 9))
@example(1, 2000, 75, 0)
@example(2000, 3, 96, 0)
@example(427, 640, 320, 0)
@example(1, 1, 75, 0)
@example(96, 192, 121, 0)  # both end at half a pixel, which DALI rounds up here
@example(45, 90, 121, 0)  # and down here
def test_letterbox_in_the_graph_is_the_pipelines(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = letterboxed(image, size).astype(int)
    ours = Letterbox(size)(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1
    assert (ours != expected).mean() < 0.03
