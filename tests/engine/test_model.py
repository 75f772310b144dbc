"""The network is the published one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.plain import InceptionResidual as PlainBlock
from bench.plain import PlainInceptionResNetV1
from engine.model import InceptionResidual, InceptionResNetV1

C_BRANCHES = [[(192, 1, 1, 0)], [(192, 1, 1, 0), (192, (1, 3), 1, (0, 1)), (192, (3, 1), 1, (1, 0))]]


def test_stages_at_320() -> None:
    """The study's: 37×37×256, 18×18×896, 8×8×1792."""
    model = InceptionResNetV1(20).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("conv2d_4b", "repeat_1", "mixed_6a", "repeat_2", "mixed_7a", "repeat_3"):

        def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            seen[name] = tuple(output.shape[1:])

        model.get_submodule(name).register_forward_hook(keep)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 320, 320)).shape == (1, 20)
        assert model.forward_features(torch.zeros(1, 3, 320, 320)).shape == (1, 1792)
    assert seen == {
        "conv2d_4b": (256, 37, 37),
        "repeat_1": (256, 37, 37),
        "mixed_6a": (896, 18, 18),
        "repeat_2": (896, 18, 18),
        "mixed_7a": (1792, 8, 8),
        "repeat_3": (1792, 8, 8),
    }


def test_parameters_and_parts() -> None:
    model = InceptionResNetV1(20)
    assert sum(p.numel() for p in model.parameters()) == 20_999_188
    blocks = [m for m in model.modules() if isinstance(m, InceptionResidual)]
    assert [b.plan.scale for b in blocks] == [0.17] * 5 + [0.10] * 10 + [0.20] * 5
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    with_bias = {name for name, m in convolutions.items() if m.bias is not None}
    assert with_bias == {name for name in convolutions if name.endswith("conv2d")}
    assert len(with_bias) == 20
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.001}
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2]


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    model = InceptionResNetV1(20)
    for name, weight in model.named_parameters():
        if weight.dim() == 4 and weight.numel() > 20_000:
            fan_in = weight[0].numel()
            assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name
    assert not model.logits.weight.any()  # even odds for every label at the start


def test_a_new_network_answers_the_odds_that_it_is_given() -> None:
    model = InceptionResNetV1(3, width=0.25).eval()
    model.start_at(torch.tensor([0.01, 1.0, 9.0]))
    answers = torch.sigmoid(model(torch.randn(2, 3, 75, 75)))
    torch.testing.assert_close(answers, torch.tensor([0.01 / 1.01, 0.5, 0.9]).expand(2, 3))


def test_a_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = InceptionResNetV1(3, width=0.25).repeat_3[0].eval()
    x = torch.randn(2, block.conv2d.out_channels, 5, 5)
    mixed = torch.cat([block.branch0(x), block.branch1(x)], 1)
    expected = torch.relu(x + 0.2 * block.conv2d(mixed))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("width", "size"), [(0.125, 75), (0.25, 96), (0.5, 77), (1.5, 75)])
def test_any_width_and_size(width: float, size: int) -> None:
    model = InceptionResNetV1(7, width).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize(("labels", "width"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_impossible_networks(labels: int, width: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        InceptionResNetV1(labels, width)


PUBLISHED = Path(__file__).parents[3] / "shared" / "reference" / "facenet_inception_resnet_v1_state_dict.tsv"


@pytest.fixture
def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of facenet-pytorch's InceptionResnetV1."""
    if not PUBLISHED.is_file():
        pytest.skip(f"the table of published names is needed and {PUBLISHED} is missing")
    rows = (line.split("\t") for line in PUBLISHED.read_text().splitlines()[1:])
    return {name: tuple(map(int, filter(None, shape.split("x")))) for name, shape in rows}


def test_names_are_the_published_ones(published: dict[str, tuple[int, ...]]) -> None:
    """All tensors of the published network but its embedding head are ours by name and shape."""
    ours = {
        name: tuple(tensor.shape)
        for name, tensor in InceptionResNetV1(20, block8=True).state_dict().items()
        if not name.startswith("logits")
    }
    head = ("last_linear.", "last_bn.", "logits.")
    assert ours == {name: shape for name, shape in published.items() if not name.startswith(head)}


def test_from_the_published_network(published: dict[str, tuple[int, ...]]) -> None:
    """Its weights are taken, its embedding head is left out, and the last block has no ReLU."""
    torch.manual_seed(0)
    state = {name: torch.rand(shape) * 0.02 for name, shape in published.items()}
    state |= {"logits.weight": torch.rand(8631, 512), "logits.bias": torch.rand(8631)}
    model = InceptionResNetV1.from_facenet(state, 7).eval()
    assert model.logits.out_features == 7
    plain = PlainInceptionResNetV1(7).eval()
    plain.block8 = PlainBlock(1792, C_BRANCHES, 1.0).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.block8.branch1[2].conv.weight, state["block8.branch1.2.conv.weight"])
    x = torch.randn(1, 3, 80, 80)
    seen: list[Tensor] = []
    plain.repeat_3.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        found = model.forward_features(x)
        plain(x)
        (before,) = seen
        branches = torch.cat([plain.block8.branch0(before), plain.block8.branch1(before)], 1)
        expected = (before + plain.block8.conv2d(branches)).mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"block8.conv2d.bias": None}, "block8.conv2d.bias is missing"),
        ({"conv2d_1a.conv.weight": (8, 3, 3, 3)}, r"conv2d_1a.conv.weight has shape \(8, 3, 3, 3\)"),
    ],
)
def test_from_another_network(
    published: dict[str, tuple[int, ...]], spoilt: dict[str, tuple[int, ...] | None], message: str
) -> None:
    shapes = {**published, **spoilt}
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(ValueError, match=message):
        InceptionResNetV1.from_facenet(state, 7)


def test_without_branches_blocks_pass_on_what_they_get() -> None:
    """And what they add is learnt: their last convolutions have gradients at once."""
    model = InceptionResNetV1(3, 0.125)
    model.start_without_branches()
    x = torch.rand(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = model.repeat_1(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert all(block.conv2d.weight.grad.any() for block in model.repeat_1)  # type: ignore[union-attr]
