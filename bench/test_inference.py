"""The network alone, and photographs to labels: ours beside what people run (bench.inference).

320×320, width 1, batch 16. `extra_info` has pictures a second. Answers of the network are held to those of torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from bench.inference import DEVICE, FORMS, HALF, Answer, Network
from bench.photographs import photographs
from bench.timing import Call, clock
from bench.turns import Row, Timed, in_turn
from engine.session import missing
from kernels.bfloat16 import cpu_has_bfloat16

HALF_NAME = f"torch, {str(HALF).removeprefix('torch.')}, channels-last"
HALF_COMPILED = f"torch.compile, {HALF_NAME.removeprefix('torch, ')}"
COMPILED = ("torch.compile", HALF_COMPILED)
NETWORKS = (*FORMS, "torch", "torch, channels-last", HALF_NAME, *COMPILED, "ONNX Runtime's defaults")
ANSWERS = (*FORMS, "torchvision, ONNX Runtime's defaults")
TOLERANCE, COARSE = 1e-3, 0.05  # of a probability: float32, and half precision or int8


@dataclass(frozen=True, slots=True)
class Size:
    """Of what is measured: photographs, and rounds, too."""

    network: Network
    photographs: int
    rounds: int
    quick: bool


@pytest.fixture(scope="module")
def size(quick: bool) -> Size:
    return Size(Network(96, 4, 0.25), 8, 2, quick) if quick else Size(Network(320, 16, 1.0), 32, 5, quick)


def require(name: str) -> None:
    """Skips a form of ours whose provider is not installed: TensorRT is no dependency."""
    place = FORMS[name][1]
    if place == "tensorrt" and (why := missing(place)) is not None:
        pytest.skip(why)


def answer(size: Size, name: str) -> Answer:
    """The call of one of NETWORKS."""
    network = size.network
    if name in FORMS:
        require(name)
        return network.session(name)
    if name in COMPILED and size.quick:
        pytest.skip("torch.compile takes a minute; not in the quick form")
    if name in (HALF_NAME, HALF_COMPILED) and DEVICE == "cpu" and not cpu_has_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16")
    makes: dict[str, Callable[[], Answer]] = {
        "torch": network.in_torch,
        "torch, channels-last": partial(network.in_torch, tuned=True),
        HALF_NAME: partial(network.in_torch, HALF, tuned=True),
        "torch.compile": partial(network.in_torch, compiled=True),
        HALF_COMPILED: partial(network.in_torch, HALF, tuned=True, compiled=True),
        "ONNX Runtime's defaults": network.onnx_runtime,
    }
    return makes[name]()


@pytest.fixture(scope="module")
def networks(size: Size) -> Timed:
    expected = size.network.in_torch()()

    def checked(name: str) -> Answer:
        call = answer(size, name)
        tolerance = COARSE if any(word in name for word in ("int8", "float16")) else TOLERANCE
        np.testing.assert_allclose(call(), expected, atol=tolerance)
        return call

    return in_turn({name: partial(checked, name) for name in NETWORKS}, size.rounds, clock(DEVICE))


@pytest.mark.parametrize("provider", NETWORKS)
def test_network(row: Row, size: Size, networks: Timed, provider: str) -> None:
    network = size.network
    group = f"network alone, {network.size}×{network.size}, batch {network.batch}"
    row(networks, provider, group, pictures_per_s=round(network.batch / networks.median(provider), 1))


@pytest.fixture(scope="module")
def answers(size: Size) -> tuple[str, Timed]:
    source, paths = photographs("coco96", size.photographs)

    def call(name: str) -> Call:
        if name not in FORMS:
            return size.network.usual_way(paths)
        require(name)
        return size.network.photographs(name, paths)

    return source, in_turn({name: partial(call, name) for name in ANSWERS}, size.rounds, clock(DEVICE))


@pytest.mark.parametrize("provider", ANSWERS)
def test_photographs(row: Row, size: Size, answers: tuple[str, Timed], provider: str) -> None:
    source, timed = answers
    network = size.network
    group = f"{size.photographs} photographs of 640×480 to labels, {network.size}×{network.size}, batch {network.batch}"
    rate = round(size.photographs / timed.median(provider), 1)
    row(timed, provider, group, pictures_per_s=rate, pictures=source)
