"""What a command line may name: files, folders, globs, tables, a list."""

import os
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


def test_a_list_without_a_header_loses_no_picture(tree: Path) -> None:
    for text in ("images/2.jpg\nbeside.webp\n", "images/2.jpg,cat\nbeside.webp,\n"):
        (tree / "list.csv").write_text(text)
        assert named(tree, str(tree / "list.csv")) == ["images/2.jpg", "beside.webp"]
    (tree / "one.csv").write_text("beside.webp\n")
    assert named(tree, str(tree / "one.csv")) == ["beside.webp"]
    (tree / "image.jpg").touch()  # a header that is the id of a picture is a header
    (tree / "ids.csv").write_text("image\n2\n")
    assert named(tree, str(tree / "ids.csv")) == ["images/2.jpg"]


def test_linked_folders_are_followed_and_nothing_comes_twice(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "5.jpg").touch()
    (elsewhere / "back").symlink_to(tree)  # a circle
    images = tree / "images"
    for name, to in (("link", elsewhere), ("again", elsewhere), ("inside", images / "deep"), ("up", images)):
        (images / name).symlink_to(to)
    found = [path for path in named(tree, str(images)) if not path.endswith("beside.webp")]
    assert sorted(Path(path).name for path in found) == ["1.PNG", "10.jpg", "2.jpg", "5.jpg"]
    assert {"images/2.jpg", "images/10.jpg", "images/deep/er/1.PNG"} <= set(found)


def test_folders_that_cannot_be_listed_are_answered_as_pictures_that_cannot_be_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, closed = os.scandir, [str(tree / "images" / "deep")]

    def scandir(path: str) -> object:
        if path in closed:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr("os.scandir", scandir)
    assert named(tree, str(tree / "images")) == ["images/2.jpg", "images/10.jpg", "images/deep"]
    closed.append(str(tree / "images"))
    with pytest.raises(InputError, match="images: cannot be read: Permission denied"):
        photographs([str(tree / "images")], [])
