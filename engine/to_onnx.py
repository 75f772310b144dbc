"""The trained network in standard ONNX operators."""

import warnings
from typing import TYPE_CHECKING

import torch

from engine.any_size import Letterbox
from engine.folded import FoldedNetwork
from engine.model import InceptionResNetV1
from engine.model_file import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx

OPSET = 18


def to_onnx(network: InceptionResNetV1, size: int, half: bool = False, any_size: bool = False) -> "onnx.ModelProto":
    """The network, folded, as an ONNX model from uint8 pictures to probabilities.

    Args:
        network: trained.
        size: side of the letterboxed picture in pixels.
        half: float16 between the pixels and the pooled features.
        any_size: whether the letterbox is in the model, which then takes [batch, height, width, 3] of any size.
    """
    folded = FoldedNetwork(network, torch.float16 if half else torch.float32, Letterbox(size) if any_size else None)
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    given = (2, size + 1, size + 2, 3) if any_size else (2, size, size, 3)
    with warnings.catch_warnings(), torch.no_grad():  # with gradients to think of, tracing takes a third more
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            folded.eval(),
            (torch.zeros(given, dtype=torch.uint8),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: batch, 1: height, 2: width} if any_size else {0: batch}},
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.producer_name = "manylabel"
    return model
