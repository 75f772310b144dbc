"""What the pages name is there: links, pictures, source files, options, choices, functions."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

import kernels
from engine.ablate import ALL
from engine.config import PRESETS
from pipelines.command import main
from pipelines.read import READERS
from pipelines.sampling import Sampling
from tests.docs.pages import INLINE, LINK, OPTION, PAGES, ROOT, SOURCE, anchors, prose, table

# Options that are other programs'.
OTHERS = {
    "--task": "timm",
    "--max-restarts": "torchrun",
    "--benchmark-only": "pytest-benchmark",
    "--dry-run": "bench/gpu.sh",
}
MODULE = re.compile(r"python -m ((?:engine|pipelines|kernels|bench)\.\w+)")
ROOMS = ("engine", "kernels", "pipelines", "bench", "tests", "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    assert re.match(r"[A-Z\"`]", first)


def test_every_page_is_linked_from_the_readme() -> None:
    linked = LINK.findall((ROOT / "README.md").read_text())
    assert [p.name for p in PAGES[1:] if str(p.relative_to(ROOT)) not in linked] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_source_files_that_are_named_are_there(page: Path) -> None:
    """Of the form folder/file.py, or a room's folder."""
    named = [text for text in INLINE.findall(prose(page)) if " " not in text]
    files = [text for text in named if "/" in text and SOURCE.fullmatch(text)]
    folders = [text for text in named if text.endswith("/") and text.split("/")[0] in ROOMS]
    assert [name for name in (*files, *folders) if not (ROOT / name).exists()] == []


def known_options(modules: set[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Of all commands, as their --help has them."""
    found: set[str] = set()
    for module in sorted(modules):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, "--help"])
            with pytest.raises(SystemExit):
                main(importlib.import_module(module).main)
        found |= set(OPTION.findall(capsys.readouterr().out))
    return found


def test_options_that_are_named_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of sentences and tables; those of whole commands are parsed (test_commands.py)."""
    modules = {name for page in PAGES for name in MODULE.findall(page.read_text())}
    modules = {name for name in modules if hasattr(importlib.import_module(name), "main")}
    known = known_options(modules, capsys) | OTHERS.keys()
    unknown = []
    for page in PAGES:
        codes = [code for code in INLINE.findall(prose(page)) if not code.startswith(("python", "pytest", "torchrun"))]
        unknown += [(page.name, option) for code in codes for option in OPTION.findall(code) if option not in known]
    assert unknown == []


def test_choices_that_are_listed_are_those_that_there_are() -> None:
    def first(page: str, heading: str) -> list[str]:
        return [re.sub(r"\W*`\W*", "", row[0]) for row in table(page, heading)]

    assert sorted(first("docs/data.md", "Layouts")) == sorted(READERS)
    assert first("docs/training.md", "Presets") == ["paper", "fast", "demo"]
    assert sorted(PRESETS) == ["demo", "fast", "paper"]
    assert first("docs/evaluation.md", "The study, repeated") == list(ALL)
    sampling = [row.partition("sampling ")[2] for row in first("docs/data.md", "Imbalance") if "sampling " in row]
    assert sorted(sampling) == sorted(get_args(Sampling))


def test_the_fast_preset_is_the_recipe_s() -> None:
    """Each option of the page's table has the preset's value, and none of the preset's is missing there."""
    text = " ".join(row[1] for row in table("docs/recipe.md", "What is in it"))
    given = {name.replace("-", "_"): value for name, value in re.findall(r"--([a-z-]+) ([\w.-]+)", text)}
    preset = {name: str(value) for name, value in PRESETS["fast"].items() if value is not None}
    assert given == preset


def test_functions_of_kernels_are_listed_with_their_arguments() -> None:
    rows = [re.fullmatch(r"`(\w+)\((.*)\)`", row[0]) for row in table("docs/kernels.md", "Kernels and the step")]
    listed = {row[1]: re.findall(r"(?:^|, )(\w+)", row[2]) for row in rows if row}
    assert sorted(listed) == sorted(kernels.__all__)
    for name, arguments in listed.items():
        assert arguments == list(inspect.signature(getattr(kernels, name)).parameters)[: len(arguments)], name
