"""Inception-ResNet-v1 for multi-label classification.

Szegedy, Ioffe, Vanhoucke and Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", 2016 (arXiv:1602.07261), section 3.2, figures 10 to 14. Parameter names follow the published PyTorch weights
of this network, so that a checkpoint says where each tensor belongs.

Feature maps for a 320×320 picture at width 1:

    stem            320×320×3  → 37×37×256
    repeat_1        5 blocks A, scale 0.17
    mixed_6a        37×37×256  → 18×18×896
    repeat_2        10 blocks B, scale 0.10
    mixed_7a        18×18×896  → 8×8×1792
    repeat_3        5 blocks C, scale 0.20
    block8          a sixth without ReLU, scale 1, only in networks made from the published weights
    head            average over the map, dropout, linear to the labels
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.block import Plan, inception_stage
from engine.merged import Group, merged_weights
from kernels import batch_norm, max_pool

EPS, MOMENTUM = 0.001, 0.1  # of every batch norm
Conv = tuple[int, int | tuple[int, int], int, int | tuple[int, int]]  # channels out, kernel, stride, padding


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch norm (eps 0.001), ReLU."""

    def __init__(self, channels_in: int, conv: Conv) -> None:
        super().__init__()
        channels, kernel, stride, padding = conv
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, EPS, MOMENTUM)

    def groups(self) -> list[Group]:
        return [[self.conv]]

    def forward(self, x: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        (weight,) = merged_weights(self.groups(), x.dtype) if weights is None else weights
        return normalized([self.bn], [convolved(self.conv, x, weight)])


def convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return torch.conv2d(x, weight, None, conv.stride, conv.padding)


def vectors(norms: Sequence[nn.BatchNorm2d]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases, and running means followed by running variances."""
    running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    return [norm.weight for norm in norms], [norm.bias for norm in norms], [v for v in running if v is not None]


def normalized(norms: Sequence[nn.BatchNorm2d], maps: Sequence[Tensor]) -> Tensor:
    """relu(norm(map)) of each, side by side."""
    weights, biases, running = vectors(norms)
    y, statistics = batch_norm.normalize_joined(maps, weights, biases, running, norms[0].training, EPS)
    if norms[0].training:
        batch_norm.move_running(running, of_each(norms, statistics), MOMENTUM)
    return y


def of_each(norms: Sequence[nn.BatchNorm2d], statistics: Tensor) -> tuple[Tensor, ...]:
    """Statistics [3, ΣC] of several norms, as those of each."""
    parts: tuple[Tensor, ...] = statistics.split_with_sizes([norm.num_features for norm in norms], 1)
    return parts


def chain(channels_in: int, convs: Iterable[Conv]) -> nn.Module:
    """Convolutions one after the other; a single one stands for itself, without an index in its name."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers.append(ConvNormRelu(channels_in, conv))
        channels_in = conv[0]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def units(branch: nn.Module) -> list[ConvNormRelu]:
    """The convolutions of a chain."""
    return [module for module in branch.modules() if isinstance(module, ConvNormRelu)]


class InceptionResidual(nn.Module):
    """relu(x + scale · conv1×1(concatenated branches)); figures 10, 11 and 13 of the paper. See engine.block."""

    def __init__(self, channels: int, branches: list[list[Conv]], scale: float, relu: bool = True) -> None:
        super().__init__()
        for i, convs in enumerate(branches):
            self.add_module(f"branch{i}", chain(channels, convs))
        self.conv2d = nn.Conv2d(sum(convs[-1][0] for convs in branches), channels, 1)
        chains = [units(self.get_submodule(f"branch{i}")) for i in range(len(branches))]
        paddings = tuple(tuple(unit.conv.padding for unit in chain[1:]) for chain in chains)
        self.plan = Plan(paddings, scale, relu, EPS)  # type: ignore[arg-type]
        self.heads = [chain[0] for chain in chains]
        self.others = [unit for chain in chains for unit in chain[1:]]

    def groups(self) -> list[Group]:
        return [[unit.conv for unit in self.heads], *([unit.conv] for unit in self.others), [self.conv2d]]

    def norms(self) -> list[nn.BatchNorm2d]:
        return [unit.bn for unit in (*self.heads, *self.others)]

    def forward(self, x: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        return stage([self], x, merged_weights(self.groups(), x.dtype) if weights is None else weights)


class Stage(nn.Sequential):
    """Blocks one after the other, in one pass; see engine.block."""

    def groups(self) -> list[Group]:
        return [group for block in self for group in block.groups()]  # type: ignore[operator]

    def forward(self, x: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        return stage(list(self), x, merged_weights(self.groups(), x.dtype) if weights is None else weights)  # type: ignore[arg-type]


def stage(blocks: Sequence[InceptionResidual], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Blocks one after the other, with the weights of all of them."""
    left, tensors = iter(weights), []
    moved: list[list[Tensor]] = []
    for block in blocks:
        head, *convs, tail = (next(left) for _ in block.groups())
        scales, biases, running = vectors(block.norms())
        assert block.conv2d.bias is not None
        tensors.append([head, tail, block.conv2d.bias, *convs, *scales, *biases, *running])
        moved.append(running)
    training = blocks[0].training
    y, statistics = inception_stage(tuple(block.plan for block in blocks), training, x, tensors)
    if training:
        # Means of all blocks, then variances, as move_running takes them.
        means = [v for running in moved for v in running[: len(running) // 2]]
        variances = [v for running in moved for v in running[len(running) // 2 :]]
        batch_norm.move_running([*means, *variances], statistics, MOMENTUM)
    return y


class Reduction(nn.Module):
    """Strided branches beside a max pool, concatenated; figures 7 and 12 of the paper."""

    def __init__(self, channels: int, branches: list[list[Conv]]) -> None:
        super().__init__()
        for i, convs in enumerate(branches):
            self.add_module(f"branch{i}", chain(channels, convs))
        self.chains = [units(self.get_submodule(f"branch{i}")) for i in range(len(branches))]
        self.heads = [chain[0] for chain in self.chains if chain[0].conv.kernel_size == (1, 1)]
        self.others = [unit for chain in self.chains for unit in chain if unit not in self.heads]

    def groups(self) -> list[Group]:
        return [[unit.conv for unit in self.heads], *([unit.conv] for unit in self.others)]

    def forward(self, x: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
        head, *rest = merged_weights(self.groups(), x.dtype) if weights is None else weights
        weight_of = dict(zip(self.others, rest, strict=True))
        norms = [unit.bn for unit in self.heads]
        scales, biases, running = vectors(norms)
        maps, statistics = batch_norm.normalize_split(
            torch.conv2d(x, head), scales, biases, running, self.training, EPS
        )
        if self.training:
            batch_norm.move_running(running, of_each(norms, statistics), MOMENTUM)
        after_head = dict(zip(self.heads, maps, strict=True))
        last = []
        for chained in self.chains:
            u = after_head.get(chained[0], x)
            *before, end = [unit for unit in chained if unit in weight_of]
            for unit in before:
                u = unit(u, [weight_of[unit]])
            last.append(convolved(end.conv, u, weight_of[end]))
        mixed = normalized([chain[-1].bn for chain in self.chains], last)
        return torch.cat([mixed, max_pool(x)], 1)


class InceptionResNetV1(nn.Module):
    """Inception-ResNet-v1 with one logit a label.

    Args:
        num_classes: number of labels.
        width: factor on all channel counts, rounded to multiples of 8.
        dropout: probability before the last layer.
        block8: whether a sixth block C without ReLU ends the network, as facenet-pytorch has it.

    Raises:
        ValueError: a width that is not above 0, or no labels.
    """

    def __init__(self, num_classes: int, width: float = 1.0, dropout: float = 0.2, block8: bool = False) -> None:
        super().__init__()
        if num_classes < 1 or not width > 0:
            raise ValueError(f"num_classes={num_classes} and width={width}: both must be above 0")

        def w(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        self.conv2d_1a = ConvNormRelu(3, (w(32), 3, 2, 0))
        self.conv2d_2a = ConvNormRelu(w(32), (w(32), 3, 1, 0))
        self.conv2d_2b = ConvNormRelu(w(32), (w(64), 3, 1, 1))
        self.conv2d_3b = ConvNormRelu(w(64), (w(80), 1, 1, 0))
        self.conv2d_4a = ConvNormRelu(w(80), (w(192), 3, 1, 0))
        self.conv2d_4b = ConvNormRelu(w(192), (w(256), 3, 2, 0))

        a = w(256)
        b = a + w(384) + w(256)
        c = b + w(384) + w(256) + w(256)
        block_a: list[list[Conv]] = [
            [(w(32), 1, 1, 0)],
            [(w(32), 1, 1, 0), (w(32), 3, 1, 1)],
            [(w(32), 1, 1, 0), (w(32), 3, 1, 1), (w(32), 3, 1, 1)],
        ]
        block_b: list[list[Conv]] = [
            [(w(128), 1, 1, 0)],
            [(w(128), 1, 1, 0), (w(128), (1, 7), 1, (0, 3)), (w(128), (7, 1), 1, (3, 0))],
        ]
        block_c: list[list[Conv]] = [
            [(w(192), 1, 1, 0)],
            [(w(192), 1, 1, 0), (w(192), (1, 3), 1, (0, 1)), (w(192), (3, 1), 1, (1, 0))],
        ]
        self.repeat_1 = Stage(*(InceptionResidual(a, block_a, 0.17) for _ in range(5)))
        self.mixed_6a = Reduction(a, [[(w(384), 3, 2, 0)], [(w(192), 1, 1, 0), (w(192), 3, 1, 1), (w(256), 3, 2, 0)]])
        self.repeat_2 = Stage(*(InceptionResidual(b, block_b, 0.10) for _ in range(10)))
        self.mixed_7a = Reduction(
            b,
            [
                [(w(256), 1, 1, 0), (w(384), 3, 2, 0)],
                [(w(256), 1, 1, 0), (w(256), 3, 2, 0)],
                [(w(256), 1, 1, 0), (w(256), 3, 1, 1), (w(256), 3, 2, 0)],
            ],
        )
        self.repeat_3 = Stage(*(InceptionResidual(c, block_c, 0.20) for _ in range(5)))
        self.block8 = InceptionResidual(c, block_c, 1.0, relu=False) if block8 else None
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(c, num_classes)
        self._norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        self.reset_parameters()

    @classmethod
    def from_facenet(
        cls, state_dict: Mapping[str, Tensor], num_classes: int, dropout: float = 0.2
    ) -> "InceptionResNetV1":
        """The network that facenet-pytorch's InceptionResnetV1 has up to its pooled features, with a new last layer.

        Args:
            state_dict: of that class; its embedding head (last_linear, last_bn, logits) is left out.
            num_classes, dropout: as above.

        Raises:
            ValueError: names a tensor that is missing or has another shape.
        """
        model = cls(num_classes, 1.0, dropout, block8=True)
        model.load_features(state_dict)
        return model

    def load_features(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes all weights but those of the last layer from a state_dict by name; others in it are left out.

        Raises:
            ValueError: names a tensor that is missing or has another shape.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            if name.startswith("logits.") or (name.endswith("num_batches_tracked") and name not in state_dict):
                continue
            if name not in state_dict:
                raise ValueError(f"{name} is missing")
            if state_dict[name].shape != tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(state_dict[name].shape)}; the network takes {tuple(tensor.shape)}"
                )
            own[name] = state_dict[name]
        self.load_state_dict(own)

    def reset_parameters(self) -> None:
        """He initialisation (He et al. 2015, section 2.2); biases 0, batch norm the identity.

        The last layer, which no ReLU follows, starts at 0: every label at even odds, whatever the features' size;
        `start_at` gives other odds.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    @torch.no_grad()
    def start_at(self, odds: Tensor) -> None:
        """Lets a new last layer answer these odds [labels], above 0, before it has learnt anything.

        The bias would else take thousands of steps to them, and rare labels rule the loss meanwhile (Lin et al.,
        "Focal Loss for Dense Object Detection", 2017, section 3.3).
        """
        self.logits.bias.copy_(odds.log())

    @torch.no_grad()
    def start_without_branches(self) -> None:
        """Lets each residual block add nothing at first, whatever its branches: its last convolution starts at 0.

        What is deep learns as if it were shallow at first (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section
        5.1; Zhang et al., "Fixup Initialization", 2019).
        """
        for module in self.modules():
            if isinstance(module, InceptionResidual):
                nn.init.zeros_(module.conv2d.weight)

    def forward_features(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] normalised pictures, H and W at least 75, to pooled features [N, 1792·width], float32.

        Under autocast the convolutions compute in its dtype.
        """
        kind = images.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.conv2d_1a.conv.weight.dtype
        if self.training:
            torch._foreach_add_(self._counters(), 1)
        with torch.autocast(kind, enabled=False):
            parts = self.parts()
            weights = iter(merged_weights([group for part in parts for group in part.groups()], half))
            x = images.to(half, memory_format=torch.channels_last)
            for part in parts:
                x = max_pool(x) if part is self.conv2d_3b else x
                x = part(x, [next(weights) for _ in part.groups()])
            pooled: Tensor = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] normalised pictures to logits [N, labels], float32."""
        pooled = self.dropout(self.forward_features(images))
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.logits(pooled)
        return logits

    def parts(self) -> list[ConvNormRelu | Stage | Reduction | InceptionResidual]:
        """All that has convolutions, in its order."""
        stem = [self.conv2d_1a, self.conv2d_2a, self.conv2d_2b, self.conv2d_3b, self.conv2d_4a, self.conv2d_4b]
        end = [] if self.block8 is None else [self.block8]
        return [*stem, self.repeat_1, self.mixed_6a, self.repeat_2, self.mixed_7a, self.repeat_3, *end]

    def _counters(self) -> list[Tensor]:
        return [norm.num_batches_tracked for norm in self._norms if norm.num_batches_tracked is not None]
