"""Weights that a network may start from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.folded import FoldedNetwork
from engine.model import InceptionResNetV1
from engine.weights import Weights, load_weights, read_weights
from pipelines.errors import InputError


@pytest.mark.parametrize("form", ["checkpoint.pt", "state.pt", "state.safetensors"])
@pytest.mark.parametrize("labels", [5, 3])
def test_every_form_of_file(form: str, labels: int, tmp_path: Path) -> None:
    """The same weights come out of each; a last layer for as many labels is taken too, another starts anew."""
    torch.manual_seed(0)
    source = InceptionResNetV1(5, 0.125, block8=True)
    torch.nn.init.normal_(source.logits.weight)
    state, path = source.state_dict(), tmp_path / form
    if form == "state.safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "progress": {}} if form == "checkpoint.pt" else state, path)
    found = read_weights(path)
    assert found.block8
    model = InceptionResNetV1(labels, 0.125, block8=True)
    said = load_weights(model, found, tuple("abcde"[:labels]))
    assert ("starts anew" in said) == (labels != 5)
    for name, tensor in model.state_dict().items():
        if labels == 5 or not name.startswith("logits."):
            assert torch.equal(tensor, state[name]), name


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv2d_1a.conv.weight": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    with pytest.raises(InputError, match="not a usable checkpoint"):
        read_weights(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", [1, 2], "not a usable checkpoint"),
        ("a.pt", torch.zeros(3), "not a usable checkpoint"),
        ("a.pt", {"model": 5}, "holds no weights by name"),
        ("a.pt", {"a": 5}, "holds no weights by name"),
        ("a.pt", {}, "holds no weights by name"),
        ("a.safetensors", b"no header", "not a usable safetensors file"),
        ("a.safetensors", None, "no such checkpoint"),
        ("a.pt", None, "no such checkpoint"),
    ],
)
def test_files_without_weights(name: str, content: object, message: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / name)


def test_weights_of_another_width(tmp_path: Path) -> None:
    state = InceptionResNetV1(5, 0.25).state_dict()
    with pytest.raises(InputError, match=r"has shape .*is --width the same"):
        load_weights(InceptionResNetV1(5, 0.125), Weights(tmp_path / "a.pt", state, None), tuple("abcde"))


@pytest.mark.parametrize("labels", ["abcde", "vwxyz", "edcba"])
def test_the_head_for_other_labels_starts_anew(labels: str, tmp_path: Path) -> None:
    """As many labels are not the same labels: a checkpoint says which it was trained for."""
    source, model = InceptionResNetV1(5, 0.125), InceptionResNetV1(5, 0.125)
    torch.nn.init.normal_(source.logits.weight)
    torch.save({"model": source.state_dict(), "labels": list("abcde")}, tmp_path / "best.pt")
    said = load_weights(model, read_weights(tmp_path / "best.pt"), tuple(labels))
    same = labels == "abcde"
    assert ("starts anew" in said) != same
    assert torch.equal(model.logits.weight, source.logits.weight) == same


def test_the_sixth_block_is_exported_without_its_relu() -> None:
    torch.manual_seed(0)
    network = InceptionResNetV1(4, 0.125, block8=True).eval()
    torch.nn.init.normal_(network.logits.weight)
    pixels = torch.randint(0, 256, (2, 75, 75, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = torch.sigmoid(network((pixels.permute(0, 3, 1, 2).float() - 127.5) / 128))
        torch.testing.assert_close(FoldedNetwork(network)(pixels), expected, rtol=1e-4, atol=1e-5)
