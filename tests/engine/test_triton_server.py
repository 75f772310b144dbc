"""The model repository is one that the server's own schema takes and that fits the ONNX file in it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from engine.model_file import read_model
from engine.triton_server import MAX_BATCH, write_repository
from pipelines.errors import InputError
from tests.engine.conftest import LABELS, SIZE

Exported = Callable[..., Path]
Field = descriptor_pb2.FieldDescriptorProto

# What a configuration of ours may use of triton-inference-server/common/protobuf/model_config.proto: (number, type).
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
MESSAGES = {
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64*")},
    "ModelOutput": {
        "name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "int64*"), "label_filename": (4, "string"),
    },
    "ModelDynamicBatching": {"preferred_batch_size": (1, "int32*"), "max_queue_delay_microseconds": (2, "uint64")},
    "ModelInstanceGroup": {"name": (1, "string"), "count": (2, "int32"), "gpus": (3, "int32*"), "kind": (4, "Kind")},
    "ModelParameter": {"string_value": (1, "string")},
    "ParametersEntry": {"key": (1, "string"), "value": (2, "ModelParameter")},
    "ModelConfig": {
        "name": (1, "string"), "max_batch_size": (4, "int32"), "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"), "instance_group": (7, "ModelInstanceGroup*"),
        "dynamic_batching": (11, "ModelDynamicBatching"), "parameters": (14, "ParametersEntry*"),
        "backend": (17, "string"),
    },
}  # fmt: skip


def model_config() -> Any:
    """An empty message of the schema."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        file.enum_type.add(name=name).value.extend(
            descriptor_pb2.EnumValueDescriptorProto(name=value, number=number) for value, number in values.items()
        )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number)
            made.label = Field.LABEL_REPEATED if kind.endswith("*") else Field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in ENUMS or kind in MESSAGES:
                made.type = Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE
                made.type_name = f".inference.{kind}"
            else:
                made.type = getattr(Field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_configuration_fits_the_file(exported: Exported, tmp_path: Path, precision: str) -> None:
    content, description = read_model(exported(precision))
    folder = write_repository(tmp_path, content, description)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config())
    assert config.name == folder.name == "run"
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == MAX_BATCH
    assert max(config.dynamic_batching.preferred_batch_size) <= MAX_BATCH
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    (group,) = config.instance_group
    assert group.kind == ENUMS["Kind"]["KIND_CPU" if precision == "int8" else "KIND_AUTO"]
    model = onnx.load(folder / "1" / "model.onnx")
    for ours, theirs, kind in (
        (config.input, model.graph.input, "TYPE_UINT8"),
        (config.output, model.graph.output, "TYPE_FP32"),
    ):
        assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
        first, *rest = theirs[0].type.tensor_type.shape.dim  # the first is the server's: the batch
        assert first.dim_param == "batch"
        assert list(ours[0].dims) == [dim.dim_value for dim in rest]
        assert ours[0].data_type == ENUMS["DataType"][kind]
    assert list(config.input[0].dims) == [SIZE, SIZE, 3]
    assert (folder / config.output[0].label_filename).read_text().splitlines() == list(LABELS)
    (thresholds,) = (json.loads(entry.value.string_value) for entry in config.parameters)
    assert thresholds == dict(zip(LABELS, description.thresholds, strict=True))


def test_any_names_and_further_versions(exported: Exported, tmp_path: Path) -> None:
    content, description = read_model(exported())
    awkward = replace(description, run='größe "1"', labels=('a "b"', "c\\d", "größe"))
    for version in (1, 2):
        folder = write_repository(tmp_path, content, awkward)
        assert (folder / str(version) / "model.onnx").read_bytes() == content
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config())
    assert config.name == folder.name
    assert set(json.loads(config.parameters[0].value.string_value)) == set(awkward.labels)


def test_a_place_that_cannot_be_written(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_repository(tmp_path / "file", *read_model(exported()))


def test_a_full_disk_leaves_no_version_without_a_model(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes the latest version there is, whatever is in it."""
    content, description = read_model(exported())
    folder = write_repository(tmp_path, content, description)

    def full(self: Path, _: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="cannot be written: No space left"):
            write_repository(tmp_path, content, description)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt", "labels.txt"]
