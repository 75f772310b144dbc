"""Classifying as a user starts it, and as a function: rows for all, whole files, one line for what is wrong."""

import csv
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from PIL import Image

from engine import session as sessions
from engine.answer_file import AnswerFile, digest
from engine.classifier import Classifier
from engine.infer import Arguments, infer
from engine.model_file import read_model
from engine.session import decide, on_cpu
from engine.trained import load_trained
from pipelines.augment import MEAN, STD
from pipelines.errors import InputError
from tests.conftest import picture
from tests.engine.conftest import LABELS, SIZE

Exported = Callable[..., Path]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Eleven photographs and a file that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(11):
        picture(i, 30 + 20 * i, 90).save(folder / f"{i}.png")
    (folder / "5b.jpg").write_text("no picture")
    return folder


def run(file: Path, *paths: Path | str, **options: object) -> int:
    return infer(Arguments(file=file, paths=tuple(map(str, paths)), device="cpu", batch_size=4, **options))  # type: ignore[arg-type]


@contextmanager
def one_thread() -> Iterator[None]:
    """As torchrun starts processes: with other numbers of threads sums round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("verb", ["infer", "evaluate"])
def test_two_processes_answer_as_one(
    exported: Exported, trained_run: Path, album: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by torchrun, to whom a photograph that cannot be read is no reason to start again."""
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    line = [exported(), album] if verb == "infer" else [trained_run, "--draws", "9"]
    line += ["--device", "cpu", "--out"]
    monkeypatch.setattr(sys, "argv", [verb, *map(str, line), str(one)])
    with one_thread():
        assert importlib.import_module(f"engine.{verb}").main() == (11 if verb == "infer" else 0)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*start, f"engine.{verb}", *map(str, line), str(two)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert one.read_bytes() == two.read_bytes()


def test_rows_of_all_formats_agree(exported: Exported, album: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"p.{ending}" for ending in ("csv", "jsonl", "parquet")]
    for out in outs:
        assert run(exported(), album, out=out) == 11  # one could not be read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album", "p.csv", "p.jsonl", "p.parquet"]
    with outs[0].open(newline="") as file:
        text = list(csv.DictReader(file))
    lines = [json.loads(line) for line in outs[1].read_text().splitlines()]
    table = pl.read_parquet(outs[2])
    assert [Path(row["file"]).name for row in text] == [f"{i}.png" for i in range(6)] + ["5b.jpg"] + [
        f"{i}.png" for i in range(6, 11)
    ]
    assert table.columns == ["file", "labels", "error", *LABELS] == list(text[0])
    for row, line, cells in zip(text, lines, table.iter_rows(named=True), strict=True):
        assert row["file"] == line["file"] == cells["file"]
        assert (row["error"] or None) == line["error"] == cells["error"]
        if line["error"]:
            assert line["labels"] is None
            assert cells["bird"] is None
            assert row["bird"] == row["labels"] == ""
            continue
        assert [name for name in row["labels"].split("|") if name] == line["labels"] == cells["labels"]
        for label in LABELS:
            assert line["probabilities"][label] == pytest.approx(cells[label], abs=1e-6)
            assert line["probabilities"][label] == pytest.approx(float(row[label]), abs=1e-6)


def test_answers_are_the_trained_networks(exported: Exported, trained_run: Path) -> None:
    trained = load_trained(trained_run)
    pictures = np.stack([np.asarray(picture(i, SIZE, SIZE)) for i in range(9)])
    with torch.inference_mode():
        normal = ((torch.from_numpy(pictures).float() - MEAN) / STD).permute(0, 3, 1, 2)
        expected = torch.sigmoid(trained.network(normal)).numpy()
    labels, probabilities = Classifier(exported(), "cpu", batch_size=4)(pictures)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    decided = expected >= np.array(trained.thresholds, np.float32)
    assert decided.any()
    assert not decided.all()
    assert labels == [[LABELS[i] for i in np.flatnonzero(row)] for row in decided]


def test_paths_arrays_and_pil_images_are_the_same(exported: Exported, album: Path) -> None:
    paths = [album / f"{i}.png" for i in range(5)]
    images = [Image.open(path) for path in paths]
    for any_size in (False, True):
        classifier = Classifier(exported(any_size=any_size), "cpu", batch_size=2)
        _, expected = classifier(paths)
        assert expected.shape == (5, len(LABELS))
        for given in (list(map(str, paths)), images, [np.asarray(image) for image in images]):
            np.testing.assert_allclose(classifier(given)[1], expected, atol=1e-6)
        for one in (paths[3], str(paths[3]), images[3], np.asarray(images[3])):
            names, single = classifier(one)
            np.testing.assert_allclose(single, expected[3:4], atol=1e-6)
            assert len(names) == 1
        assert classifier([])[1].shape == (0, len(LABELS))


@pytest.mark.parametrize("sides", [(96, 57), (3, 96), (96, 40)], ids=str)  # two end at half a pixel
def test_both_graphs_round_sides_alike(exported: Exported, sides: tuple[int, int]) -> None:
    """One resizes in the graph, the other before it; a row more or less would move the whole picture."""
    whole, any_size = (
        Classifier(exported(any_size=any_size), "cpu")(picture(3, *sides))[1] for any_size in (False, True)
    )
    np.testing.assert_allclose(any_size, whole, atol=2e-3)


def test_kinds_of_pil_images_are_read_as_their_files_are(
    exported: Exported, tmp_path: Path, save_kinds: Callable[[Path], tuple[list[str], list[str]]]
) -> None:
    good, _ = save_kinds(tmp_path)
    deep = np.asarray(picture(1).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "16 bits.png")
    paths = [tmp_path / name for name in [*good, "16 bits.png"]]
    classifier = Classifier(exported(), "cpu")
    np.testing.assert_allclose(
        classifier([Image.open(path) for path in paths])[1], classifier(paths)[1], atol=2e-2
    )  # decoders differ by a step


def test_threads_share_a_classifier(exported: Exported) -> None:
    classifier = Classifier(exported(), "cpu", batch_size=4)
    images = [np.asarray(picture(i, 30 + 9 * i, 50)) for i in range(24)]
    _, expected = classifier(images)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda first: classifier(images[first : first + 5])[1], [0, 5, 10, 15, 19] * 4))
    for first, found in zip([0, 5, 10, 15, 19] * 4, answers, strict=True):
        np.testing.assert_allclose(found, expected[first : first + 5], atol=1e-6)


def test_what_is_no_photograph(exported: Exported, album: Path) -> None:
    classifier = Classifier(exported(), "cpu")
    with pytest.raises(InputError, match=r"5b\.jpg: not a picture"):
        classifier([album / "1.png", album / "5b.jpg"])
    for wrong in (
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="images: "):
            classifier(wrong)
    for nothing in (Image.new("RGB", (0, 5)), Image.new("F", (5, 5))):
        with pytest.raises(ValueError, match="images: "):
            classifier(nothing)
    with pytest.raises(TypeError, match="images: int"):
        classifier([3])
    with pytest.raises(TypeError, match="images: paths and pictures"):
        classifier([Image.new("RGB", (5, 5)), album / "1.png"])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_answers_do_not_depend_on_how_a_batch_is_cut(
    exported: Exported, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    pictures = np.stack([np.asarray(picture(i, SIZE, SIZE)) for i in range(count)])
    classifier = Classifier(exported(), "cpu")
    monkeypatch.setattr(sessions, "SLICE_PIXELS", 2 * SIZE * SIZE)
    together = classifier.session(pictures)
    alone = np.concatenate([classifier.session(pictures[i : i + 1]) for i in range(count)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_threshold_decides(exported: Exported, album: Path, tmp_path: Path) -> None:
    for threshold, expected in ((0.0, set(LABELS)), (1.0, set())):
        run(exported(), album / "1.png", out=tmp_path / "p.jsonl", threshold=threshold)
        assert set(json.loads((tmp_path / "p.jsonl").read_text())["labels"]) == expected


def test_resumed_is_the_same_as_undisturbed(exported: Exported, album: Path, tmp_path: Path) -> None:
    """Whatever an interruption leaves: no line, some, and half a one."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "p.jsonl"
    run(exported(), album, out=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    partial = partial_of(exported(), out)
    for left in (b"".join(lines[:1]), b"".join(lines[:8]) + lines[8][:30], b"".join(lines)):
        partial.write_bytes(left)
        with pytest.raises(InputError, match="--resume goes on"):
            run(exported(), album, out=out)
        assert run(exported(), album, out=out, resume=True) == 11
        assert out.read_bytes() == whole.read_bytes()
        assert not partial.exists()
    with pytest.raises(InputError, match="no interrupted run"):
        run(exported(), album, out=out, resume=True)


def partial_of(file: Path, out: Path) -> Path:
    """Where an interrupted run leaves its rows."""
    return out.with_name(f"{out.name}.{digest(file.read_bytes(), None)}.partial")


def test_interrupted_by_ctrl_c_and_gone_on_with(exported: Exported, album: Path, tmp_path: Path) -> None:
    many = [str(album / f"{i % 11}.png") for i in range(11)]
    for i in range(1500):
        (album / f"link{i}.png").symlink_to(album / f"{i % 11}.png")
        many.append(str(album / f"link{i}.png"))
    out = tmp_path / "p.csv"
    command = [sys.executable, "-m", "engine.infer", str(exported()), "-", "--out", str(out), "--batch-size", "2"]
    command.insert(1, "-u")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(many))
    process.stdin.close()
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{len(many):,} photographs")  # from here on it classifies
    partial = partial_of(exported(), out)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "--resume" in process.stdout.read()
    assert not out.exists()
    done = len(partial.read_text().splitlines())
    assert 0 < done < len(many)
    again = subprocess.run([*command, "--resume"], input="\n".join(many), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{done:,} of them done" in again.stdout
    assert pl.read_csv(out)["file"].to_list() == many


def test_full_disk(exported: Exported, album: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    out = tmp_path / "p.csv"
    result = subprocess.run(
        [sys.executable, "-m", "engine.infer", str(exported()), str(album), "--out", str(out), "--batch-size", "2"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {out}: cannot be written: File too large")
    assert "--resume goes on" in line
    assert not out.exists()
    assert run(exported(), album, out=out, resume=True) == 11
    assert len(pl.read_csv(out)) == 12


def test_full_disk_at_the_very_end(
    exported: Exported, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.LazyFrame, "sink_csv", full)
        with pytest.raises(InputError, match="No space left"):
            run(exported(), album, out=out)
    assert run(exported(), album, out=out, resume=True) == 11
    assert len(pl.read_csv(out)) == 12


def test_files_that_are_not_ours(exported: Exported, album: Path, tmp_path: Path) -> None:
    content = exported().read_bytes()
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    cases = {
        "truncated": (content[: len(content) // 2], "truncated"),
        "foreign": (model.SerializeToString(), "without labels"),
        "empty": (b"", "truncated"),
        "text": (b"no network at all\n" * 50, "not an ONNX file"),
    }
    for name, (data, what) in cases.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        with pytest.raises(InputError, match=what):
            run(tmp_path / f"{name}.onnx", album, out=tmp_path / "p.csv")
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "nowhere.onnx", album, out=tmp_path / "p.csv")
    assert not list(tmp_path.glob("p.csv*"))


def test_what_is_read_is_not_written_over(exported: Exported, album: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("image\nalbum/1.png\n")
    with pytest.raises(InputError, match=r"list\.csv: is what the photographs are to be read from"):
        run(exported(), table, out=tmp_path / "album" / ".." / "list.csv")
    assert table.read_text() == "image\nalbum/1.png\n"
    assert run(exported(), table, out=tmp_path / "p.csv") == 0
    assert run(exported(), table, out=tmp_path / "p.csv") == 0  # answers give way to newer ones


def test_bad_options(exported: Exported, album: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for what, options in {
        "must end in": {"out": tmp_path / "p.txt"},
        "cannot be written: No such file or directory": {"out": tmp_path / "nowhere" / "p.csv"},
        "must lie between 0 and 1": {"threshold": 1.5},
        "is a folder": {"out": tmp_path / "folder.csv"},
    }.items():
        with pytest.raises(InputError, match=what):
            run(exported(), album, **options)


def test_awkward_names(exported: Exported, tmp_path: Path) -> None:
    """Names with commas, quotes, line breaks, and bytes that are no UTF-8."""
    folder = tmp_path / "album"
    folder.mkdir()
    names = ['a,b".png', "größe\n2.png", os.fsdecode(b"\xff\xfe.png")]
    for i, name in enumerate(names):
        picture(i).save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    for ending in ("csv", "parquet"):
        out = tmp_path / f"p.{ending}"
        assert run(exported(), folder, out=out) == 0
        table = pl.read_csv(out) if ending == "csv" else pl.read_parquet(out)
        found = {Path(name).name for name in table["file"]}
        assert found == {'a,b".png', "größe\n2.png", "\\xff\\xfe.png"}


def test_a_list_may_hold_any_names(exported: Exported, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in a locale that is, and no standard input at all."""
    picture(1).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    command = [sys.executable, "-m", "engine.infer", str(exported()), "-", "--out", str(tmp_path / "p.csv")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    name = os.fsencode(tmp_path) + b"/\xff.png\n"
    done = subprocess.run(command, input=name, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    closed = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (2, "error: no photographs were named\n")


def test_labels_named_as_our_columns(exported: Exported, album: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from engine.model_file import describe

    content, description = read_model(exported())
    model = onnx.load_model_from_string(content)
    describe(model, replace(description, labels=("file", "labels", "x")))
    onnx.save(model, tmp_path / "m.onnx")
    run(tmp_path / "m.onnx", album / "1.png", out=tmp_path / "p.csv")
    assert pl.read_csv(tmp_path / "p.csv").columns == ["file", "labels", "error", "file (label)", "labels (label)", "x"]


def test_no_silent_cpu(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    _, description = read_model(exported())
    _, int8 = read_model(exported("int8"))
    monkeypatch.setattr(sessions, "missing", lambda device: "no driver")
    assert decide("cpu", description) == ("cpu", "")
    assert decide("auto", description) == ("cpu", "not cuda: no driver")
    assert "not cuda: no driver" in Classifier(exported()).note
    for device in ("cuda", "tensorrt"):
        with pytest.raises(InputError, match=f"--device {device}: no driver"):
            Classifier(exported(), device)  # type: ignore[arg-type]
    monkeypatch.setattr(sessions, "missing", lambda device: None)
    assert decide("auto", description) == ("cuda", "")
    assert decide("auto", int8)[0] == "cpu"
    with pytest.raises(InputError, match="an int8 file is for the CPU"):
        decide("cuda", int8)
    _, any_size = read_model(exported(any_size=True))
    assert decide("cuda", any_size) == ("cuda", "")
    with pytest.raises(InputError, match="--device tensorrt: it would be built anew"):
        decide("tensorrt", any_size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens where there is no GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_provider_that_falls_back_is_found_out(exported: Exported, device: str) -> None:
    """ONNX Runtime answers a GPU that does not work with a session on the CPU; ours does not take it."""
    content, description = read_model(exported())
    made = sessions.Session.__new__(sessions.Session)
    made._content, made._description, made.device, made.number = content, description, device, 0  # type: ignore[assignment]
    with pytest.raises(InputError, match=f"--device {device}: "):
        made._require_all(made._session({}, threads=1))


def test_where_the_gpu_does_not_start_after_all_the_cpu_answers_and_says_so(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: sessions.Session, batch_size: int) -> None:
        raise InputError("no memory")

    monkeypatch.setattr(sessions, "missing", lambda device: None)
    monkeypatch.setattr(sessions.Session, "_on_gpu", broken)
    classifier = Classifier(exported())
    assert classifier.note == "fp32 on cpu (not cuda: no memory)"
    assert (classifier.session.device, classifier.batch_size) == ("cpu", 16)
    with pytest.raises(InputError, match="no memory"):
        Classifier(exported(), "cuda")


def test_engines_of_two_networks_are_kept_apart(exported: Exported) -> None:
    """TensorRT tells the engines that it keeps apart by names in the graph, which are the same after training anew."""
    content, description = read_model(exported())
    one, two = (sessions._tensorrt_options(c, description, 0) for c in (content, content + b" "))
    assert one["trt_engine_cache_path"] != two["trt_engine_cache_path"]
    assert one == sessions._tensorrt_options(content, description, 0)


def test_assignment_counts_operations_on_pixels(exported: Exported) -> None:
    content, description = read_model(exported())
    session = sessions.Session(content, description, "cpu", 1)
    assert "Conv" in {name.removeprefix("Fused") for name in on_cpu(session._session({}, threads=1))}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_answers_as_the_cpu_does(exported: Exported, album: Path) -> None:
    paths = [album / f"{i}.png" for i in range(11)]
    _, expected = Classifier(exported(), "cpu")(paths)
    classifier = Classifier(exported(), "cuda", batch_size=4)
    assert classifier.note == "fp32 on cuda"
    for _ in range(3):  # recorded, then replayed
        np.testing.assert_allclose(classifier(paths)[1], expected, atol=2e-2)  # the GPU resizes in an order of its own


def test_help_is_fast_and_classifier_is_where_it_is_looked_for(exported: Exported) -> None:
    import engine.infer

    assert engine.infer.Classifier is Classifier
    loaded = subprocess.run(
        [sys.executable, "-c", "import engine.infer, engine.export, sys; print([m for m in ('torch', 'onnxruntime', "
         "'nvidia.dali', 'onnx', 'polars') if m in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "[]"


def test_several_processes_write_one_table(tmp_path: Path) -> None:
    """Each its part; after an interruption fewer go on, and what one was writing when it was killed is left out."""
    out, labels = tmp_path / "answers.jsonl", ["cat"]

    def answer(predictions: AnswerFile, *files: str) -> None:
        probabilities = np.full((len(files), 1), 0.5, np.float32)
        predictions.add(files, [["cat"]] * len(files), probabilities, [None] * len(files))

    for rank, files in enumerate((["a", "b"], ["c"], ["d"])):
        with AnswerFile(out, labels, "0123", False, rank) as predictions:
            answer(predictions, *files)
            assert predictions.rows == len(files)
    with (tmp_path / "answers.jsonl.0123.2.partial").open("a") as file:
        file.write('{"file": "e"')
    with AnswerFile(out, labels, "0123", True, 1) as second, AnswerFile(out, labels, "0123", True, 0) as first:
        assert first.done == {"a", "b", "c", "d"}
        answer(second, "e")
        assert (first.rows, second.rows) == (4, 1)
        first.finish()
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == ["a", "b", "c", "e", "d"]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def _answered(predictions: AnswerFile, *files: str, error: str | None = None) -> None:
    known = [] if error else [["cat"]] * len(files)
    predictions.add(files, known, np.full((len(known), 1), 0.5, np.float32), [error] * len(files))


def test_putting_the_parts_together_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the first process has the others' rows already: none of them is there twice afterwards."""
    out, labels = tmp_path / "answers.csv", ["cat"]
    with AnswerFile(out, labels, "0123", False, 1) as second, AnswerFile(out, labels, "0123", False) as first:
        _answered(first, "a")
        _answered(second, "b", error="empty file")
        with monkeypatch.context() as patch:
            patch.setattr(first, "_convert", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(InputError, match="No space left"):
                first.finish()
    with AnswerFile(out, labels, "0123", True) as first:
        assert first.done == {"a", "b"}
        assert (first.rows, first.unreadable) == (2, 1)
        first.finish()
    with out.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]


def test_parts_of_an_interrupted_run_are_not_put_to_another(tmp_path: Path) -> None:
    """Deleting one of them is not enough to begin anew."""
    out, labels = tmp_path / "answers.jsonl", ["cat"]
    with AnswerFile(out, labels, "0123", False, 1) as second, AnswerFile(out, labels, "0123", False) as first:
        _answered(first, "a")
        _answered(second, "b")
    with pytest.raises(InputError, match=r"0123\.partial, .*0123\.1\.partial is left from an interrupted run"):
        AnswerFile(out, labels, "0123", False)
    first.partial.unlink()
    with pytest.raises(InputError, match=r"0123\.1\.partial is left from an interrupted run"):
        AnswerFile(out, labels, "0123", False)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_part_may_go_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Fewer photographs than processes: who has none leaves while the first puts the file together."""
    out = tmp_path / "answers.jsonl"
    first, second = (AnswerFile(out, ["cat"], "0123", False, rank) for rank in (0, 1))
    _answered(first, "a")
    _answered(second, *"b"[:rows])
    if rows:  # after the first has read it
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: (second.partial.unlink(), replace(path, to)))
    else:  # after the first has seen that it is there
        listed = Path.glob
        monkeypatch.setattr(Path, "glob", lambda *given: (*listed(*given), second.partial.unlink())[:-1])
    first.finish()
    second.__exit__(None, None, None)
    assert len(out.read_text().splitlines()) == 1 + rows
