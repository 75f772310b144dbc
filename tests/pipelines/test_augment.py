"""The compiled pass draws what DALI's operators draw; means and borders stay; every operator has a GPU kernel."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, ops, types

from pipelines import augment
from pipelines.augment import MEAN, STD, PictureSpec, fused, letterbox, normalise, picture_graph, separate
from pipelines.draws import BRIGHTNESS, CONTRAST, HUE, Draws, colour_matrix, draw
from pipelines.fused import RUN, SETUP, _filter, compiled, machine_code, run_fit, shapes_of_draws

Picture = NDArray[np.uint8]
STILL = np.eye(2, 3, dtype=np.float32)[None], np.eye(3, 4, dtype=np.float32)[None]


def photograph(height: int, width: int, seed: int = 0) -> Picture:
    """Noise of all values, clipped at both ends: nothing about it is smooth."""
    noise = np.random.default_rng(seed).normal(128, 90, (height, width, 3))
    return noise.clip(0, 255).astype(np.uint8)


def _giving(array: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    return lambda: array


def run(pictures: list[Picture], numbers: tuple[Any, ...], graph: Callable[..., Any]) -> Any:
    """What a graph of picture, matrix and colour makes of a batch; one array an output."""
    pipeline = Pipeline(batch_size=len(pictures), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = fn.external_source(lambda: pictures, dtype=types.UINT8, ndim=3, layout="HWC")
        given_ = [fn.external_source(_giving(array), dtype=types.FLOAT, ndim=2) for array in numbers]
        pipeline.set_outputs(*graph(image, *given_))
    return [np.array(output.as_array()) for output in pipeline.run()]


def drawn(pictures: list[Picture], draws: Draws, size: int) -> tuple[Any, Any]:
    """The batch by the compiled pass and by separate operators, from 0 to 255."""
    both = run(
        pictures,
        (draws.matrix, draws.colour),
        lambda image, matrix, colour: (
            fused(image, matrix, colour, PictureSpec(size)),
            normalise(separate(image, matrix, colour, size)),
        ),
    )
    return both[0] * STD + MEAN, both[1] * STD + MEAN


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (96, 128, 128),  # as it is
        (128, 85, 128),
        (192, 256, 128),  # half
        (213, 320, 128),  # the shorter side comes out at 85.2
        (427, 640, 96),
        (30, 41, 128),  # enlarged
        (20, 3000, 128),  # a strip
        (1, 1, 75),
        (2, 500, 77),
        (500, 1, 77),
        (45, 90, 121),  # the shorter side ends at half a pixel, which DALI rounds down
    ],
)
def test_one_pass_draws_what_separate_operators_draw(height: int, width: int, size: int) -> None:
    pictures = [photograph(height, width, seed) for seed in range(12)]
    ours, theirs = drawn(pictures, draw(1, 0, 0, 12, size), size)
    apart = np.abs(ours - theirs)
    assert apart.max() < 3.5
    assert apart.mean() < 0.5
    assert abs((ours - theirs).mean()) < 0.2  # in the mean neither is brighter


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([96, 128]), st.integers(0, 2**31))
def test_any_shape_is_drawn_alike(height: int, width: int, size: int, seed: int) -> None:
    ours, theirs = drawn([photograph(height, width, seed % 7)], draw(seed, 0, 0, 1, size), size)
    assert np.abs(ours - theirs).mean() < 0.6
    assert (np.abs(ours - theirs) > 4).mean() < 1e-3


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(1, 300))
def test_filters_touch_no_pixel_beyond_the_picture(length: int, step: float) -> None:
    """And each output pixel is a mean: weights that are none below 0 and add up to 1."""
    first, weight = _filter(length, max(1, math.floor(length / step + 0.5)), step)
    assert first.min() >= 0
    assert first.max() + weight.shape[1] <= length
    assert weight.min() >= 0
    assert weight.sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("matrix", [[[0, 0, 5], [0, 0, 5]], [[1e-12, 0, 3], [1, 0, 0]], [[1, 0, 9e9], [0, 1, 0]]])
def test_maps_that_end_nowhere(matrix: list[list[float]]) -> None:
    """A map of one point, one hardly turned, one far outside: no access beyond the picture, black outside."""
    numbers = np.array([matrix], np.float32), STILL[1]
    image = photograph(80, 80)
    (ours,) = run([image], numbers, lambda i, m, c: (fused(i, m, c, PictureSpec(80)),))
    ours = ours * STD + MEAN
    assert ours.min() >= 0
    assert ours.max() <= 255
    if matrix[0][2] > 1e6:
        assert not ours.any()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (128, 96, 128),
        (85, 128, 128),
        (300, 400, 128),
        (333, 500, 128),
        (96, 192, 121),  # ends at half a pixel, which DALI rounds up
        (81, 162, 121),  # and down
        (144, 120, 75),
    ],
)
def test_a_map_that_moves_nothing_gives_the_letterboxed_picture(height: int, width: int, size: int) -> None:
    """Training sees the very square that validation and inference see, where nothing is drawn."""
    still, boxed = run(
        [photograph(height, width)],
        STILL,
        lambda i, m, c: (fused(i, m, c, PictureSpec(size)), letterbox(i, size)),
    )
    assert np.abs(still * STD + MEAN - boxed).max() <= 1


def test_bfloat16_is_float32_rounded() -> None:
    import torch

    draws = draw(0, 0, 0, 4, 96)
    full, bits = run(
        [photograph(90, 120, seed) for seed in range(4)],
        (draws.matrix, draws.colour),
        lambda i, m, c: (fused(i, m, c, PictureSpec(96)), fused(i, m, c, PictureSpec(96, dtype="bfloat16"))),
    )
    expected = torch.from_numpy(full).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), expected)


def test_colour_matrix_is_dali_s_colour_twist() -> None:
    u = np.random.default_rng(0).uniform(-1, 1, (16, 3))
    brightness, contrast, hue = 1 + BRIGHTNESS * u[:, 0], 1 + CONTRAST * u[:, 1], HUE * u[:, 2]
    image = photograph(64, 64)
    theirs = run(
        [image] * 16,
        (
            brightness.astype(np.float32)[:, None, None],
            contrast.astype(np.float32)[:, None, None],
            hue.astype(np.float32)[:, None, None],
        ),
        lambda i, b, c, h: (fn.color_twist(i, brightness=b[0, 0], contrast=c[0, 0], hue=h[0, 0], dtype=types.FLOAT),),
    )[0]
    matrix = colour_matrix(brightness, contrast, hue)
    ours = np.einsum("nij,hwj->nhwi", matrix[:, :, :3], image) + matrix[:, None, None, :, 3]
    assert np.abs(ours - theirs).max() < 0.5


def test_draws_keep_means_and_borders() -> None:
    """Over many draws of a grey picture: its mean grey stays, the corners turn black, the middle never does."""
    picture = np.full((96, 96, 3), 100, np.uint8)
    ours, theirs = drawn([picture] * 256, draw(0, 0, 0, 256, 96), 96)
    for images in (ours, theirs):
        middle = images[:, 40:56, 40:56]
        assert middle.mean() == pytest.approx(100, abs=3)
        assert middle.min() > 40
        assert 0.3 < (images[:, 0, 0] == 0).all(-1).mean() < 0.9
    assert np.array_equal(ours == 0, theirs == 0) or (ours == 0).mean() == pytest.approx((theirs == 0).mean(), abs=1e-3)
    assert ours.mean((0, 3)) == pytest.approx(theirs.mean((0, 3)), abs=0.5)


def test_without_numba_the_same_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which numba does not load falls back to DALI's operators."""
    placed = []
    monkeypatch.setattr(augment, "fused_available", lambda: False)
    monkeypatch.setattr(augment, "decode", lambda path, _placement: path)
    monkeypatch.setattr(augment, "fused", lambda *_: placed.append(1))
    draws = draw(0, 0, 0, 1, 96)
    (fallback,) = run(
        [photograph(96, 96)],
        (draws.matrix, draws.colour),
        lambda i, m, c: picture_graph(i, (m, c), PictureSpec(96))[:1],
    )
    assert not placed
    assert fallback.shape == (1, 96, 96, 3)


@pytest.mark.parametrize("augmented", [True, False])
def test_every_operator_has_a_gpu_kernel(augmented: bool) -> None:
    """The graph as training on a GPU defines it: three operators after the decoder at most, all of them there."""
    with Pipeline(batch_size=4, num_threads=1, device_id=0):
        path = fn.external_source(lambda: None, dtype=types.UINT8, ndim=1)
        numbers = [fn.external_source(lambda: None, dtype=types.FLOAT, ndim=2) for _ in range(2)]
        node, _ = picture_graph(path, (numbers[0], numbers[1]) if augmented else None, PictureSpec(64, "gpu"))
        assert node.device == "gpu"
    names = []
    while hasattr(node.source._op, "schema_name"):  # up to the external source
        names.append((node.source._op.schema_name, node.source._op.device))
        node = node.source.inputs[0]
    *after, decoder, cut, read = names
    assert [cut, read] == [("Slice", "cpu"), ("io__file__Read", "cpu")]
    assert decoder[0] in ops.mixed_ops()
    assert len(after) == (3 if augmented else 2)
    for name, device in after:
        assert device == "gpu"
        assert name in ops.gpu_ops(), f"{name} has no GPU kernel"


def test_code_is_compiled_once_for_all_processes() -> None:
    """Whatever DALI calls is on the disk, for each size of picture its own."""
    for signature, function in ((RUN, run_fit), (SETUP, shapes_of_draws(75)), (SETUP, shapes_of_draws(76))):
        machine_code(signature, function)
        assert machine_code(signature, function).cache_hits == 1


def test_without_a_place_for_code_it_is_compiled_all_the_same() -> None:
    """As where neither the project's folder nor the user's cache can be written: numba finds no place for these."""
    functions: dict[str, Any] = {}
    exec("def seven(): return 7", functions)
    assert compiled(functions["seven"])() == 7
    assert machine_code(SETUP, eval("lambda a, b, c, d, e, f, g: None")).address
