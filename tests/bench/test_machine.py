"""What figures are told with: the processor as it calls itself, what it can, and only what is installed."""

import json
import os

from bench.machine import machine


def test_machine() -> None:
    found = machine({"brand_raw": "A CPU", "flags": ["fpu", "avx2", "amx_tile", "avx512_bf16"], "count": 99})
    assert found["processor"] == "A CPU"
    assert found["instructions"] == ["avx2", "avx512_bf16", "amx_tile"]
    assert found["cores"] == len(os.sched_getaffinity(0))  # those that this process may use
    assert {"torch", "triton", "onnxruntime-gpu"} <= set(found["versions"])
    assert None not in found["versions"].values()
    assert json.loads(json.dumps(found)) == found


def test_a_processor_that_nothing_is_known_of() -> None:
    assert machine({})["processor"] == "unknown"
