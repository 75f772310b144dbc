import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "tests/kernels/interpreted"


def test_triton_kernels_in_the_interpreter() -> None:
    """Every test of the folder, in a process of its own: none may fail and none may be skipped."""
    command = [sys.executable, "-m", "pytest", FOLDER, "-q", "-o", "addopts=", "--import-mode=importlib"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [*command, "-o", f"python_files={FOLDER}/*.py", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    # The whole summary line: with anything skipped or left out it has more words.
    assert re.search(r"^[1-9]\d* passed in \S+s", output, re.MULTILINE), output
