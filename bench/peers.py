"""A training step of the networks that people train instead of ours: forward, loss, backward, fused Adam.

Nothing of ours but its plain twin (bench.plain) is imported, so that a process with a peer's step is the peer's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.plain import PlainInceptionResNetV1
from bench.timing import Call

LABELS = 20


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's network in training.

    Attributes:
        make: the network.
        tuned: channels-last, and in the arithmetic that is asked for; else as it comes, contiguous and in float32.
        compiled: torch.compile's mode; both have its own CUDA graphs.
    """

    make: Callable[[], nn.Module]
    tuned: bool = True
    compiled: Literal["reduce-overhead", "max-autotune"] | None = None


def plain() -> nn.Module:
    return PlainInceptionResNetV1(LABELS)


def facenet() -> nn.Module:
    import facenet_pytorch

    network: nn.Module = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=LABELS, dropout_prob=0.0)
    return network


def timm_v2() -> nn.Module:
    """The second version of the network: the nearest that timm has, with 54 million parameters."""
    import timm

    network: nn.Module = timm.create_model("inception_resnet_v2", num_classes=LABELS)
    return network


PEERS = {
    "plain": Peer(plain),
    "plain, float32 as it comes": Peer(plain, tuned=False),
    "facenet-pytorch": Peer(facenet),
    "timm inception_resnet_v2": Peer(timm_v2),
}
# On a GPU alone: on the CPU torch.compile gained little when it was tried, and takes minutes.
COMPILED = {
    "plain, torch.compile": Peer(plain, compiled="reduce-overhead"),
    "plain, torch.compile, max-autotune": Peer(plain, compiled="max-autotune"),
    "facenet-pytorch, torch.compile": Peer(facenet, compiled="reduce-overhead"),
}


def data(size: int, batch: int, device: str, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Pictures [batch, 3, size, size] and targets, bool [batch, LABELS]."""
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    return images, torch.rand(batch, LABELS, device=device) < 0.1


def peer_step(peer: Peer, size: int, batch: int, device: str, amp: torch.dtype | None) -> Call:
    """A step as a training loop has it, under autocast to `amp` if that is given."""
    torch.manual_seed(0)
    layout = torch.channels_last if peer.tuned else torch.contiguous_format
    model: Any = peer.make().train()
    model.to(device=device, memory_format=layout)
    if peer.compiled is not None:
        model = torch.compile(model, mode=peer.compiled, dynamic=False)
    images, truth = data(size, batch, device, layout)
    targets, mixed = truth.float(), amp is not None and peer.tuned
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        with torch.autocast(device, dtype=amp, enabled=mixed):
            logits = model(images)
        torch.autograd.backward(binary_cross_entropy_with_logits(logits.float(), targets))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
