"""The network is the published one."""

import pytest
import torch
from torch import Tensor, nn

from engine.model import InceptionResidual, InceptionResNetV1


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


def test_names_are_the_published_ones(photographs) -> None:  # type: ignore[no-untyped-def]
    """All tensors of the published network but its sixth C block and its head are ours by name and shape."""
    table = (photographs.parent / "reference" / "facenet_inception_resnet_v1_state_dict.tsv").read_text()
    published = dict(line.split("\t") for line in table.splitlines()[1:])
    ours = {
        name: "x".join(map(str, tensor.shape))
        for name, tensor in InceptionResNetV1(20).state_dict().items()
        if not name.startswith("logits")
    }
    others = ("block8.", "last_linear.", "last_bn.", "logits.")
    assert ours == {name: shape for name, shape in published.items() if not name.startswith(others)}
