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
from pipelines.pictures import PictureFolders
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


def test_coco_repeats_are_merged(tmp_path: Path) -> None:
    """A picture listed twice is one row, categories of one name are one label, and what splits share is noted."""
    root = coco_folder(tmp_path, [])
    (root / "train2017").rename(root / "images")
    content = {
        "images": [{"id": 7, "file_name": "a b.jpg"}, {"id": 9, "file_name": "a b.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1}, {"id": 2, "image_id": 9, "category_id": 3}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 5, "name": "car"}],
    }
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    dataset = read_coco(root)
    assert dataset.labels == ("person", "car")
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 1, "val": 1}
    assert dataset.targets.tolist() == [[True, True], [True, True]]
    assert any("1 further rows" in note for note in dataset.notes)
    assert "val: 1 pictures are in train too" in dataset.notes


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"images": [{"id": 7, "file_name": "a b.jpg"}, {"id": 7, "file_name": "gone.jpg"}]}, "have the id 7"),
        ({"categories": [{"id": 3, "name": " "}]}, "category 3 has no name"),
    ],
)
def test_coco_that_says_two_things(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    path = coco_folder(tmp_path, []) / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError, match=words):
        read_coco(tmp_path)


def test_voc_repeats_are_merged(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "ImageSets/Main/train.txt").write_text("\ufeff0\n1\n1\n", "utf-8")
    (root / "ImageSets/Main/val.txt").write_text("1\n2\n")
    dataset = read_voc(root)
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 2, "val": 2}
    assert len(dataset.notes) == 2


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<a><object><name> </name></object></a>", "object without a name"),
        ('<?xml version="1.0" encoding="foobar"?><a/>', "not XML"),
    ],
)
def test_voc_annotations_of_nothing(tmp_path: Path, xml: str, words: str) -> None:
    root = voc_folder(tmp_path)
    (root / "Annotations" / "1.xml").write_text(xml)
    with pytest.raises(InputError, match=words):
        read_voc(root)


def test_what_is_no_picture_file(tmp_path: Path) -> None:
    """A pipe would keep the reader waiting; links that lead nowhere or in a circle are missing pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    folders = PictureFolders(tmp_path, ("images",))
    assert [folders.find(f"{name}.jpg") for name in ("pipe", "nowhere", "circle")] == [None] * 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.txt", b"caf\xe9\n", "not UTF-8"),
        ("annotations", b'{"images": ' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_unreadable_text(table: Make, name: str, content: bytes, words: str) -> None:
    root = table()
    if name == "annotations":
        (root / "train.csv").unlink()
        (root / name).mkdir()
        (root / name / "instances_train.json").write_bytes(content)
    else:
        (root / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
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


def test_voc_annotation_that_is_no_xml(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    (root / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"1\.xml: not XML"):
        read_voc(root)


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


def test_many_bad_pictures_among_few_opened_ones_make_it_open_all(table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = table(pictures=40)
    monkeypatch.setattr("pipelines.check.FOREGROUND", 10)
    for i in range(40):
        (root / "images" / f"{i}.jpg").write_text("no picture")
    with pytest.raises(InputError, match="40 of 40 rows"):
        read_dataset(root)


def test_a_run_s_own_rejected_pictures_stand_in_for_the_check(table: Make) -> None:
    root = table(pictures=40)
    (root / "images" / "3.jpg").write_text("no picture")
    assert not read_dataset(root, known_bad={}).rejected
    assert [r.file for r in read_dataset(root, known_bad={"images/7.jpg": "damaged"}).rejected] == ["images/7.jpg"]


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
