"""bench.summary: the table has the suite's figures and their machine; what it cannot read is told in a line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import summary as module
from bench.summary import BEGIN, END, Case, duration, main, markdown, put_into, read_summary
from pipelines.errors import InputError

ROOT = Path(__file__).parents[2]
MACHINE = {
    "processor": "A CPU",
    "cores": 2,
    "instructions": ["avx2"],
    "gpu": None,
    "versions": {"torch": "2.14.1"},
    "python_version": "3.11.9",
    "node": "not told",
}


def row(suite: str, group: str, provider: str, median: float, **facts: object) -> dict[str, Any]:
    """As pytest-benchmark has it, but for what is not read."""
    fullname = f"bench/test_{suite}.py::test_it[{provider}]"
    return {
        "group": group,
        "fullname": fullname,
        "stats": {"median": median},
        "extra_info": {"provider": provider, **facts},
    }


ROWS = [
    row("step", "training step", "plain", 3.1, times_as_long=1.25),
    row("step", "training step", "ours", 2.4),
    row("step", "training step", "timm | v2", 2.0, times_as_long=0.85, in_turn=False),
    row("startup", "a process", "python", 0.0213),
    row("startup", "a process", "import engine", 0.0714),
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of the suite; its path."""

    def make(rows: list[dict[str, Any]] = ROWS, name: str = "figures.json", **machine: object) -> Path:
        content = {
            "machine_info": MACHINE | machine,
            "commit_info": {"id": "0123456789abcdef"},
            "datetime": "2026-11-26T08:00:00+00:00",
            "benchmarks": rows,
        }
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return make


def test_cases(write: Write) -> None:
    """A comparison is a case, whatever its rows' order; without ours each row is one."""
    assert read_summary([write()]).cases == [
        Case("step", "training step", 2.4, {"plain": 1.25, "timm | v2": 0.85}, frozenset({"timm | v2"})),
        Case("startup", "a process: python", 0.0213, {}),
        Case("startup", "a process: import engine", 0.0714, {}),
    ]


def test_table(write: Write) -> None:
    """Every figure, and what a reader needs to judge it: command, machine, versions, revision."""
    text = markdown(read_summary([write()]))
    assert "| step | ours | plain | timm \\| v2 |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| training step | 2.40 s | 1.25 | 0.85* |" in text
    assert "*: not in turn" in text
    assert "| a process: import engine | 71.4 ms |" in text
    assert (
        "`pytest bench/test_step.py bench/test_startup.py --benchmark-only`, 2026-11-26, revision 0123456789ab" in text
    )
    assert "A CPU, 2 cores, avx2, no GPU; Python 3.11.9, torch 2.14.1." in text
    assert "quick" not in text
    assert "not told" not in text


def test_the_quick_form_says_that_it_is_no_measurement(write: Write) -> None:
    text = markdown(read_summary([write([*ROWS, row("checkpoint", "a wait", "ours", 0.1, quick=True)])]))
    assert "**The quick form" in text
    assert "--benchmark-only --quick`" in text


def test_a_long_table_is_folded(write: Write) -> None:
    rows = [row("kernels", f"kernel {i}", "ours", 1e-3) for i in range(9)]
    assert "<details><summary>kernels: 9 rows</summary>\n\n| kernels |" in markdown(read_summary([write(rows)]))
    assert "<details>" not in markdown(read_summary([write(rows[:8])]))


def test_several_files_are_one_table(write: Write) -> None:
    together, alone = read_summary([write(ROWS[:3], "a.json"), write(ROWS[3:], "b.json")]), read_summary([write()])
    assert (together.cases, together.when) == (alone.cases, alone.when)


def test_figures_of_several_revisions_name_them_all(write: Write) -> None:
    """A reader can check out what was measured, and is told where that is not all."""
    first, second = write(ROWS[:3], "a.json"), write(ROWS[3:], "b.json")
    content = json.loads(second.read_text())
    content |= {"commit_info": {"id": "fedcba9876543210", "dirty": True}, "datetime": "2026-11-27T08:00:00+00:00"}
    second.write_text(json.dumps(content))
    when = "2026-11-26 and 2026-11-27, revisions 0123456789ab and fedcba987654 with changes"
    assert read_summary([first, second]).when == when


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s"), (12.34, "12.3 s"), (1, "1.00 s"), (0.0123, "12.3 ms"), (4.2e-6, "4.20 µs"), (3e-8, "0.03 µs")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "not of pytest bench/"),
        (json.dumps({"benchmarks": [{"stats": {"median": 1.0}, "fullname": "a", "group": "b"}]}), "'extra_info'"),
        (json.dumps({"benchmarks": []}), "'datetime'"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "figures.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_summary([file])


def test_files_that_do_not_go_together(write: Write) -> None:
    """Figures of two machines in one table, or two of one thing, would be a lie."""
    first = write(ROWS[:3], "a.json")
    with pytest.raises(InputError, match=r"b.json: another machine than .*a.json's \(cores, versions\)"):
        read_summary([first, write(ROWS[3:], "b.json", cores=16, versions={})])
    with pytest.raises(InputError, match="training step, plain: is there twice"):
        read_summary([first, write(ROWS, "b.json")])
    with pytest.raises(InputError, match="has no figures"):
        read_summary([write([])])


def test_a_page_gets_the_table_in_its_place(tmp_path: Path) -> None:
    """All else stays as it was, and a second time replaces the first."""
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("one", "two"):
        put_into(page, text)
        assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"


@pytest.mark.parametrize("content", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_a_place_stays_as_it_was(tmp_path: Path, content: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(content)
    with pytest.raises(InputError, match="has no place for the table"):
        put_into(page, "table")
    assert page.read_text() == content


def test_the_whole_command(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table on the page is the one printed, below a picture that is there; bars leave the page's colour."""
    page, picture = tmp_path / "docs" / "page.md", tmp_path / "figures.png"
    page.parent.mkdir()
    page.write_text(f"{BEGIN}{END}")
    monkeypatch.setattr(sys, "argv", ["bench.summary", str(write()), "--out", str(picture), "--readme", str(page)])
    assert main() == 0
    assert capsys.readouterr().out.strip() in page.read_text()
    assert "](../figures.png)\n" in page.read_text()
    pixels = np.asarray(Image.open(picture).convert("RGBA"))
    assert pixels[0, 0, 3] == 0
    assert (pixels[..., 3] == 255).sum() > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "give a JSON file"), (["a.json", "--out", "a.svg"], "must end in .png"), (["--none"], "--none")],
)
def test_wrong_command(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.summary", *arguments])
    with pytest.raises(InputError, match=message):
        main()


def test_pytest_benchmark_writes_what_is_read(tmp_path: Path) -> None:
    """One fast comparison of the suite itself: its rows have the times that were taken in turn, not another clock's."""
    file = tmp_path / "figures.json"
    options = ["--benchmark-only", "--quick", f"--benchmark-json={file}", "-q", "-p", "no:cacheprovider"]
    selected = [f"bench/test_kernels.py::test_kernel[sigmoid_bce one element-{name}]" for name in ("ours", "eager")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *selected, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    summary = read_summary([file])
    (case,) = summary.cases
    assert (case.suite, case.name, list(case.peers)) == ("kernels", "sigmoid_bce one element", ["eager"])
    assert summary.quick
    assert summary.machine["versions"]["torch"]
    ours, eager = (row["stats"]["data"] for row in json.loads(file.read_text())["benchmarks"])
    assert len(ours) == len(eager) == 2
    assert case.peers["eager"] == pytest.approx(np.median(np.array(eager) / np.array(ours)), abs=1e-3)
    assert set(module.MACHINE) <= set(json.loads(file.read_text())["machine_info"])
