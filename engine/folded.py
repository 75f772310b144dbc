"""The trained network as inference runs it: convolutions, ReLUs, a pool and nothing else.

    batch norm      w·(conv(x) − mean)/√(var + eps) + b  =  conv'(x) + b'            running statistics are constants
    block's tail    relu(x + scale · conv(u))            =  relu(x + conv'(u))
    normalisation   conv((pixels − MEAN)/STD)            =  conv'(pixels)            exact: the first has no padding

It is made from the modules of engine.model, whose order and shapes it follows, computes in plain torch operations that
every ONNX runtime has, and takes pixels as the pipeline letterboxes them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from engine.model import ConvNormRelu, InceptionResidual, InceptionResNetV1, Reduction, Stage, units
from pipelines.augment import MEAN, STD


def folded(unit: ConvNormRelu) -> nn.Conv2d:
    """The convolution of a unit with its batch norm inside, computed in float64."""
    norm = unit.bn
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = norm.bias.double() - norm.running_mean.double() * factor
    return _conv(unit.conv, unit.conv.weight.double() * factor[:, None, None, None], bias)


def _conv(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], like.kernel_size, like.stride, like.padding)  # type: ignore[arg-type]
    conv.weight.data, conv.bias.data = weight.detach().float(), bias.detach().float()  # type: ignore[union-attr]
    return conv


def _on_pixels(conv: nn.Conv2d) -> nn.Conv2d:
    """The first convolution, given pixels of 0 to 255 instead of normalised ones."""
    assert conv.padding == (0, 0), "a border of zeros would not be a border of mean pixels"
    assert conv.bias is not None
    weight = conv.weight.double() / STD
    return _conv(conv, weight, conv.bias.double() - MEAN * weight.sum((1, 2, 3)))


class Unit(nn.Module):
    """relu(conv(x))."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def _branches(module: nn.Module) -> nn.ModuleList:
    chains = [child for name, child in module.named_children() if name.startswith("branch")]
    return nn.ModuleList(nn.Sequential(*(Unit(folded(unit)) for unit in units(chain))) for chain in chains)


class Block(nn.Module):
    """relu(x + conv1×1(branches side by side)), or without ReLU; the scale is within the convolution."""

    def __init__(self, block: InceptionResidual) -> None:
        super().__init__()
        self.branches = _branches(block)
        self.relu, tail = block.plan.relu, block.conv2d
        assert tail.bias is not None
        self.tail = _conv(tail, tail.weight.double() * block.plan.scale, tail.bias.double() * block.plan.scale)

    def forward(self, x: Tensor) -> Tensor:
        joined = x + self.tail(torch.cat([branch(x) for branch in self.branches], 1))
        return torch.relu(joined) if self.relu else joined


class Reducing(nn.Module):
    """Strided branches and the max pool, side by side."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.branches = _branches(reduction)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(branch(x) for branch in self.branches), max_pool2d(x, 3, 2)], 1)


class FoldedNetwork(nn.Module):
    """Letterboxed pictures, uint8 [N, size, size, 3] RGB, to probabilities, float32 [N, labels].

    Args:
        network: trained; its running statistics and weights are copied.
        dtype: of the arithmetic between the pixels and the pooled features.
        letterbox: makes such pictures, as pixels [N, 3, size, size], of [N, H, W, 3] of any other size.
    """

    def __init__(
        self, network: InceptionResNetV1, dtype: torch.dtype = torch.float32, letterbox: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dtype, self.letterbox = dtype, letterbox
        parts: list[nn.Module] = []
        for part in network.parts():
            if part is network.conv2d_3b:
                parts.append(nn.MaxPool2d(3, 2))
            if isinstance(part, Stage):
                parts += [Block(block) for block in part]  # type: ignore[arg-type]
            elif isinstance(part, InceptionResidual):
                parts.append(Block(part))
            elif isinstance(part, Reduction):
                parts.append(Reducing(part))
            else:
                conv = folded(part)
                parts.append(Unit(_on_pixels(conv) if part is network.conv2d_1a else conv))
        self.features = nn.Sequential(*parts).to(dtype)
        self.logits = nn.Linear(network.logits.in_features, network.logits.out_features)
        self.logits.load_state_dict(network.logits.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2) if self.letterbox is None else self.letterbox(images)
        x = self.features(pixels.to(self.dtype))
        probabilities: Tensor = torch.sigmoid(self.logits(x.mean((2, 3), dtype=torch.float32)))
        return probabilities
