"""Commands of this room start fast, tell bad command lines in a line, and need no other room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines

ROOT = Path(__file__).parents[2]
COMMANDS = ["pipelines.pack", "pipelines.preview"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_pipelines_knows_nothing_of_the_engine() -> None:
    for path in Path(pipelines.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"engine", "bench", "tests"}, path.name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command: str) -> None:
    code = f"import sys; sys.argv[1:] = ['--help']; import {command} as c\ntry: c.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'nvidia', 'sklearn', 'polars', 'matplotlib'} & set(sys.modules)))"
    answer = run("-c", code)
    assert "usage: python -m " + command in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_command_lines_are_one_line(command: str, tmp_path: Path) -> None:
    for arguments in (
        ["--nope"],
        [str(tmp_path / "nowhere"), *[str(tmp_path / "out")] * (command == "pipelines.pack")],
    ):
        answer = run("-m", command, *arguments)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.startswith("error: ")
        assert answer.stderr.count("\n") == 1


def test_a_mistyped_option_is_told_with_the_one_that_was_meant() -> None:
    answer = run("-m", "pipelines.preview", "data", "--image-sise", "96")
    assert answer.stderr.startswith("error: Unrecognized options: --image-sise, 96; --image-size? (")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    answer = run("-m", "engine.train", "--ampp")  # on or off: the parser names both forms
    assert answer.stderr.startswith("error: Unrecognized options: --ampp; --amp? (")


def test_a_terminal_without_the_letters_of_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser draws another box there; the line stays what it is."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    answer = run("-m", "pipelines.preview", "data", "--image-sise", "96")
    assert answer.stderr.startswith("error: Unrecognized options: --image-sise, 96; --image-size? (")
    assert answer.stderr.count("\n") == 1
