"""--help of each command, which has to answer at once: it loads neither torch nor DALI, nor does `import engine`."""

import subprocess
import sys
from pathlib import Path

from bench.test_startup import COMMANDS

ROOT = Path(__file__).parents[1]
SLOW = ("torch", "nvidia.dali", "onnxruntime", "numba", "matplotlib", "sklearn", "triton")

# All in one process: what one of them loads stays, and is told with its name.
ALL = """
import contextlib, io, runpy, sys
import engine
slow, names = sys.argv[1].split(), sys.argv[2:]
for name in names:
    sys.argv = [name, "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_module(name, run_name="__main__")
    except SystemExit as leaving:
        assert not leaving.code, name
    assert "usage: python -m " + name in said.getvalue(), name
    loaded = [module for module in slow if module in sys.modules]
    assert not loaded, (name, loaded)
"""


def test_every_command_answers_without_what_is_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL, " ".join(SLOW), *COMMANDS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_command_is_left_out() -> None:
    """A module that parses a command line is a command, and its start is timed."""
    parsers = {
        f"{path.parent.name}.{path.stem}"
        for room in ("engine", "kernels", "pipelines", "bench")
        for path in (ROOT / room).glob("*.py")
        if 'prog="python -m' in (text := path.read_text()) or 'parse(Arguments, "python -m' in text
    }
    assert parsers == set(COMMANDS)
