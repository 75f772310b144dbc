import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import kernels

ROOT = Path(__file__).parents[2]


def test_import_loads_no_torch() -> None:
    code = "import sys, kernels; print('sigmoid_bce' in dir(kernels), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True False", done.stderr


@pytest.mark.usefixtures("fresh_compiler")
def test_first_use_may_be_inside_a_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delattr(kernels, "residual_add_relu", raising=False)
    step = torch.compile(lambda x: kernels.residual_add_relu(x, x, 1.0), backend="aot_eager", fullgraph=True)
    assert step(torch.ones(1)).item() == 2.0


def test_names() -> None:
    assert [name for name in kernels.__all__ if not isinstance(getattr(kernels, name), FunctionType)] == []
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = kernels.missing
