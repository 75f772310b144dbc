"""Weights from a file, for a network whose last layer may be for other labels."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import load_checkpoint
from engine.model import InceptionResNetV1
from pipelines.errors import InputError

HEAD = ("logits.weight", "logits.bias")


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        path: the file.
        state: tensors by their names.
        labels: that the last layer is for; None where the file does not say.
    """

    path: Path
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None

    @property
    def block8(self) -> bool:
        """Whether the weights are of a network with a sixth block C, as facenet-pytorch's is."""
        return any(name.startswith("block8.") for name in self.state)


def read_weights(path: Path) -> Weights:
    """The state_dict in a checkpoint of ours, a file of torch.save, or a .safetensors file.

    Raises:
        InputError: an unusable file, or one that holds something else.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder; a run's network is {path / 'checkpoints' / 'best.pt'}")
    state: object
    labels: object = None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such checkpoint") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a usable safetensors file ({error})") from None
    else:
        state = load_checkpoint(path)
        labels = state.get("labels") if "model" in state else None
        state = state.get("model", state)
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path}: holds no weights by name")
    return Weights(path, state, tuple(map(str, labels)) if isinstance(labels, list) else None)


def load_weights(model: InceptionResNetV1, weights: Weights, labels: tuple[str, ...]) -> str:
    """Copies weights into the model of a network for `labels`; what it did, in a line.

    Raises:
        InputError: weights of another network or width.
    """
    state, path = weights.state, weights.path
    try:
        model.load_features(state)
    except ValueError as error:
        raise InputError(f"{path}: {error} (is --width the same?)") from None
    own = dict(zip(HEAD, (model.logits.weight, model.logits.bias), strict=True))
    anew = any(name not in state or state[name].shape != tensor.shape for name, tensor in own.items())
    anew |= weights.labels not in (None, labels)
    if not anew:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
    return f"weights from {path}{'; the last layer starts anew' if anew else ''}"
