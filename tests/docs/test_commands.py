"""What the pages tell to type works: each command and block of Python is run at a small size, or says why it is not."""

import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tyro

from pipelines.command import main
from pipelines.read import read_layout
from tests.conftest import picture
from tests.docs.pages import INLINE, PAGES, ROOT, Block, blocks, commands, prose, table

COMMANDS = commands()

# Options that make a command quick. What a page gives for them is replaced.
SMALL = {
    "engine.train": {"--epochs": "1", "--image-size": "75", "--width": "0.125", "--batch-size": "8"},
    "engine.ablate": {"--image-size": "75", "--width": "0.125", "--batch-size": "8", "--seeds": "1"},
    "bench.speedrun": {"--epochs": "1", "--image-size": "75", "--width": "0.125", "--batch-size": "8", "--seeds": "1"},
}

MINUTES, GPU = "takes minutes", "wants a GPU"
COLLECTED = "tests and benchmarks: paths, markers and options are looked up"
# Commands that no test of this file runs, with the reason. Each is parsed as it stands by the command that it names.
NOT_RUN = {
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && python -m engine.train --amp": "network",
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev]' && pytest": "network; .ci/run runs it",
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev,bench]'": "network",
    "ruff check . && ruff format --check . && mypy": ".ci/run runs it",
    "pytest": COLLECTED,
    "pytest -m slow": COLLECTED,
    "pytest -m gpu": COLLECTED,
    "pytest --cov": COLLECTED,
    "pytest tests/pipelines -k voc": COLLECTED,
    "pytest bench/ --benchmark-only": COLLECTED,
    "pytest bench/ --benchmark-only --quick": COLLECTED,
    "pytest bench/ --benchmark-only --benchmark-json figures.json": COLLECTED,
    "python -m bench.summary figures.json --out docs/bench.png --readme README.md": "tests/bench/test_summary.py",
    "pip install --no-deps facenet-pytorch requests": "network",
    "pytest bench/test_loaders.py --benchmark-only": COLLECTED,
    "pytest bench/test_step.py --benchmark-only": COLLECTED,
    "torchrun --nproc-per-node 8 --max-restarts 10 -m engine.train --amp --data DIR --out RUN": GPU,
    "torchrun --nproc-per-node 8 -m engine.train --amp --data DIR --out RUN": GPU,
    "torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 10 "
    "-m engine.train --amp --data DIR --out RUN": GPU,
    "torchrun --nnodes 2:4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 10 "
    "-m engine.train --amp --data DIR --out RUN": GPU,
    "python -m engine.export RUN --any-size": "another translation, of many seconds; tests/engine/test_export.py",
    "bench/gpu.sh FOLDER": GPU,
    "bench/gpu.sh --dry-run": "tests/bench/test_gpu_sh.py runs it",
    "python -m bench.tune": GPU,
    "python -m bench.cold_start": MINUTES,
    "python -m bench.traffic": MINUTES,
    "python -m bench.traffic --batch 64 --width 0.5 --arch 80 --json traffic.json": MINUTES,
    "python -m kernels.compile": MINUTES,
    "python -m kernels.compile --only batch_norm --arch 90 --json table.json": MINUTES,
}


class Parsed(Exception):  # noqa: N818 -- nothing went wrong
    """The command line was understood."""


def main_of(module: str) -> Callable[[], Any]:
    """What `python -m module` calls."""
    found = importlib.import_module(module)
    return getattr(found, "main", lambda: runpy.run_module(module, run_name="__main__", alter_sys=True) and 0)


def run(module: str, arguments: list[str]) -> int:
    """`python -m module arguments` in this process; the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as leaving:
            main(main_of(module))
    return int(leaving.value.code or 0)


def parse(module: str, arguments: list[str]) -> None:
    """Raises InputError or SystemExit where the command does not know an option or takes another value."""

    def stopping(parser: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(*given: Any, **options: Any) -> None:
            parser(*given, **options)
            raise Parsed

        return parse_and_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", stopping(tyro.cli))
        patch.setattr(ArgumentParser, "parse_args", stopping(ArgumentParser.parse_args))
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Parsed):
            main_of(module)()


def small(module: str, arguments: list[str]) -> list[str]:
    """The arguments with those of SMALL in place of, or beside, their own."""
    if "--help" in arguments:
        return arguments
    changes = dict(SMALL.get(module, {}))
    if "--resume" in arguments and module == "engine.train":
        changes = {"--epochs": "2"} if "--epochs" in arguments else {}
    if module == "engine.ablate":
        changes |= {"--budget-minutes": "0.001"} if "--budget-minutes" in arguments else {"--epochs": "1"}
        arguments = [*arguments, "--arms", "baseline", "ours"]
    if "int8" in arguments:
        changes["--max-f1-loss"] = "100"  # of two pictures, one is 50
    for option, value in changes.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments = [*arguments, option, value]
    return arguments


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages' placeholders stand for: a data set, photographs, a trained run, its file."""
    place = tmp_path_factory.mktemp("place")
    (place / "DIR" / "images").mkdir(parents=True)
    (place / "photos").mkdir()
    rows = [f"{i}.jpg,{'cat' if i % 2 else 'dog'}{' bird' if i % 3 == 0 else ''}\n" for i in range(30)]
    for i in range(29):  # the last is missing, for rejected.csv
        picture(i).save(place / "DIR" / "images" / f"{i}.jpg")
    for split, part in (("train", rows[:26]), ("test", rows[26:])):
        (place / "DIR" / f"{split}.csv").write_text("image,labels\n" + "".join(part))
    for name in ("a.jpg", "b.jpg"):
        picture(3).save(place / "photos" / name)
        picture(3).save(place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYLABEL_CACHE", str(place / "cache"))
        patch.chdir(place)
        line = ["--data", "DIR", "--out", "RUN", "--preset", "demo", "--checkpoint-steps", "1"]
        assert run("engine.train", small("engine.train", line)) == 0
        assert run("engine.export", ["RUN"]) == 0
    shutil.copy(place / "RUN" / "model.onnx", place / "model.onnx")
    shutil.copy(place / "RUN" / "checkpoints" / "best.pt", place / "FILE")
    return place


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the commands are typed."""
    shutil.copytree(prepared, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("MANYLABEL_CACHE", str(tmp_path / "place" / "cache"))
    return tmp_path / "place"


@pytest.fixture
def quick(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What measures does so once, a study's runs need no processes, the network was translated to ONNX already.

    The prepared run has had its page drawn; so does engine.report.
    """
    for name, value in {
        "pace.WARM": 1,
        "pace.TIMED": 1,
        "loader_report.SECONDS": 0.1,
        "loader_report.ROUNDS": 1,
    }.items():
        monkeypatch.setattr(f"engine.{name}", value)
    monkeypatch.setattr("engine.trainer.write_page", lambda *_: None)
    monkeypatch.setattr("engine.ablate._train", in_this_process)
    monkeypatch.setattr("engine.to_onnx.to_onnx", lambda *_: onnx.load(prepared / "model.onnx"))


def in_this_process(line: list[str], _stopped: object) -> int:
    """In place of a process of its own for each run of a study."""
    assert line[1] == "-m"
    return run(line[2], line[3:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in NOT_RUN], ids=lambda c: f"{COMMANDS[c]} {c}")
@pytest.mark.usefixtures("quick")
def test_command_runs(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *before, last = command.split(" | ")
    if before:
        made = subprocess.run(" | ".join(before), shell=True, capture_output=True, check=True).stdout
        assert made
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(made)))
    python, flag, module, *arguments = shlex.split(last)
    assert (python, flag) == ("python", "-m"), f"{COMMANDS[command]}: neither run here nor in NOT_RUN with a reason"
    if "--out" in arguments and module == "engine.train":
        shutil.rmtree(place / "RUN")
    assert run(module, small(module, arguments)) == 0


@pytest.mark.parametrize("command", NOT_RUN)
def test_command_that_is_not_run_is_understood(command: str, pytestconfig: pytest.Config) -> None:
    assert command in COMMANDS, "no page has it any more"
    for part in command.split(" && "):
        understand(shlex.split(part), pytestconfig)


def inline_commands() -> list[str]:
    """Those that stand in sentences."""
    found = [text for page in PAGES for text in INLINE.findall(prose(page))]
    return sorted({text for text in found if re.match(r"python -m |pytest |torchrun .*-m |bench/\w+\.sh", text)})


@pytest.mark.parametrize("command", inline_commands())
def test_command_in_a_sentence_is_understood(command: str, pytestconfig: pytest.Config) -> None:
    understand(shlex.split(command), pytestconfig)


def understand(words: list[str], config: pytest.Config) -> None:
    """Fails where a program does not know an option, or where a path is not there."""
    if words[:2] == ["python", "-m"]:
        parse(words[2], words[3:])
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words[1:])
        assert given.module
        parse(given.training_script, given.training_script_args)
    elif words[0] == "pytest":
        markers = [line.partition(":")[0] for line in config.getini("markers")]
        own = (ROOT / "bench" / "conftest.py").read_text()
        for before, word in pairwise(words):
            if word.startswith("--"):
                if f'addoption("{word}"' not in own:
                    config.getoption(word)  # ValueError: no such option
            elif before == "-m":
                assert word in markers
            elif "/" in word:
                assert (ROOT / word).exists(), word
    elif words[0].startswith("bench/"):
        script = (ROOT / words[0]).read_text()
        assert all(word in script for word in words if word.startswith("--"))
    elif words[0] == "pip":
        extras = words[-1].partition("[")[2].rstrip("]").split(",")
        known = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in known for extra in extras if extra)
    else:
        assert words[0] in {"python3", ".", "ruff", "mypy"}, words


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_block_runs(block: Block, place: Path) -> None:
    exec(compile(block.text, str(block), "exec"), {"__name__": "page"})


def test_what_the_readme_s_block_gives(place: Path) -> None:
    """Decided labels and float32 [2, labels], as its comment says."""
    names: dict[str, Any] = {}
    exec(next(block.text for block in blocks("python") if block.page == "README.md"), names)
    assert [type(labels) for labels in names["labels"]] == [list, list]
    assert (names["probabilities"].dtype, names["probabilities"].shape) == (np.float32, (2, 3))


def test_the_smallest_table(tmp_path: Path) -> None:
    """Of docs/data.md: as it stands there it is a data set, but for its pictures."""
    (block,) = blocks("")
    (tmp_path / "train.csv").write_text(block.text)
    for line in block.text.splitlines()[1:]:
        picture(1).save(tmp_path / line.partition(",")[0])
    found = read_layout(tmp_path)
    assert found.labels == ("boat", "sand", "sea")
    assert found.targets.sum(1).tolist() == [2, 2, 0]


def test_a_run_s_folder_is_what_the_page_says(prepared: Path) -> None:
    """Nothing lies there that the page does not name, and all that it names."""
    named = {name for row in table("docs/training.md", "A run's folder") for name in INLINE.findall(row[0])}
    folder = prepared / "RUN"
    there = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()} - {"checkpoints/"}
    there |= {f"checkpoints/{path.name}" for path in (folder / "checkpoints").iterdir()}
    assert there - {"model.onnx"} == named


def test_the_columns_of_answers(place: Path) -> None:
    """As docs/inference.md has them."""
    assert run("engine.infer", ["model.onnx", "photos", "--out", "answers.jsonl"]) == 0
    assert len(Path("answers.jsonl").read_text().splitlines()) == 2
    assert run("engine.infer", ["model.onnx", "photos", "--out", "answers.csv"]) == 0
    assert Path("answers.csv").read_text().splitlines()[0] == "file,labels,error,bird,cat,dog"
    Path("bad.jpg").write_text("no picture")
    assert run("engine.infer", ["model.onnx", "bad.jpg", "a.jpg"]) == 11
    metadata = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}
    assert json.loads(metadata["labels"]) == ["bird", "cat", "dog"]
    assert json.loads(metadata["image_size"]) == 75
    assert len(json.loads(metadata["thresholds"])) == 3
