"""The network of engine.model in plain PyTorch: the peer that the traffic model and the timings set ours beside.

Parameter names are those of engine.model.InceptionResNetV1, so that one's weights load into the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS = 0.001
Conv = tuple[int, int | tuple[int, int], int, int | tuple[int, int]]  # channels out, kernel, stride, padding


class ConvNormRelu(nn.Module):
    def __init__(self, channels_in: int, conv: Conv) -> None:
        super().__init__()
        channels, kernel, stride, padding = conv
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def chain(channels_in: int, convs: Sequence[Conv]) -> nn.Module:
    """Convolutions one after the other; a single one stands for itself, without an index in its name."""
    inputs = [channels_in, *(channels for channels, *_ in convs)]
    layers = [ConvNormRelu(channels, conv) for channels, conv in zip(inputs, convs, strict=False)]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class Branches(nn.Module):
    """Branches side by side, concatenated."""

    def __init__(self, channels: int, branches: Sequence[Sequence[Conv]]) -> None:
        super().__init__()
        for i, convs in enumerate(branches):
            self.add_module(f"branch{i}", chain(channels, convs))

    def forward(self, x: Tensor) -> Tensor:
        branches = (module for name, module in self.named_children() if name.startswith("branch"))
        return torch.cat([branch(x) for branch in branches], 1)


class InceptionResidual(Branches):
    def __init__(self, channels: int, branches: Sequence[Sequence[Conv]], scale: float) -> None:
        super().__init__(channels, branches)
        self.scale = scale
        self.conv2d = nn.Conv2d(sum(convs[-1][0] for convs in branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.scale * self.conv2d(super().forward(x)))


class Reduction(Branches):
    def __init__(self, channels: int, branches: Sequence[Sequence[Conv]]) -> None:
        super().__init__(channels, branches)
        self.add_module(f"branch{len(branches)}", nn.MaxPool2d(3, 2))


class PlainInceptionResNetV1(nn.Module):
    """Inception-ResNet-v1 with one logit a label; `width` is a factor on all channel counts."""

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()

        def w(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        a = w(256)
        b = a + w(384) + w(256)
        c = b + w(384) + w(256) + w(256)
        first, then = (w(32), 1, 1, 0), (w(32), 3, 1, 1)
        block_a: list[list[Conv]] = [[first], [first, then], [first, then, then]]
        block_b: list[list[Conv]] = [
            [(w(128), 1, 1, 0)],
            [(w(128), 1, 1, 0), (w(128), (1, 7), 1, (0, 3)), (w(128), (7, 1), 1, (3, 0))],
        ]
        block_c: list[list[Conv]] = [
            [(w(192), 1, 1, 0)],
            [(w(192), 1, 1, 0), (w(192), (1, 3), 1, (0, 1)), (w(192), (3, 1), 1, (1, 0))],
        ]
        self.conv2d_1a = ConvNormRelu(3, (w(32), 3, 2, 0))
        self.conv2d_2a = ConvNormRelu(w(32), (w(32), 3, 1, 0))
        self.conv2d_2b = ConvNormRelu(w(32), (w(64), 3, 1, 1))
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = ConvNormRelu(w(64), (w(80), 1, 1, 0))
        self.conv2d_4a = ConvNormRelu(w(80), (w(192), 3, 1, 0))
        self.conv2d_4b = ConvNormRelu(w(192), (w(256), 3, 2, 0))
        self.repeat_1 = nn.Sequential(*(InceptionResidual(a, block_a, 0.17) for _ in range(5)))
        self.mixed_6a = Reduction(a, [[(w(384), 3, 2, 0)], [(w(192), 1, 1, 0), (w(192), 3, 1, 1), (w(256), 3, 2, 0)]])
        self.repeat_2 = nn.Sequential(*(InceptionResidual(b, block_b, 0.10) for _ in range(10)))
        self.mixed_7a = Reduction(
            b,
            [
                [(w(256), 1, 1, 0), (w(384), 3, 2, 0)],
                [(w(256), 1, 1, 0), (w(256), 3, 2, 0)],
                [(w(256), 1, 1, 0), (w(256), 3, 1, 1), (w(256), 3, 2, 0)],
            ],
        )
        self.repeat_3 = nn.Sequential(*(InceptionResidual(c, block_c, 0.20) for _ in range(5)))
        self.logits = nn.Linear(c, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.repeat_2(self.mixed_6a(self.repeat_1(x)))
        x = self.repeat_3(self.mixed_7a(x))
        logits: Tensor = self.logits(x.mean((2, 3)))
        return logits
