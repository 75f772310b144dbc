"""Weights from a file into a network whose last layer may be for other labels."""

from pathlib import Path

from torch import nn

from engine.run import load_checkpoint
from pipelines.errors import InputError

HEAD = ("logits.weight", "logits.bias")


def load_weights(model: nn.Module, path: Path) -> str:
    """Copies the weights of a checkpoint of ours, or of a plain state_dict, into the model; what it did, in a line.

    Raises:
        InputError: an unusable file, or weights of another network or width.
    """
    state = load_checkpoint(path)
    state = state.get("model", state)
    own = model.state_dict()
    anew = [name for name in HEAD if name not in state or state[name].shape != own[name].shape]
    for name, tensor in own.items():
        if name not in anew and (name not in state or state[name].shape != tensor.shape):
            found = "is missing" if name not in state else f"has shape {tuple(state[name].shape)}"
            raise InputError(f"{path}: {name} {found}; the network takes {tuple(tensor.shape)} (is --width the same?)")
    model.load_state_dict({name: tensor if name in anew else state[name] for name, tensor in own.items()})
    return f"weights from {path}{'; the last layer starts anew' if anew else ''}"
