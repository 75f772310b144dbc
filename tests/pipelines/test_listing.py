"""What a command line may name: files, folders, globs, tables, a list."""

from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.listing import photographs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("images/10.jpg", "images/2.jpg", "images/deep/er/1.PNG", "images/notes.txt", "beside.webp"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def named(tree: Path, *arguments: str, lines: tuple[str, ...] = ()) -> list[str]:
    return [path.removeprefix(f"{tree}/") for path in photographs(arguments, lines)]


def test_folders_in_natural_order_without_what_is_no_picture(tree: Path) -> None:
    assert named(tree, str(tree / "images")) == ["images/2.jpg", "images/10.jpg", "images/deep/er/1.PNG"]


def test_files_and_globs_each_once_in_the_order_given(tree: Path) -> None:
    files = named(tree, str(tree / "beside.webp"), str(tree / "images" / "*.jpg"), str(tree / "**" / "2.jpg"))
    assert files == ["beside.webp", "images/2.jpg", "images/10.jpg"]
    assert named(tree, str(tree / "images" / "notes.txt")) == ["images/notes.txt"]  # named, so meant


def test_names_with_the_marks_of_a_glob_are_names(tree: Path) -> None:
    (tree / "a[1].jpg").touch()
    assert named(tree, str(tree / "a[1].jpg")) == ["a[1].jpg"]


def test_a_list_on_standard_input(tree: Path) -> None:
    assert named(tree, "-", lines=("x.jpg\n", "\n", " y z.jpg\r\n", "x.jpg")) == ["x.jpg", " y z.jpg"]


def test_tables_name_pictures_as_a_data_set_does(tree: Path) -> None:
    (tree / "some.csv").write_text("image,labels\n2.jpg,cat\n10,\nbeside.webp,dog\ngone.jpg,cat\n")
    assert named(tree, str(tree / "some.csv")) == ["images/2.jpg", "images/10.jpg", "beside.webp", "gone.jpg"]
    (tree / "one.tsv").write_text("picture\nimages/2.jpg\n")
    assert named(tree, str(tree / "one.tsv")) == ["images/2.jpg"]


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("nowhere",), "no such file or folder"),
        (("*.gif",), "no such file or folder"),
        (("empty",), "no pictures in this folder$"),
        (("texts",), "its 3 files are none"),
        (("-",), "no photographs were named"),
        ((), "no photographs were named"),
        (("bad.csv",), "the table is empty"),
    ],
)
def test_nothing_to_classify(tmp_path: Path, names: tuple[str, ...], what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "bad.csv").touch()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").touch()
    with pytest.raises(InputError, match=what):
        photographs([name if name == "-" else str(tmp_path / name) for name in names], [])
