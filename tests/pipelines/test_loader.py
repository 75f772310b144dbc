"""Batches: the right pixels, each row once, the same wherever a stream starts, and none lost to a bad file."""

import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipelines.augment import MEAN, STD, PictureSpec
from pipelines.dataset import Dataset
from pipelines.draws import draw
from pipelines.errors import InputError
from pipelines.loader import Held, TrainingPlan, evaluation_stream, training_stream
from pipelines.memory import PictureMemory, picture_memory
from pipelines.read import read_dataset

Make = Callable[..., Path]
SPEC = PictureSpec(size=32, threads=2)


@pytest.fixture
def dataset(table: Make) -> Dataset:
    return read_dataset(table())


def plan_of(dataset: Dataset, **changes: object) -> TrainingPlan:
    rows = dataset.splits["train"]
    plan = TrainingPlan(rows, dataset.targets[rows], "uniform", None, 0, 4, SPEC.size, True)
    return replace(plan, **changes)  # type: ignore[arg-type]


def pixels(images: torch.Tensor) -> np.ndarray:
    """Back to [batch, H, W, 3] from 0 to 255."""
    return (images * STD + MEAN).permute(0, 2, 3, 1).numpy()


def test_training_batches(dataset: Dataset) -> None:
    plan = plan_of(dataset)
    stream = training_stream(dataset.root, dataset.files, plan, SPEC).batches()
    assert plan.steps() == len(plan.rows) // 4
    epochs = [[next(stream) for _ in range(plan.steps())] for _ in range(2)]
    for epoch, batches in enumerate(epochs):
        rows = torch.cat([batch.rows for batch in batches]).numpy()
        assert np.array_equal(rows, plan.epoch(epoch)[: plan.steps() * 4])  # the ragged rest is dropped
    images = epochs[0][0].images
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_stream_started_in_the_middle_gives_the_same_batches(dataset: Dataset) -> None:
    plan = plan_of(dataset)
    whole = training_stream(dataset.root, dataset.files, plan, SPEC).batches()
    kept = [(b.images.clone(), b.rows.clone()) for b, _ in zip(whole, range(9), strict=False)]
    tail = training_stream(dataset.root, dataset.files, plan, SPEC).batches(start=6)
    for images, rows in kept[6:]:
        batch = next(tail)
        assert torch.equal(batch.rows, rows)
        assert torch.equal(batch.images, images)


def test_a_batch_is_not_overwritten_by_later_ones(dataset: Dataset) -> None:
    stream = training_stream(dataset.root, dataset.files, plan_of(dataset), SPEC).batches()
    first = next(stream)
    copy = first.images.clone()
    for _ in range(6):
        next(stream)
    assert torch.equal(first.images, copy)


class Outputs:
    """In place of DALI's."""


def test_what_a_gpu_still_reads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI fills outputs again as soon as nobody holds them, whatever a GPU that lags behind has yet to do."""
    done: list[int] = []

    class Event:
        made = 0

        def __init__(self) -> None:
            self.number, Event.made = Event.made, Event.made + 1

        def record(self) -> None: ...

        def synchronize(self) -> None:
            done.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    held, outputs = Held(), []
    for number in range(6):
        given = Outputs()
        outputs.append(weakref.ref(given))
        held.keep(given)
        del given
        gone = [i for i, output in enumerate(outputs) if output() is None]
        assert gone == done == list(range(max(0, number - 1)))
    waited = Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: waited)
    held.let_go()
    assert waited.mock_calls == [call.synchronize()]
    assert all(output() is None for output in outputs)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.gpu
@GPU
def test_batches_are_not_overwritten_under_a_gpu_that_lags(dataset: Dataset) -> None:
    """Each batch waits behind 20 ms of the GPU's time, as behind a step, while the pipeline makes the next."""
    spec = replace(SPEC, placement="gpu", dtype="bfloat16")
    found = []
    for lag in (0, 40_000_000):
        stream = training_stream(dataset.root, dataset.files, plan_of(dataset), spec).batches()
        sums = []
        for _, batch in zip(range(30), stream, strict=False):
            if lag:
                torch.cuda._sleep(lag)
            else:
                torch.cuda.synchronize()
            sums.append(batch.images.float().sum((1, 2, 3)))
        found.append(torch.stack(sums).cpu())
    assert torch.equal(*found)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("augment", [True, False])
def test_both_placements_draw_the_same(dataset: Dataset, augment: bool) -> None:
    """A GPU decodes and resamples with roundings of its own."""
    both = []
    for spec in (SPEC, replace(SPEC, placement="gpu")):
        stream = training_stream(dataset.root, dataset.files, plan_of(dataset, augment=augment), spec)
        both.append(next(stream.batches()).images.float().cpu() * STD)
    assert (both[0] - both[1]).abs().mean() < 2


@pytest.mark.parametrize("batch_size", [4, 7, 24, 50])
def test_evaluation_gives_every_row_once(dataset: Dataset, batch_size: int) -> None:
    rows = np.arange(24)[::-1].copy()
    batches = list(evaluation_stream(dataset.root, dataset.files, rows, batch_size, SPEC).batches())
    assert all(len(batch.rows) == batch_size for batch in batches)
    got = torch.cat([batch.rows for batch in batches])
    assert got[got >= 0].tolist() == rows.tolist()
    assert (got[24:] == -1).all()


def test_evaluation_of_no_rows(dataset: Dataset) -> None:
    assert not list(evaluation_stream(dataset.root, dataset.files, np.empty(0, np.int64), 4, SPEC).batches())


def evaluated(root: Path, name: str, size: int = 64) -> np.ndarray:
    stream = evaluation_stream(root, [name], np.array([0]), 1, replace(SPEC, size=size))
    return pixels(next(iter(stream.batches())).images)[0]


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (128, 64), (64, 64), (20, 10), (64, 31), (31, 64)])
def test_letterbox(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / "x.png")
    shown = evaluated(tmp_path, "x.png")
    scale = 64 / max(width, height)
    h, w = round(height * scale), round(width * scale)
    top, left = (65 - h) // 2, (65 - w) // 2  # the odd pixel of a border lies above and to the left
    expected = np.zeros((64, 64, 3))
    expected[top : top + h, left : left + w] = (200, 100, 50)
    assert np.abs(shown - expected).max() < 1


def test_every_kind_of_picture_is_shown_as_a_viewer_shows_it(
    tmp_path: Path, save_kinds: Callable[[Path], tuple[list[str], list[str]]]
) -> None:
    good, _ = save_kinds(tmp_path)
    for name in good:
        shown = evaluated(tmp_path, name)
        image = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
        h, w = (max(1, round(side * 64 / max(image.size))) for side in image.size[::-1])
        expected = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR), float)
        top, left = (65 - h) // 2, (65 - w) // 2  # the odd pixel of a border lies above and to the left
        inside = shown[top : top + h, left : left + w]
        assert np.abs(inside - expected).mean() < 3, name
        assert shown.sum() == pytest.approx(inside.sum(), rel=1e-3, abs=50), name


def test_shrinking_is_filtered(tmp_path: Path) -> None:
    """A fine checkerboard becomes grey, not a coarse pattern."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "x.png")
    assert evaluated(tmp_path, "x.png").std() < 3


def test_augmentation_moves_pixels_as_its_matrix_says(dataset: Dataset) -> None:
    """A white disc lands where the inverse of the drawn matrix puts it, and borders stay black."""
    y, x = np.indices((64, 64))
    disc = np.where(((x + 0.5 - 44) ** 2 + (y + 0.5 - 26) ** 2 < 25)[..., None], 255, 0)
    Image.fromarray(np.repeat(disc, 3, 2).astype(np.uint8)).save(dataset.root / "images" / "0.jpg", quality=100)
    spec = replace(SPEC, size=64)
    plan = plan_of(
        dataset, rows=np.zeros(16, np.int64), targets=dataset.targets[:1].repeat(16, 0), batch_size=16, size=64
    )
    batch = next(training_stream(dataset.root, ["images/0.jpg"], plan, spec).batches())
    numbers = draw(0, 0, 0, 16, 64)
    for image, matrix in zip(pixels(batch.images), numbers.matrix, strict=True):
        bright = image.mean(2) > 100
        found = np.array([(x + 0.5)[bright].mean(), (y + 0.5)[bright].mean()])
        expected = np.linalg.solve(matrix[:, :2], np.array([44, 26]) - matrix[:, 2])
        assert np.abs(found - expected).max() < 0.7


def test_colour_jitter_keeps_borders_black(dataset: Dataset) -> None:
    Image.new("RGB", (64, 16), (120, 120, 120)).save(dataset.root / "images" / "0.jpg")
    plan = plan_of(dataset, rows=np.zeros(8, np.int64), targets=dataset.targets[:1].repeat(8, 0), batch_size=8, size=64)
    images = pixels(
        next(training_stream(dataset.root, ["images/0.jpg"], plan, replace(SPEC, size=64)).batches()).images
    )
    assert np.abs(images[:, :4]).max() == 0
    middle = images[:, 32, 32]
    assert middle.std(0).min() > 3  # brightness and contrast differ between draws


@pytest.mark.parametrize("limit", [10**9, 20_000, 0], ids=["all", "some", "none"])
def test_pictures_from_memory_are_those_from_files(dataset: Dataset, limit: int) -> None:
    """Bit for bit, whether a picture was decoded, kept or did not fit; nothing is decoded once all are kept."""
    Image.new("RGB", (90, 70), (10, 200, 30)).save(dataset.root / dataset.files[0])  # one that has to be shrunk
    plan, memory = plan_of(dataset), PictureMemory(limit)
    plain = _stream(dataset, plan).batches()
    stream = training_stream(dataset.root, dataset.files, plan, SPEC, memory)
    remembering = stream.batches()
    for _ in range(3 * plan.steps()):
        a, b = next(plain), next(remembering)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.rows, b.rows)
    assert memory.size == sum(picture.nbytes for picture in memory.pictures.values()) <= limit
    assert all(picture.flags.owndata for picture in memory.pictures.values())  # no batch is held along with one of it
    assert (len(memory.pictures) == len(plan.rows)) == (limit == 10**9)
    if limit == 10**9:
        for file in dataset.files:
            (dataset.root / file).unlink()
        again = training_stream(dataset.root, dataset.files, plan, SPEC, memory).batches(2 * plan.steps())
        assert torch.equal(next(again).rows, torch.from_numpy(plan.epoch(2)[:4]))
        assert not stream.bad


def test_pictures_kept_for_a_larger_size_are_those_from_files(dataset: Dataset) -> None:
    """A run whose pictures grow keeps them at their full size; its small ones are the same with memory and without,
    and nearly those of a run of small pictures."""
    Image.effect_noise((90, 70), 60).convert("RGB").save(dataset.root / dataset.files[0], quality=95)
    plan, memory = plan_of(dataset), PictureMemory(10**9)
    spec = replace(SPEC, kept=64)
    kept = training_stream(dataset.root, dataset.files, plan, spec, memory)
    streams = [kept, training_stream(dataset.root, dataset.files, plan, spec), _stream(dataset, plan)]
    shrunk = 0
    for _, *batches in zip(range(2 * plan.steps()), *(stream.batches() for stream in streams), strict=False):
        a, b, small = (batch.images for batch in batches)
        assert torch.equal(a, b)
        assert (a - small).abs().mean() < 0.05
        shrunk += not torch.equal(a, small)
    assert shrunk
    assert max(max(picture.shape) for picture in memory.pictures.values()) == 64


def test_a_stream_that_ends(dataset: Dataset) -> None:
    """The batch before the end comes, nothing after it, wherever it began."""
    plan = plan_of(dataset)
    whole = _stream(dataset, plan).batches()
    due = [next(whole).rows.tolist() for _ in range(7)]
    for start in (0, 5):
        ending = training_stream(dataset.root, dataset.files, plan, SPEC, end=7)
        assert [batch.rows.tolist() for batch in ending.batches(start)] == due[start:]


def test_memory_takes_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.memory.free_memory", lambda: 8 * 10**9)
    given = [picture_memory(gigabytes) for gigabytes in (None, 0.5, 0)]
    assert [memory and memory.limit for memory in given] == [2 * 10**9, 5 * 10**8, None]


def test_a_picture_that_goes_away_and_whose_name_is_not_utf_8(dataset: Dataset) -> None:
    """DALI's message names it, and cannot be made text of."""
    files = [*dataset.files[:7], os.fsdecode(b"images/\xff.jpg")]
    stream = evaluation_stream(dataset.root, files, np.arange(8), 4, SPEC)
    rows = torch.cat([batch.rows.clone() for batch in stream.batches()])
    assert rows[rows >= 0].tolist() == list(range(7))
    assert stream.bad == {7: "no such file"}


def test_a_bad_picture_is_not_kept(dataset: Dataset) -> None:
    (dataset.root / dataset.files[3]).write_bytes(b"")
    memory = PictureMemory(10**9)
    stream = training_stream(dataset.root, dataset.files, plan_of(dataset), SPEC, memory)
    for _ in zip(stream.batches(), range(12), strict=False):
        pass
    assert list(stream.bad) == [3]
    assert 3 not in memory.pictures
    assert len(memory.pictures) > 12


@pytest.mark.parametrize("damage", ["empty", "gone", "truncated"])
def test_a_picture_that_goes_bad_loses_no_batch(dataset: Dataset, damage: str) -> None:
    plan = plan_of(dataset)
    healthy = [b.rows.clone() for b, _ in zip(_stream(dataset, plan).batches(), range(5), strict=False)]
    victim = int(healthy[2][1])
    path = dataset.root / dataset.files[victim]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-200])
    stream = _stream(dataset, plan)
    rows = [b.rows.clone() for b, _ in zip(stream.batches(), range(5), strict=False)]
    assert list(stream.bad) == [victim]
    expected = healthy[2].clone()
    expected[1] = expected[2]  # the next draw of the batch stands in
    assert torch.equal(rows[2], expected)
    assert all(torch.equal(rows[i], healthy[i]) for i in (0, 1, 3, 4))


def test_evaluation_leaves_out_a_picture_that_goes_bad(dataset: Dataset) -> None:
    (dataset.root / dataset.files[5]).write_bytes(b"")
    stream = evaluation_stream(dataset.root, dataset.files, np.arange(24), 8, SPEC)
    got = torch.cat([b.rows.clone() for b in stream.batches()])
    assert got[got >= 0].tolist() == [i for i in range(24) if i != 5]


@pytest.mark.parametrize("damage", [[24], [0], [24, 22, 23]])
def test_a_ragged_last_batch_whose_only_picture_goes_bad(table: Make, damage: list[int]) -> None:
    """One picture more than batches hold: the last batch has nothing but padding then, and the run goes on."""
    dataset = read_dataset(table(pictures=25))
    for row in damage:
        (dataset.root / dataset.files[row]).write_bytes(b"")
    for batch_size, rows in ((8, np.arange(25)), (1, np.array([1, 24, 0, 2]))):
        stream = evaluation_stream(dataset.root, dataset.files, rows, batch_size, SPEC)
        got = torch.cat([b.rows.clone() for b in stream.batches()])
        assert got[got >= 0].tolist() == [row for row in rows if row not in damage]


def test_training_one_picture_a_step_goes_on_with_the_next(dataset: Dataset) -> None:
    plan = plan_of(dataset, batch_size=1)
    order = plan.epoch(0)
    (dataset.root / dataset.files[order[3]]).write_bytes(b"")
    stream = _stream(dataset, plan).batches()
    rows = [int(next(stream).rows) for _ in range(6)]
    assert rows == [*order[:3], order[4], *order[4:6]]


def test_a_batch_without_any_good_picture_stops(dataset: Dataset) -> None:
    for file in dataset.files:
        (dataset.root / file).write_bytes(b"")
    with pytest.raises(InputError, match="none of the pictures"):
        next(_stream(dataset, plan_of(dataset)).batches())


def _stream(dataset: Dataset, plan: TrainingPlan):  # type: ignore[no-untyped-def]
    return training_stream(dataset.root, dataset.files, plan, SPEC)
