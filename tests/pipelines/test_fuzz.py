"""Mutated pictures, tables and annotations: nothing crashes or hangs, and whatever is bad is named."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.check import decode_failures
from pipelines.coco import read_coco
from pipelines.dataset import Dataset
from pipelines.errors import InputError
from pipelines.table import read_table
from pipelines.voc import read_voc

PICTURES, TABLES, ANNOTATIONS = 300, 200, 100
SECONDS = 240  # for all pictures; they take a few

CHECK_AND_LOAD = """
import sys
from pathlib import Path
import numpy as np
from pipelines.augment import PictureSpec
from pipelines.check import decode_failures
from pipelines.loader import evaluation_stream
root = Path(sys.argv[1])
files = sorted(path.name for path in root.iterdir())
reasons = decode_failures([str(root / name) for name in files])
assert len(reasons) == len(files) and not any("\\n" in reason for reason in reasons)
good = [i for i, reason in enumerate(reasons) if not reason]
stream = evaluation_stream(root, files, np.arange(len(files)), 16, PictureSpec(96))
shown = [int(row) for batch in stream.batches() for row in batch.rows if row >= 0]
assert shown == good, "a stream shows what the check lets through, and nothing else"
assert sorted(stream.bad) == [i for i, reason in enumerate(reasons) if reason]
print(len(good))
"""


def mutated(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes changed, cut off, cut out, put in, doubled, or a stretch of zeros."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, len(data))))
        stretch = int(rng.integers(1, 40))
        kind = rng.integers(0, 7)
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + stretch]
        elif kind == 3:
            data[at:at] = rng.bytes(stretch)
        elif kind == 4:
            data += data[at:]
        elif kind == 5:
            data[at : at + stretch] = bytes(stretch)
        else:  # in the header, where sizes stand
            data[at % 64 : at % 64 + 2] = rng.bytes(2)
    return bytes(data)


def test_pictures(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    grey16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16))
    kinds = []
    for form, options in [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {})]:
        image.save(buffer := io.BytesIO(), form, **options)
        kinds.append((form.lower(), buffer.getvalue()))
    for form, picture in [("TIFF", image), ("JPEG2000", image), ("PNG", grey16), ("PNG", image.convert("P"))]:
        picture.save(buffer := io.BytesIO(), form)
        kinds.append((form.lower(), buffer.getvalue()))
    rng = np.random.default_rng(1)
    for number in range(PICTURES):
        form, content = kinds[number % len(kinds)]
        data = mutated(rng, content)
        (tmp_path / f"{number:03d} ü.{form}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHECK_AND_LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 10 < int(done.stdout.split()[-1]) < PICTURES - 50  # some survive, many do not


def told_or_read(read: Callable[[Path], Dataset], root: Path) -> bool:
    """Whether it was read; if not, it was told in one line."""
    try:
        dataset = read(root)
    except InputError as error:
        told = str(error)
    else:
        told = None
    if told is not None:
        assert told
        assert "\n" not in told
        return False
    assert dataset.targets.shape == (len(dataset.files), len(dataset.labels))
    assert all((root / file).resolve().is_relative_to(root.resolve()) for file in dataset.files)
    return True


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.jpg").touch()
    tables = [
        b"image,labels\n" + b"".join(b"%d.jpg,cat dog\n" % i for i in range(8)),
        b'ImageID,Labels,Caption\n0.jpg,1 2,"A, ""quoted"" one"\n1.jpg,2,"two\nlines"\n2.jpg,3,a stray " quote, here\n',
        b"id;cat;dog\n" + b"".join(b"%d;%d;1\n" % (i, i % 2) for i in range(8)),
    ]
    rng, read = np.random.default_rng(2), 0
    for number in range(TABLES):
        (tmp_path / "train.csv").write_bytes(mutated(rng, tables[number % 3]))
        read += told_or_read(read_table, tmp_path)
    assert TABLES // 4 < read < TABLES


def test_annotations(tmp_path: Path) -> None:
    coco, voc = tmp_path / "coco", tmp_path / "voc"
    for folder in (coco / "annotations", coco / "train", voc / "JPEGImages", voc / "Annotations"):
        folder.mkdir(parents=True)
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (coco / "train" / "a.jpg").touch()
    (voc / "JPEGImages" / "a.jpg").touch()
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    as_json = json.dumps(content).encode()
    as_xml = b"<annotation><object><name>cat</name></object></annotation>"
    rng = np.random.default_rng(3)
    for _ in range(ANNOTATIONS // 2):
        (coco / "annotations" / "instances_train.json").write_bytes(mutated(rng, as_json))
        told_or_read(read_coco, coco)
        (voc / "Annotations" / "a.xml").write_bytes(mutated(rng, as_xml))
        told_or_read(read_voc, voc)


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_bombs_are_refused_by_their_header(tmp_path: Path, form: str) -> None:
    """A small file that would take gigabytes once decoded."""
    whole = io.BytesIO()
    Image.new("L", (16, 16)).save(whole, "PNG" if form == "png" else "JPEG")
    data = bytearray(whole.getvalue())
    if form == "png":  # width and height stand in the first chunk, their check sum after it
        import zlib

        data[16:24] = (200_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (65_000).to_bytes(2, "big") * 2
    (tmp_path / f"bomb.{form}").write_bytes(data)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30));"
        "from pipelines.check import decode_failures; print(decode_failures([sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path / f"bomb.{form}")],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=Path(__file__).parents[2],
    )
    assert "too large" in done.stdout, done.stderr[-2000:]


def test_the_largest_picture_that_is_opened(tmp_path: Path) -> None:
    """A little above it, one that would decode is refused all the same; memory is not taken for it."""
    Image.new("1", (20_000, 9_000)).save(tmp_path / "above.png")
    Image.new("1", (20_000, 100)).save(tmp_path / "below.png")
    found = decode_failures([str(tmp_path / name) for name in ("above.png", "below.png")])
    assert found == ["too large (at most 178 million pixels)", ""]
