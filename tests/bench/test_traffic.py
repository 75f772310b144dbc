"""The traffic model, on a small network and small pictures: what it counts, and that it leaves no trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._triton import has_triton

import kernels
from bench import pretend
from bench.codegen import Launch, assemble, generate, kind_of, multi_tensor_launches, ordered
from bench.traffic import CHECK_LAUNCHES, floor, summary
from engine.model import Conv, ConvNormRelu, InceptionResidual, InceptionResNetV1, Stage

ROOT = Path(__file__).parents[2]


class Toy(nn.Module):
    """Two convolutions and a head; with an operator of ours or without."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self.ours = ours
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images))
        branch = self.second(x)
        y = kernels.residual_add_relu(x, branch, 0.5) if self.ours else torch.relu(x + 0.5 * branch)
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def test_what_an_operator_declares_is_counted() -> None:
    step = generate(Toy(ours=True), binary_cross_entropy_with_logits, 2, 10, 5)
    elements = 2 * 16 * 8 * 8
    joins = {launch.name: launch.bytes for launch in step.launches if launch.name.startswith("manylabel::")}
    assert joins == {
        "manylabel::residual_add_relu": 3 * 2 * elements,
        "manylabel::residual_add_relu_backward": 4 * 2 * elements,
    }
    assert not any(launch.library for launch in step.launches if launch.name in joins)
    assert any(launch.library and launch.kind == "convolution" for launch in step.launches)


def test_operators_in_their_order() -> None:
    """Ours by declaration, torch's by inputs and outputs, many tensors by what torch packs into a launch."""
    elements = 2 * 16 * 8 * 8
    step = ordered(Toy(ours=True), binary_cross_entropy_with_logits, 2, 10, 5)
    (join,) = (launch for launch in step if launch.name == "manylabel::residual_add_relu")
    assert (join.bytes, join.library) == (3 * 2 * elements, False)
    (relu,) = (launch for launch in step if launch.name == "aten.relu.default")
    assert (relu.bytes, relu.library) == (2 * 2 * elements, True)
    network = ordered(InceptionResNetV1(5, 0.25).train(), kernels.sigmoid_bce, 2, 96, 5)
    casts = [launch for launch in network if launch.name == "aten._foreach_copy_.default"]
    weights = sum(p.numel() for p in InceptionResNetV1(5, 0.25).parameters() if p.dim() == 4)
    assert sum(launch.bytes for launch in casts) == 2 * 6 * weights  # to half and back


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=300), st.integers(1, 5))
def test_many_tensors_take_no_more_launches_than_one_by_one(sizes: list[int], lists: int) -> None:
    launches = multi_tensor_launches(sizes, lists)
    assert 1 <= launches <= len(sizes) + sum(size // (320 * 65536) for size in sizes)
    assert launches >= multi_tensor_launches(sizes[1:] or sizes, lists)
    assert launches * 320 * 65536 >= sum(sizes)


def test_a_step_compiles_once() -> None:
    """Nothing is compiled again for other pictures, the next epoch, validation's second batch or training after it."""
    branches: list[list[Conv]] = [[(8, 1, 1, 0)], [(8, 1, 1, 0), (8, 3, 1, 1)]]
    blocks = Stage(*(InceptionResidual(16, branches, 0.2) for _ in range(2)))
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(ConvNormRelu(3, (16, 3, 2, 0)), blocks, *end).to(memory_format=torch.channels_last)
    counts = []
    with pretend.launches(90, compiles=False) as seen:
        for training in (True, True, False, False, True, False):
            images = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
            model.train(training)
            with torch.set_grad_enabled(training):
                loss = kernels.sigmoid_bce(model(images), torch.zeros(2, 3))
            if training:
                loss.backward()
            counts.append(len(seen.kernels))
    assert 0 < counts[0] == counts[1] < counts[2]
    assert len(set(counts[2:])) == 1
    assert seen.launched > 3 * counts[-1]


def test_generated_kernels_assemble() -> None:
    step = generate(Toy(ours=False), binary_cross_entropy_with_logits, 2, 10, 5)
    assert len(step.sources) > 2
    assert assemble(step.sources, 90) == {}
    name, source = next(iter(step.sources.items()))
    broken = source.replace("tl.load(", "tl.no_such_thing(")
    assert set(assemble({name: broken}, 80)) == {name}


def test_no_trace_of_the_gpu_is_left() -> None:
    before, found = triton.runtime.driver._active, has_triton()
    with pretend.gpu(80):
        assert has_triton()
        assert torch.cuda.get_device_capability() == (8, 0)
        assert triton.runtime.driver.active.get_current_target().arch == 80
    assert triton.runtime.driver._active is before
    assert has_triton() == found
    assert torch.cuda.is_available() == (torch.cuda.device_count() > 0)


def test_summary() -> None:
    launches = [Launch("norm", 100, False, "a"), Launch("norm", 10, True, "b"), Launch("other", 1, False, "c")]
    found = summary(launches, [1000] * 40)
    assert (found["kernels"], found["library_calls"], found["launches"]) == (2, 3, 5)  # Adam takes two
    assert found["bytes"] == 111 + 28 * 40_000
    assert found["bytes_by_kind"]["norm"] == 110
    checked = summary(launches, [1000] * 40, checked=True)
    assert checked["bytes"] - found["bytes"] == 4 * 40_000
    assert checked["launches"] - found["launches"] == 1 + CHECK_LAUNCHES


@pytest.mark.parametrize(
    ("operators", "kind"),
    [
        (["aten.convolution.default"], "convolution"),
        (["aten.add.Tensor", "aten.rsqrt.default"], "norm"),
        (["aten.add.Tensor", "aten.relu.default"], "join"),
        (["prims.convert_element_type.default"], "cast"),
        (["aten.full.default"], "other"),
    ],
)
def test_kinds(operators: list[str], kind: str) -> None:
    assert kind_of(operators) == kind


def test_floor_grows_with_the_batch() -> None:
    (one, parts), (two, _) = (floor(batch, 96, 0.25, 5) for batch in (2, 4))
    weights = 28 + 18
    model_weights = (2 * one - two) / weights
    assert model_weights == int(model_weights)  # what is left when the maps are taken away
    assert len(parts) == 4


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "traffic.json"
    command = [sys.executable, "-m", "bench.traffic", "--batch", "2", "--size", "96", "--width", "0.25"]
    done = subprocess.run([*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours / plain" in done.stdout
    found = json.loads(file.read_text())
    assert found["generated"] > 0
    assert not any(found["failed"].values())


def test_wrong_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.traffic", "--arch", "70"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: --arch takes 80, 90, 100\n"
