"""The traffic model, on a small network and small pictures: what it counts, and that it leaves no trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._triton import has_triton

import kernels
from bench import pretend
from bench.codegen import Launch, assemble, generate, kind_of
from bench.traffic import floor, summary

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
    assert done.stderr == "error: --arch takes 90, 80, 100\n".replace("90, 80", "80, 90")
