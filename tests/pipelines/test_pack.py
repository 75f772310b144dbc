"""Shards hold the data set that went in, are read by DALI's own reader too, and give the same batches."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn
from PIL import Image

from pipelines.augment import PictureSpec
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.loader import TrainingPlan, evaluation_stream, training_stream
from pipelines.pack import Arguments, pack
from pipelines.pack import main as packing
from pipelines.read import read_dataset, read_layout
from pipelines.shards import add, members, read

Make = Callable[..., Path]
SPEC = PictureSpec(size=48)


@pytest.fixture
def packed(table: Make, tmp_path: Path) -> tuple[Dataset, Path]:
    """A data set with a validation split, and the folder of its shards."""
    rows = "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(20))
    root = table("image,labels\n" + rows, val="image,labels\n20.jpg,cat\n21.jpg,\n")
    return pack(Arguments(data=root, shards=tmp_path / "shards")), tmp_path / "shards"


def test_what_went_in_comes_out(packed: tuple[Dataset, Path]) -> None:
    before, to = packed
    after = read_dataset(to)
    assert (after.layout, after.labels) == ("webdataset", before.labels)
    assert np.array_equal(after.targets, before.targets)
    assert {name: rows.tolist() for name, rows in after.splits.items()} == {
        "train": list(range(20)),
        "val": [20, 21],
    }
    assert not after.rejected


def test_batches_are_those_of_the_files(packed: tuple[Dataset, Path]) -> None:
    before, to = packed
    after = read_dataset(to)
    plan = TrainingPlan(before.splits["train"], before.targets[:20], "oversample", 12, 0, 4, SPEC.size, True)
    streams = [training_stream(d.root, d.files, plan, SPEC).batches(3) for d in (before, after)]
    for _ in range(6):
        a, b = (next(stream) for stream in streams)
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.images, b.images)


def test_dali_s_own_reader_reads_them(packed: tuple[Dataset, Path]) -> None:
    before, to = packed
    with Pipeline(batch_size=20, num_threads=1, device_id=None) as pipeline:
        paths = {"paths": [str(to / "train-000000.tar")], "index_paths": [str(to / "train-000000.idx")]}
        picture, note = fn.readers.webdataset(**paths, ext=["jpg", "json"])
        pipeline.set_outputs(picture, note)
    pictures, notes = pipeline.run()
    for i in range(20):
        content = json.loads(bytes(np.array(notes.at(i))))
        assert bytes(np.array(pictures.at(i))) == (before.root / content["file"]).read_bytes()
        assert content["labels"] == ["cat" if i % 2 else "dog"]


def test_an_index_says_what_going_through_says(packed: tuple[Dataset, Path]) -> None:
    _, to = packed
    with_index = members(to / "train-000000.tar")
    (to / "train-000000.idx").unlink()
    assert members(to / "train-000000.tar") == with_index


def test_packing_goes_on_where_it_was_stopped(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, to = table(), tmp_path / "shards"
    monkeypatch.setattr(
        "pipelines.pack._shards", lambda *_: [(f"train-{n:06d}", [2 * n, 2 * n + 1]) for n in range(12)]
    )

    def stop(done: int, _total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(Arguments(data=root, shards=to), stop)
    first = {path.name: path.stat().st_mtime_ns for path in to.glob("*.tar")}
    assert len(first) == 5
    (to / "train-000003.idx").unlink()  # its shard was written, its index not
    pack(Arguments(data=root, shards=to))
    assert len(read_dataset(to).files) == 24
    again = {path.name: path.stat().st_mtime_ns for path in to.glob("*.tar")}
    assert {name for name in first if again[name] == first[name]} == {f"train-{n:06d}.tar" for n in (0, 1, 2, 4)}
    with pytest.raises(InputError, match="shards of another data set"):
        pack(Arguments(data=root, shards=to, shard_size=1))


def test_shards_are_filled_up_to_their_size(table: Make, tmp_path: Path) -> None:
    root = table(pictures=24)
    (root / "images" / "5.jpg").write_bytes(bytes(1_200_000))  # larger than a shard on its own
    pack(Arguments(data=root, shards=tmp_path / "shards", shard_size=1))
    sizes = [len(members(path)) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    assert sizes == [5, 1, 18]


def test_a_picture_in_a_shard_that_goes_bad(packed: tuple[Dataset, Path]) -> None:
    _, to = packed
    after = read_dataset(to)
    name, _, location = after.files[3].partition("@")
    start = int(location.partition("+")[0])
    with (to / "train-000000.tar").open("r+b") as file:
        file.seek(start)
        file.write(bytes(200))
    stream = evaluation_stream(to, after.files, np.arange(20), 5, SPEC)
    shown = torch.cat([batch.rows for batch in stream.batches()])
    assert shown[shown >= 0].tolist() == [row for row in range(20) if row != 3]
    assert name == "train-000000.tar/00000003.jpg"


def test_a_shard_that_goes_away_is_told(packed: tuple[Dataset, Path]) -> None:
    _, to = packed
    after = read_dataset(to)
    (to / "train-000000.tar").unlink()
    stream = evaluation_stream(to, after.files, np.array([0, 1, 20, 21]), 4, SPEC)
    rows = next(iter(stream.batches())).rows
    assert rows.tolist() == [-1, -1, 20, 21]
    assert set(stream.bad.values()) == {"no such file"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a.jpg": b"x", "a.json": b"{}"}, "train-0.tar/a.json: not a sample's labels"),
        ({"a.jpg": b"x", "a.json": b"[1"}, "not a sample's labels"),
        ({"a@b.jpg": b"x", "a@b.json": b'{"labels": [null]}'}, "train-0.tar/a@b.json: not a sample's labels"),
        ({"a.jpg": b"x", "a.json": b'{"labels": [true, false]}'}, "train-0.tar/a.json: not a sample's labels"),
        ({"a.jpg": b"x", "a.json": b'{"labels": [0, 1, 0]}'}, "a list of 0 and 1; give the labels' names"),
        (None, "not a usable tar file"),
    ],
    ids=["no labels", "no json", "no name", "flags", "numbers", "no tar"],
)
def test_shards_that_are_none(tmp_path: Path, content: dict[str, bytes] | None, words: str) -> None:
    path = tmp_path / "train-0.tar"
    if content is None:
        path.write_bytes(b"no tar file" * 100)
    else:
        with tarfile.open(path, "w") as tar:
            for name, data in content.items():
                (tmp_path / "file").write_bytes(data)
                tar.add(tmp_path / "file", name)
    with pytest.raises(InputError, match=words):
        read_layout(tmp_path)


def shard(folder: Path, samples: dict[str, list[object]]) -> Path:
    """A folder of one shard with a picture and labels a sample."""
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for key, labels in samples.items():
            add(tar, f"{key}.jpg", b"x")
            add(tar, f"{key}.json", json.dumps({"labels": labels}).encode())
    return folder


def test_labels_in_shards_are_read_as_those_in_tables_are(tmp_path: Path) -> None:
    """Blanks around them are not theirs, one of no letters is none, and accents are one however they are written."""
    root = shard(tmp_path, {"a": [" cafe\u0301 ", ""], "b": ["caf\u00e9", 7], "c": []})
    assert read_layout(root).labels == ("7", "caf\u00e9")
    (root / "labels.txt").write_text("7\ncafe\u0301\n")
    dataset = read_layout(root)
    assert dataset.labels == ("7", "caf\u00e9")
    assert dataset.targets.tolist() == [[False, True], [True, True], [False, False]]


def test_names_in_shards_that_are_not_unicode(tmp_path: Path) -> None:
    root = shard(tmp_path, {"gr\udcfc\udcdf": ["x"], "b": ["y"]})
    dataset = read_layout(root)
    assert len(dataset.files) == 2
    "".join(dataset.files).encode()
    assert read(f"{root}/{dataset.files[0]}") == b"x"


def test_shards_are_not_made_of_a_data_set_that_lacks_its_pictures(table: Make, tmp_path: Path) -> None:
    root, to = table(pictures=6, val="image,labels\ngone.jpg,cat\n"), tmp_path / "shards"
    with pytest.raises(InputError, match=r"1 of 7 rows have no usable picture .*--allow-bad goes on"):
        pack(Arguments(data=root, shards=to))
    assert not to.exists()
    assert len(pack(Arguments(data=root, shards=to, allow_bad=True)).files) == 6
    (root / "images").rename(root / "pictures")
    with pytest.raises(InputError, match="no training pictures are left"):
        pack(Arguments(data=root, shards=tmp_path / "others", allow_bad=True))


def test_what_a_table_leaves_to_guess_is_told(
    table: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = table("image,labels\n0.jpg,traffic light\n1.jpg,dog\n")
    monkeypatch.setattr("sys.argv", ["pack", str(root), str(tmp_path / "shards")])
    assert packing() == 0
    assert "note: column 'labels': labels are separated by blanks" in capsys.readouterr().out


def test_samples_without_a_picture_or_labels_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in {
            "a.jpg": b"x",
            "b.json": b'{"labels": []}',
            "c.json": b'{"labels": ["x"]}',
            "c.jpg": b"y",
        }.items():
            (tmp_path / "file").write_bytes(data)
            tar.add(tmp_path / "file", name)
    dataset = read_layout(tmp_path)
    assert [(r.file, r.reason) for r in dataset.rejected] == [
        ("train-0.tar/a", "no json in the sample"),
        ("train-0.tar/b", "no picture in the sample"),
    ]
    assert dataset.labels == ("x",)


def test_pictures_of_any_name_come_out_again(table: Make, tmp_path: Path) -> None:
    """With the mark that parts a name from its place, without an ending, with one of a camera's."""
    root, names = table(pictures=4), ["a@b.jpg", "b", "c.jfif", "d.PNG"]
    for i, name in enumerate(names):
        (root / "images" / f"{i}.jpg").rename(root / "images" / name)
    (root / "train.csv").write_text("image,labels\n" + "".join(f"{name},cat\n" for name in names))
    before = pack(Arguments(data=root, shards=tmp_path / "shards"))
    after = read_layout(tmp_path / "shards")
    assert not after.rejected
    assert len(after.files) == len(before.files) == 4
    for ours, theirs in zip(before.files, after.files, strict=True):
        assert read(f"{after.root}/{theirs}") == (root / ours).read_bytes()
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        notes = [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith("json")]  # type: ignore[union-attr]
    assert [note["file"] for note in notes] == [f"images/{name}" for name in names]


def test_pictures_that_no_viewer_shows_are_bad_in_shards_too(table: Make, tmp_path: Path) -> None:
    root = table(pictures=40)
    Image.fromarray(np.random.default_rng(0).random((40, 60), np.float32)).save(root / "images" / "x.tif")
    (root / "train.csv").write_text((root / "train.csv").read_text() + "x.tif,cat\n")
    pack(Arguments(data=root, shards=tmp_path / "shards"))
    for folder in (root, tmp_path / "shards"):
        assert [r.reason for r in read_dataset(folder).rejected] == ["numbers of 32 bits are not supported"]


def test_a_picture_that_cannot_be_read_is_named(table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    root, to = table(), tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.pack.read", refused)
        with pytest.raises(InputError, match=r"0\.jpg: cannot be read: Permission denied"):
            pack(Arguments(data=root, shards=to))
    assert not list(to.glob(".*"))
    (to / ".train-000000.tar.77.tmp").write_bytes(b"left by a process that was killed")
    pack(Arguments(data=root, shards=to))
    assert not list(to.glob(".*"))


def test_an_empty_file_in_front_has_a_shard_of_its_split(table: Make, tmp_path: Path) -> None:
    """It takes no room, so that none seemed to be needed."""
    root, to = table("image,labels\n0.jpg,cat\n1.jpg,\n", val="image,labels\n2.jpg,cat\n3.jpg,\n"), tmp_path / "shards"
    for name in ("0.jpg", "2.jpg"):
        (root / "images" / name).write_bytes(b"")
    pack(Arguments(data=root, shards=to))
    assert {split: rows.tolist() for split, rows in read_layout(to).splits.items()} == {"train": [0, 1], "val": [2, 3]}


def test_packing_shards_again(packed: tuple[Dataset, Path], tmp_path: Path) -> None:
    """Any layout goes in, shards too."""
    before, to = packed
    again = pack(Arguments(data=to, shards=tmp_path / "again"))
    assert np.array_equal(again.targets, before.targets)
    assert replace(again, root=to).labels == before.labels
