"""Weights from a file, for a network whose last layer may be for other labels."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint import load_checkpoint
from engine.model import InceptionResNetV1
from pipelines.errors import InputError

HEAD = ("logits.weight", "logits.bias")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a checkpoint of ours, a file of torch.save, or a .safetensors file.

    Raises:
        InputError: an unusable file, or one that holds something else.
    """
    state: object
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
        state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path}: holds no weights by name")
    return state


def has_block8(state: Mapping[str, Tensor]) -> bool:
    """Whether the weights are of a network with a sixth block C, as facenet-pytorch's is."""
    return any(name.startswith("block8.") for name in state)


def load_weights(model: InceptionResNetV1, state: Mapping[str, Tensor], path: Path) -> str:
    """Copies the weights that `path` held into the model; what it did, in a line.

    Raises:
        InputError: weights of another network or width.
    """
    try:
        model.load_features(state)
    except ValueError as error:
        raise InputError(f"{path}: {error} (is --width the same?)") from None
    own = dict(zip(HEAD, (model.logits.weight, model.logits.bias), strict=True))
    anew = any(name not in state or state[name].shape != tensor.shape for name, tensor in own.items())
    if not anew:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
    return f"weights from {path}{'; the last layer starts anew' if anew else ''}"
