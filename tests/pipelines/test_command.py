"""Commands of this room start fast, tell bad command lines in a line, and need no other room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
from pipelines.command import main, parse
from pipelines.errors import InputError
from pipelines.preview import Arguments

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pictures", "ten"], "--pictures ten: must be INT ("),
        (["--oversample-target", "ten"], "--oversample-target ten: must be INT ("),
        (["--sampling", "wieghted"], "--sampling wieghted: must be one of 'uniform', "),
    ],
    ids=["number", "number or none", "choice"],
)
def test_a_misspelt_value_is_told_without_the_parsers_own_terms(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["preview", "data", *arguments])
    with pytest.raises(InputError) as told:
        parse(Arguments, "python -m pipelines.preview")
    assert str(told.value).startswith(words)
    assert "None" not in str(told.value)


@pytest.mark.parametrize("error", [MemoryError(), ImportError("lib.so: failed to map segment from shared object")])
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise error

    with pytest.raises(SystemExit) as left:
        main(command)
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert said.startswith("error: out of memory")


def test_a_library_that_is_broken_otherwise_is_no_bad_input() -> None:
    def command() -> int:
        raise ImportError("cannot import name 'x'")

    with pytest.raises(ImportError):
        main(command)


def test_help_whose_reader_goes_away_is_no_error() -> None:
    line = f"set -o pipefail; {sys.executable} -m pipelines.preview --help | true"
    answer = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_terminal_without_the_letters_of_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser draws another box there; the line stays what it is."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    answer = run("-m", "pipelines.preview", "data", "--image-sise", "96")
    assert answer.stderr.startswith("error: Unrecognized options: --image-sise, 96; --image-size? (")
    assert answer.stderr.count("\n") == 1
