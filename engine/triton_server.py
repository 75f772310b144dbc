"""A model repository for NVIDIA's Triton Inference Server, which answers letterboxed pictures over HTTP and gRPC.

DIR/NAME/config.pbtxt       what goes in and comes out, batching of requests that come together, thresholds
DIR/NAME/labels.txt         a name a line: the server's classification extension answers with them
DIR/NAME/1/model.onnx       a further export is version 2, and so on; the server takes the latest
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.text_encoding import CEscape

from engine.model_file import INPUT, OUTPUT, Description
from pipelines.cache import replace_file
from pipelines.errors import InputError

MAX_BATCH = 64
PREFERRED = (8, 16, 32)  # pictures
DELAY = 2000  # microseconds that a request waits for others to go with it


def write_repository(root: Path, content: bytes, description: Description) -> Path:
    """Adds an ONNX file to the repository; the folder of the model.

    Raises:
        InputError: it cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", description.run)
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / "labels.txt") as temporary:
            temporary.write_text("".join(f"{label}\n" for label in description.labels), encoding="utf-8")
        with replace_file(folder / "config.pbtxt") as temporary:
            temporary.write_text(configuration(name, description), encoding="utf-8")
        taken = [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal()]
        with TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as place:
            version = Path(place) / "version"  # a server that is watching sees it whole or not at all
            version.mkdir()
            (version / "model.onnx").write_bytes(content)
            version.rename(folder / str(max(taken, default=0) + 1))
    except OSError as error:
        raise InputError(f"{root}: cannot be written: {error.strerror}") from None
    return folder


def configuration(name: str, description: Description) -> str:
    """The text of config.pbtxt, a `ModelConfig` of the server's model_config.proto."""
    size = description.image_size
    kind = "KIND_CPU" if description.precision == "int8" else "KIND_AUTO"
    labels = dict(zip(description.labels, description.thresholds, strict=True))
    thresholds = json.dumps(labels, ensure_ascii=False).encode()
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }}
]
output [
  {{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ {len(description.labels)} ] label_filename: "labels.txt" }}
]
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED))} ]
  max_queue_delay_microseconds: {DELAY}
}}
instance_group [
  {{ count: 1 kind: {kind} }}
]
parameters {{
  key: "thresholds"
  value {{ string_value: "{CEscape(thresholds, as_utf8=True)}" }}
}}
"""
