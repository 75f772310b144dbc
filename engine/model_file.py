"""What an ONNX file of ours says about itself, so that the file alone is enough to classify photographs."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.errors import InputError

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "int8"]

FORMAT = "manylabel"  # key of the metadata by which a file of ours is known; its value is the version
VERSION = "1"
INPUT, OUTPUT = "images", "probabilities"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The metadata of a file, each value as JSON under its name.

    Attributes:
        labels: names, in the order of the probabilities.
        thresholds: of each label, the probability from which on it is decided.
        image_size: side of the letterboxed pictures in pixels.
        any_size: whether the file letterboxes by itself and takes pictures of any size.
        precision: of the arithmetic.
        mean, std: of each channel, what the network was trained with; applied inside the graph.
        run, epoch: where the weights come from.
        versions: of the packages that made the file.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    image_size: int
    any_size: bool
    precision: Precision
    mean: float
    std: float
    run: str
    epoch: int
    versions: dict[str, str | None]

    def metadata(self) -> dict[str, str]:
        """As an ONNX file keeps it."""
        return {FORMAT: VERSION} | {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}


def describe(model: "onnx.ModelProto", description: Description) -> None:
    """Writes the metadata into the model, in place of any that it has."""
    del model.metadata_props[:]
    for name, value in description.metadata().items():
        model.metadata_props.add(key=name, value=value)


def read_model(path: Path) -> tuple[bytes, Description]:
    """The content of an ONNX file and its description.

    Raises:
        InputError: no such file, a damaged one, or one that is not ours.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise InputError(f"{path}: not an ONNX file, or a truncated one") from None
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file, or a truncated one")
    return content, _description(path, {entry.key: entry.value for entry in model.metadata_props})


def _description(path: Path, metadata: dict[str, str]) -> Description:
    if FORMAT not in metadata:
        raise InputError(
            f"{path}: an ONNX file without labels, thresholds and picture size in its metadata; "
            "python -m engine.export makes one that has them"
        )
    if metadata[FORMAT] != VERSION:
        raise InputError(f"{path}: made by another version of manylabel (format {metadata[FORMAT]}, not {VERSION})")
    try:
        values: dict[str, Any] = {field.name: json.loads(metadata[field.name]) for field in fields(Description)}
        values |= {name: tuple(values[name]) for name in ("labels", "thresholds")}
        if len(values["thresholds"]) != len(values["labels"]):
            raise ValueError(f"{len(values['labels'])} labels and {len(values['thresholds'])} thresholds")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({type(error).__name__}: {error})") from None
    return Description(**values)
