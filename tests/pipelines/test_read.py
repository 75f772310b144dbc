"""Layouts are recognised, bad pictures are named and left out, splits keep every label's share."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.check import BackgroundCheck, decode_failures
from pipelines.coco import read_coco
from pipelines.errors import InputError
from pipelines.read import read_dataset, read_layout
from pipelines.voc import read_voc

Make = Callable[..., Path]


def test_real_data_sets_are_read(photographs: Path) -> None:
    study, corel, coco, voc = (read_layout(photographs / name) for name in ("study", "corel5k", "coco96", "voc20"))
    assert (study.layout, len(study.files), len(study.labels)) == ("table", 12_000, 18)
    assert (corel.layout, len(corel.files), len(corel.labels)) == ("table", 4_434, 74)
    assert (coco.layout, len(coco.files), len(coco.labels)) == ("coco", 96, 80)
    assert (~coco.targets.any(1)).sum() == 1  # the picture without boxes
    assert (voc.layout, len(voc.files)) == ("voc", 20)
    assert study.targets[study.splits["train"], study.labels.index("14")].sum() == 79
    assert "rarest '14' 79, most frequent '1' 7,280; train 9,600, val 1,200, test 1,200" in study.summary()


def coco_folder(root: Path, annotations: list[dict[str, int]]) -> Path:
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    (root / "train2017" / "a b.jpg").touch()
    content = {
        "images": [{"id": 7, "file_name": "a b.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def test_coco_labels_come_from_boxes(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 7, "category_id": 3}
    dataset = read_coco(coco_folder(tmp_path, [box, box, {"id": 2, "image_id": 8, "category_id": 1}]))
    assert dataset.labels == ("person", "car")
    assert dataset.files == ("train2017/a b.jpg",)
    assert dataset.targets.tolist() == [[False, True]]
    assert [r.file for r in dataset.rejected] == ["gone.jpg"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"id": 5, "image_id": 7, "category_id": 99}, "unknown category 99"),
        ({"id": 5, "image_id": 70, "category_id": 1}, "belongs to no picture"),
    ],
    ids=["category", "picture"],
)
def test_coco_annotation_that_fits_nothing(tmp_path: Path, annotation: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_coco(coco_folder(tmp_path, [annotation]))


def test_coco_names_and_pictures_that_are_there_twice_are_one(tmp_path: Path) -> None:
    root = coco_folder(tmp_path, [])
    picture, box = {"id": 7, "file_name": "a b.jpg"}, {"id": 1, "image_id": 7, "category_id": 3}
    categories = [{"id": 3, "name": "car"}, {"id": 4, "name": "car"}, {"id": 5, "name": 7}]
    as_text = [*categories[:2], {"id": 5, "name": "7"}]
    train = {
        "images": [picture, {**picture, "id": 9}],
        "annotations": [box, {**box, "image_id": 9, "category_id": 5}],
        "categories": categories,
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(train))
    val = {"images": [{"id": 1, "file_name": "train2017/a b.jpg"}], "annotations": [], "categories": as_text}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(val))
    dataset = read_coco(root)
    assert dataset.labels == ("car", "7")
    assert dataset.targets.tolist() == [[True, True], [False, False]]
    assert {split: rows.tolist() for split, rows in dataset.splits.items()} == {"train": [0], "val": [1]}
    assert len(dataset.notes) == 2
    assert "merged" in dataset.notes[0]
    assert dataset.notes[1] == "val: 1 picture is in train too"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"categories": [{"id": 1, "name": ""}]}, "'' is no name of a category"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, "not Unicode text"),
        ({"images": [{"id": 1, "file_name": "a b.jpg"}, {"id": 1, "file_name": "b.jpg"}]}, "have the same id 1"),
    ],
    ids=["empty", "half a letter", "one id"],
)
def test_coco_names_that_are_none(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    root = coco_folder(tmp_path, [])
    content = {"images": [], "annotations": [], "categories": [], **changes}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_coco(root)


def test_files_that_no_reader_can_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = coco_folder(tmp_path, [])
    (root / "annotations" / "instances_train2017.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_layout(root)
    (root / "annotations" / "instances_train2017.json").unlink()
    (root / "annotations" / "instances_train2017.json").mkdir()
    with pytest.raises(InputError, match="no file of training pictures"):
        read_layout(root)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(root / "annotations"))

    monkeypatch.setattr(Path, "is_file", refused)  # as without the right to enter the folder
    with pytest.raises(InputError, match="annotations: cannot be read: Permission denied"):
        read_layout(root)


def voc_folder(root: Path) -> Path:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        (root / "JPEGImages" / f"{i}.jpg").touch()
        objects = "".join(
            f"<object><name>{n}</name><difficult>{i}</difficult></object>" for n in ("cat", "cat", f"x{i}")
        )
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("0\n1\nmissing\n")
    (root / "ImageSets/Main/val.txt").write_text("2\n")
    return root


def test_voc_labels_come_from_objects_difficult_ones_too(tmp_path: Path) -> None:
    dataset = read_voc(voc_folder(tmp_path))
    assert dataset.labels == ("cat", "x0", "x1", "x2")
    assert dataset.targets.tolist() == [
        [True, True, False, False],
        [True, False, True, False],
        [True, False, False, True],
    ]
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0, 1], "val": [2]}
    assert [r.file for r in dataset.rejected] == ["missing"]


def test_accents_are_one_however_they_are_written_in_coco_and_voc(tmp_path: Path) -> None:
    apart, whole = "cafe\u0301", "caf\u00e9"
    for folder in ("coco", "voc"):
        (tmp_path / folder).mkdir()
    root = coco_folder(tmp_path / "coco", [])
    for split, name in (("train", apart), ("val", whole)):
        content = {
            "images": [{"id": 1, "file_name": "train2017/a b.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
            "categories": [{"id": 1, "name": name}],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    assert read_coco(root).labels == (whole,)
    root = voc_folder(tmp_path / "voc")
    for i, name in enumerate((apart, whole)):
        xml = f"<annotation><object><name>{name}</name></object></annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(xml, encoding="utf-8")
    assert read_voc(root).labels == (whole, "cat", "x2")


def test_an_id_whose_file_is_of_another_kind_is_told_with_the_file(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "JPEGImages" / "moving.gif").write_bytes(b"GIF89a")
    with (root / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("\nmoving\nnowhere\n")
    reasons = {rejected.file: rejected.reason for rejected in read_voc(root).rejected}
    assert (reasons["moving"], reasons["nowhere"]) == ("moving.gif is no picture by its name", "no such picture")


def test_voc_annotation_that_is_no_xml(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"1\.xml: not XML"):
        read_voc(root)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("Annotations/1.xml", b"<a><object><name></name></object></a>", "an object whose name is empty"),
        ("Annotations/1.xml", b'<?xml version="1.0" encoding="nonsense"?><a/>', "not XML"),
        ("ImageSets/Main/val.txt", "größe\n".encode("latin-1"), "not UTF-8"),
    ],
    ids=["name", "encoding", "list"],
)
def test_voc_files_that_cannot_be_read(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    root = voc_folder(tmp_path)
    (root / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{Path(file).name}.*{words}"):
        read_voc(root)


def test_voc_names_with_blanks_and_endings(tmp_path: Path) -> None:
    """A line is a name as it stands, or has VOC's flag after it; no other picture stands in for one that is gone."""
    root = voc_folder(tmp_path)
    for before, after in [("0", "IMG 0001"), ("1", "b.c")]:
        (root / "JPEGImages" / f"{before}.jpg").rename(root / "JPEGImages" / f"{after}.jpg")
        (root / "Annotations" / f"{before}.xml").rename(root / "Annotations" / f"{after}.xml")
    (root / "ImageSets/Main/train.txt").write_text("IMG 0001 1\n b.c.jpg \n2 -1\nIMG 0002\n2 more\n")
    dataset = read_voc(root)
    assert dataset.files[:3] == ("JPEGImages/IMG 0001.jpg", "JPEGImages/b.c.jpg", "JPEGImages/2.jpg")
    assert dataset.targets[:3].sum(1).tolist() == [2, 2, 2]
    assert [rejected.file for rejected in dataset.rejected] == ["IMG 0002", "2 more"]


def test_voc_lists_with_lines_twice_and_a_byte_order_mark(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "ImageSets/Main/train.txt").write_text("\ufeff0\n1\n0\n")
    (root / "ImageSets/Main/val.txt").write_text("2\n1\n")
    dataset = read_voc(root)
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 2, "val": 2}
    assert not dataset.rejected
    assert dataset.notes[0].startswith("train.txt: 1 further row ")
    assert dataset.notes[1] == "val: 1 picture is in train too"


def test_bad_pictures_are_named_and_left_out_and_others_are_read(
    table: Make, save_kinds: Callable[[Path], tuple[list[str], list[str]]]
) -> None:
    root = table(pictures=200)
    good, bad = save_kinds(root / "images")
    rows = "".join(f"{name},cat\n" for name in (*good, *bad))
    (root / "train.csv").write_text((root / "train.csv").read_text() + rows + "absent.jpg,dog\n")
    for _ in range(2):  # the second time from what the first found out
        dataset = read_dataset(root)
        names = {Path(file).name for file in dataset.files}
        assert set(good) <= names
        assert {Path(r.file).name for r in dataset.rejected} == {*bad, "absent.jpg"}
        reasons = {Path(r.file).name: r.reason for r in dataset.rejected}
        assert reasons["empty.jpg"] == "empty file"
        assert reasons["text.jpg"] == "not a picture"
        assert reasons["truncated.jpg"].startswith("damaged")
        assert reasons["absent.jpg"] == "no such picture"


def test_a_picture_that_changes_is_checked_again(table: Make) -> None:
    root = table(pictures=40)
    assert not read_dataset(root).rejected
    (root / "images" / "3.jpg").write_bytes(b"")
    assert [r.file for r in read_dataset(root).rejected] == ["images/3.jpg"]


def test_a_start_opens_few_pictures_and_the_rest_is_checked_behind_it(
    table: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = table(pictures=60)
    (root / "images" / "31.jpg").write_bytes(b"")  # seen without opening anything
    (root / "images" / "32.jpg").write_text("no picture")
    monkeypatch.setattr("pipelines.check.FOREGROUND", 20)
    opened: list[str] = []

    def decode(paths: list[str], progress: object = None) -> list[str]:
        opened.extend(paths)
        return decode_failures(paths)

    monkeypatch.setattr("pipelines.check.decode_failures", decode)
    assert [r.file for r in read_dataset(root).rejected] == ["images/31.jpg"]
    assert len(opened) == 20
    with BackgroundCheck(root) as check:
        assert check.process is not None
        assert check.process.wait(60) == 0
    assert sorted(file for file, _ in check.found()) == ["images/31.jpg", "images/32.jpg"]
    assert len(read_dataset(root).rejected) == 2
    assert len(opened) == 20
    with BackgroundCheck(root) as check:
        assert check.process is None  # nothing is left to look at


def test_the_check_behind_a_start_finds_a_cache_that_is_named_from_here(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = table(pictures=40)
    (root / "images" / "31.jpg").write_text("no picture")
    monkeypatch.setattr("pipelines.check.FOREGROUND", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYLABEL_CACHE", "cache")
    read_dataset(Path("data"))
    with BackgroundCheck(root) as check:
        assert check.process is not None
        assert check.process.wait(60) == 0
    assert [file for file, _ in check.found()] == ["images/31.jpg"]


def test_a_folder_whose_name_is_no_text(table: Make) -> None:
    """Of bytes that are not UTF-8, as old archives have them."""
    root = table()
    other = root.with_name(os.fsdecode(b"gr\xf6\xdfe"))
    root.rename(other)
    assert len(read_dataset(other).files) == 24


def test_many_bad_pictures_among_few_opened_ones_make_it_open_all(table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = table(pictures=40)
    monkeypatch.setattr("pipelines.check.FOREGROUND", 10)
    for i in range(40):
        (root / "images" / f"{i}.jpg").write_text("no picture")
    with pytest.raises(InputError, match="40 of 40 rows") as error:
        read_dataset(root)
    assert "--allow-bad" not in str(error.value)  # nothing would be left


def test_a_run_s_own_rejected_pictures_stand_in_for_the_check(table: Make) -> None:
    root = table(pictures=40)
    (root / "images" / "3.jpg").write_text("no picture")
    assert not read_dataset(root, known_bad={}).rejected
    assert [r.file for r in read_dataset(root, known_bad={"images/7.jpg": "damaged"}).rejected] == ["images/7.jpg"]


def test_a_picture_found_damaged_later_moves_no_other_between_the_splits(table: Make) -> None:
    """Or else what a network was trained on would come to be validated on."""
    root = table(pictures=40)
    before = read_dataset(root)
    (root / "images" / "3.jpg").write_text("no picture")
    after = read_dataset(root)
    assert len(after.files) == 39
    for split, rows in after.splits.items():
        files = {before.files[row] for row in before.splits[split]} - {"images/3.jpg"}
        assert {after.files[row] for row in rows} == files


def test_where_no_validation_picture_is_left_others_are_split_off(table: Make) -> None:
    root = table(pictures=12)
    for row in read_dataset(root).splits["val"]:
        (root / read_dataset(root, allow_bad=True, known_bad={}).files[row]).write_text("no picture")
    assert all(map(len, read_dataset(root, allow_bad=True).splits.values()))


def test_too_many_bad_pictures_stop_unless_allowed(table: Make) -> None:
    root = table(pictures=20)
    for i in range(2):
        (root / "images" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"2 of 20 rows have no usable picture \(images/0.jpg: empty file; .*--allow-bad"
    ):
        read_dataset(root)
    assert len(read_dataset(root, allow_bad=True).files) == 18


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "nowhere", "no such folder"),
        (lambda root: root, "neither train.csv nor"),
    ],
    ids=["missing", "unknown"],
)
def test_folders_that_are_no_data_set(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_dataset(make(tmp_path))


def test_a_folder_around_or_inside_a_data_set_is_told_with_it(table: Make) -> None:
    root = table()
    for folder in (root.parent, root / "images"):
        with pytest.raises(InputError, match=f"is there; {root} looks like a data set$"):
            read_dataset(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    with pytest.raises(InputError, match="not a folder"):
        read_dataset(tmp_path / "train.csv")


@pytest.mark.parametrize("labels", ["a", ""], ids=["one label everywhere", "half without"])
def test_split_of_a_single_label(table: Make, labels: str) -> None:
    rows = "".join(f"{i}.jpg,{labels if i % 2 else 'a'}\n" for i in range(20))
    dataset = read_dataset(table("image,labels\n" + rows), val_fraction=0.2)
    assert (len(dataset.splits["train"]), len(dataset.splits["val"])) == (16, 4)
    assert dataset.targets[dataset.splits["val"]].any()


def test_no_label_at_all(table: Make) -> None:
    with pytest.raises(InputError, match="none of the pictures has a label"):
        read_dataset(table("image,labels\n" + "".join(f"{i}.jpg,\n" for i in range(20))))


@pytest.mark.parametrize("images", [[{"id": 1}], 3, ["a.jpg"]], ids=["no name", "a number", "texts"])
def test_coco_files_that_are_not_coco(tmp_path: Path, images: object) -> None:
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="not as COCO has it"):
        read_coco(tmp_path)


def test_split_keeps_every_label_s_share(table: Make) -> None:
    root = table(pictures=120)
    dataset = read_dataset(root, val_fraction=0.25, seed=3)
    train, val = dataset.splits["train"], dataset.splits["val"]
    assert sorted([*train, *val]) == list(range(120))
    assert len(val) == pytest.approx(30, abs=2)
    whole = dataset.targets.mean(0)
    assert np.abs(dataset.targets[val].mean(0) - whole).max() < 0.05
    again = read_dataset(root, val_fraction=0.25, seed=3)
    other = read_dataset(root, val_fraction=0.25, seed=4)
    assert np.array_equal(again.splits["val"], val)
    assert not np.array_equal(other.splits["val"], val)


def test_fingerprint_follows_the_data(table: Make) -> None:
    root = table()
    before = read_dataset(root).fingerprint()
    assert read_dataset(root).fingerprint() == before
    (root / "train.csv").write_text((root / "train.csv").read_text().replace("1.jpg,cat", "1.jpg,dog", 1))
    assert read_dataset(root).fingerprint() != before
