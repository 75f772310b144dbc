"""An fp32 ONNX network in int8, by static calibration: convolutions, additions and concatenations of 8-bit numbers.

Weights are quantised a channel each, activations a map each, from the range that calibration pictures fill. The first
convolution takes the pixels as they are: a byte is its own quantisation. The last layer stays in float32.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877.
"""

import logging
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from engine.model_file import INPUT

QUANTISED = ["Conv", "Add", "Concat", "MaxPool", "Relu"]
DEEP = 512  # products a sum: from here on tiles pay for gathering the pixels of a window
DEEP_1X1 = 256  # where there is nothing to gather


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self.left = iter(pictures)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        picture = next(self.left, None)
        return None if picture is None else {INPUT: picture[None]}


def quantised(model: onnx.ModelProto, pictures: NDArray[np.uint8], kept: Collection[str] = ()) -> onnx.ModelProto:
    """The network in int8.

    Args:
        model: of engine.export, in float32.
        pictures: uint8 [N, size, size, 3], what the network will see; training pictures.
        kept: names of nodes that stay in float32.
    """
    given = onnx.ModelProto()
    given.CopyFrom(model)  # the quantiser moves its constants elsewhere
    pixels = next(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    exact = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
    with tempfile.TemporaryDirectory() as folder, _no_warnings():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            given,
            path,
            _Pictures(pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
            extra_options={"TensorQuantOverrides": {pixels: [exact]}},
        )
        made = onnx.load(path)
    _take_bytes(made)
    _prefer_tiles(made)
    return made


@contextmanager
def _no_warnings() -> Iterator[None]:
    """The quantiser warns that the model is not preprocessed; ours needs none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _take_bytes(model: onnx.ModelProto) -> None:
    """Bytes that are made floats only to be quantised to the same bytes go to the convolution as they are."""
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    for quantise in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        cast = maker.get(quantise.input[0])
        if cast is not None and cast.op_type == "Cast" and INPUT in _sources(cast, maker):
            for node in graph.node:
                node.input[:] = [cast.input[0] if name == quantise.output[0] else name for name in node.input]
            graph.node.remove(quantise)
            graph.node.remove(cast)


def _sources(node: onnx.NodeProto, maker: dict[str, onnx.NodeProto]) -> set[str]:
    found = set(node.input)
    for name in node.input:
        if name in maker and maker[name].op_type == "Transpose":
            found |= _sources(maker[name], maker)
    return found


def _prefer_tiles(model: onnx.ModelProto) -> None:
    """Gives the weights of deep convolutions the zero point -1 instead of 0.

    ONNX Runtime has a kernel of its own for convolutions whose weights are symmetric, which knows dot products of four
    bytes (VNNI) but no tiles (AMX); its matrix product has both. Any other zero point leads there, and where sums are
    deep that is up to twice as fast on a CPU with tiles.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for conv in (node for node in model.graph.node if node.op_type == "Conv"):
        weights = made.get(conv.input[1])
        if weights is None:
            continue
        name, scale, zero = weights.input
        values = numpy_helper.to_array(constants[name])
        if values[0].size < (DEEP_1X1 if values.shape[2:] == (1, 1) else DEEP):
            continue
        constants[name].CopyFrom(numpy_helper.from_array(values - np.int8(1), name))  # they are -127 to 127
        constants[zero].CopyFrom(numpy_helper.from_array(np.full(constants[scale].dims, -1, np.int8), zero))
