"""One ONNX file that says what it is and answers as the trained network does, or no file."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engine import export as exporting
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.classifier import Answers, Classifier
from engine.export import Arguments, export
from engine.metrics import scores
from engine.model_file import describe, read_model
from engine.parity import calibration_pictures, compare, thresholds_of_the_others
from engine.quantised import quantised
from engine.run import Run
from engine.thresholds import tuned_thresholds
from engine.to_onnx import to_onnx
from engine.trained import load_trained
from pipelines.errors import InputError
from pipelines.pack import Arguments as Packing
from pipelines.pack import pack
from pipelines.read import read_dataset
from tests.engine.conftest import LABELS, SIZE, looks_trained

Exported = Callable[..., Path]
STANDARD = {"", "ai.onnx"}


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_file_of_standard_operators_with_nothing_left_to_fold(exported: Exported) -> None:
    model = onnx.load(exported())
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= STANDARD
    assert {entry.domain for entry in model.opset_import} <= STANDARD
    assert not model.functions
    found = operators(exported())
    assert "BatchNormalization" not in found
    assert "Mul" not in found  # neither the blocks' scales nor the normalisation
    assert found.count("Conv") == 127
    assert found.count("Add") == 20  # one a block


def test_input_and_output_are_as_the_design_fixes_them(exported: Exported) -> None:
    for any_size in (False, True):
        graph = onnx.load(exported(any_size=any_size)).graph
        (given,), (answer,) = graph.input, graph.output
        sides = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
        assert (given.name, given.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
        assert sides == (["batch", "height", "width", 3] if any_size else ["batch", SIZE, SIZE, 3])
        assert (answer.name, answer.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
        assert [d.dim_param or d.dim_value for d in answer.type.tensor_type.shape.dim] == ["batch", len(LABELS)]


def test_metadata_is_all_that_inference_needs(exported: Exported) -> None:
    _, found = read_model(exported("int8"))
    assert found.labels == LABELS
    assert found.thresholds == (0.45, 0.5, 0.55)
    assert (found.image_size, found.any_size, found.precision) == (SIZE, False, "int8")
    assert (found.mean, found.std, found.run, found.epoch) == (127.5, 128.0, "run", 3)
    assert found.versions["torch"]


@pytest.mark.parametrize(
    ("precision", "any_size", "limit"),
    [("fp32", False, 1e-5), ("fp32", True, 2e-2), ("fp16", False, 1e-2), ("int8", False, 0.2)],
)
def test_answers_of_the_file_are_the_networks(
    exported: Exported, trained_run: Path, precision: str, any_size: bool, limit: float
) -> None:
    trained = load_trained(trained_run)
    dataset = read_dataset(Path(str(trained.config.data)), val_fraction=0.4)
    found = compare(*read_model(exported(precision, any_size)), trained, dataset)
    assert found.pictures == len(dataset.splits["val"]) >= 10
    assert found.largest <= limit
    assert found.mean <= limit / 4


def test_pictures_in_shards_are_compared_and_calibrated_with(
    exported: Exported, trained_run: Path, tmp_path: Path
) -> None:
    trained = load_trained(trained_run)
    pack(Packing(data=Path(str(trained.config.data)), shards=tmp_path / "shards"))
    dataset = read_dataset(tmp_path / "shards", val_fraction=0.4)
    found = compare(*read_model(exported()), trained, dataset)
    assert found.pictures == len(dataset.splits["val"])
    assert found.largest <= 1e-5
    pictures = calibration_pictures(dataset, trained.config)
    assert pictures.shape == (len(dataset.splits["train"]), SIZE, SIZE, 3)


def test_answers_that_are_no_numbers_are_not_taken_for_pictures_that_are_gone(
    exported: Exported, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision may overflow; and a picture may really be gone."""
    trained = load_trained(trained_run)
    dataset = read_dataset(Path(str(trained.config.data)), val_fraction=0.4)
    answer = Classifier.stream

    def nan(classifier: Classifier, paths: list[str]) -> Iterator[Answers]:
        for found in answer(classifier, paths):
            yield replace(found, probabilities=np.full_like(found.probabilities, np.nan))

    monkeypatch.setattr(Classifier, "stream", nan)
    with pytest.raises(InputError, match=r"in fp32 the answers for (\d+) of \1 pictures are not numbers"):
        compare(*read_model(exported()), trained, dataset)
    monkeypatch.setattr(Classifier, "stream", lambda classifier, paths: answer(classifier, [*paths[:-1], "/gone.png"]))
    with pytest.raises(InputError, match=r"images/\d+\.png can no longer be read"):
        compare(*read_model(exported()), trained, dataset)


def test_noise_is_not_taken_for_a_loss_of_accuracy() -> None:
    """At thresholds tuned on the very pictures any change costs micro-F1; at those of the other half it does not."""
    rng, own, others = np.random.default_rng(0), [], []
    for _ in range(20):
        targets = rng.random((300, 8)) < 0.2
        before = (0.3 + 0.2 * targets + 0.2 * rng.normal(size=targets.shape)).astype(np.float32)
        after = before + (0.01 * rng.normal(size=targets.shape)).astype(np.float32)
        for losses, thresholds in (
            (own, tuned_thresholds(before, targets)),
            (others, thresholds_of_the_others(before, targets)),
        ):
            losses.append(scores(before, targets, thresholds).micro_f1 - scores(after, targets, thresholds).micro_f1)
    assert np.mean(own) > 0.002
    assert abs(np.mean(others)) < 0.001
    assert thresholds_of_the_others(before[:1], targets[:1]).shape == (1, 8)


def test_int8_is_int8(exported: Exported) -> None:
    """Bytes go in as they are; each channel has a scale of its own; deep sums avoid the symmetric kernel."""
    model = onnx.load(exported("int8"))
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    maker = {node.output[0]: node for node in model.graph.node}
    assert "Cast" not in {node.op_type for node in model.graph.node}
    zeros = set()
    for conv in (node for node in model.graph.node if node.op_type == "Conv"):
        name, scale, zero = maker[conv.input[1]].input
        weights = constants[name]
        assert weights.dtype == np.int8
        assert constants[scale].shape == (len(weights),)
        assert weights.astype(int).max() - constants[zero].max() <= 127
        zeros |= set(constants[zero].tolist())
        deep = weights[0].size >= (256 if weights.shape[2:] == (1, 1) else 512)
        assert deep == (constants[zero] == -1).all()
    assert zeros == {0}  # this network is too narrow for the other kind


def test_deep_convolutions_compute_the_same_whatever_their_zero_point(tmp_path: Path) -> None:
    """A network wide enough for both kinds: int8 answers stay near."""
    import onnxruntime as ort

    model = to_onnx(looks_trained(4, 0.5), 75)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 75, 75, 3), dtype=np.uint8)
    made = quantised(model, pictures)
    zeros = {c.name: onnx.numpy_helper.to_array(c) for c in made.graph.initializer if c.name.endswith("zero_point")}
    assert {int(z.min()) for z in zeros.values() if z.dtype == np.int8} == {-1, 0}

    def answers(m: onnx.ModelProto) -> NDArray[np.float32]:
        (found,) = ort.InferenceSession(m.SerializeToString()).run(None, {"images": pictures})
        return np.asarray(found)

    assert np.abs(answers(made) - answers(model)).mean() < 0.03


def test_a_file_that_answers_otherwise_is_not_written(
    exported: Exported, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported())
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Gemm")
    weight = next(constant for constant in model.graph.initializer if constant.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), name))
    monkeypatch.setattr(exporting, "_candidates", lambda *_: [model])
    with pytest.raises(InputError, match="differ from the network's"):
        export(Arguments(run=trained_run, out=tmp_path / "m.onnx"))
    assert not list(tmp_path.glob("*.onnx*"))


def test_int8_that_costs_too_much_keeps_its_first_layer_and_then_is_refused(
    exported: Exported,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.to_onnx.to_onnx", lambda *_: onnx.load(exported()))
    with pytest.raises(InputError, match=r"int8 costs .* points of micro-F1, more than -100; .* nothing was written"):
        export(Arguments(run=trained_run, out=tmp_path / "m.onnx", precision="int8", max_f1_loss=-100))
    said = capsys.readouterr().out
    assert said.index("calibrating on") < said.index("first layer kept in fp32")
    assert not list(tmp_path.iterdir())


def copied(run: Path, to: Path) -> Run:
    shutil.copytree(run, to)
    return Run(to)


def test_bad_input_is_told_in_a_line(trained_run: Path, tmp_path: Path) -> None:
    def says(what: str, **changes: object) -> None:
        with pytest.raises(InputError, match=what) as error:
            export(Arguments(**{"run": trained_run, **changes}))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    says("no run in it", run=tmp_path)
    says("must end in .onnx", out=tmp_path / "m.pt")
    says("there is no folder", out=tmp_path / "nowhere" / "m.onnx")
    says("moved: no such folder", data=tmp_path / "moved")
    gone = copied(trained_run, tmp_path / "gone")
    gone.config.write_text(json.dumps({**gone.read_config(), "data": str(tmp_path / "moved")}))
    says("data set of the run is not there; --data DIR says", run=gone.folder)
    says("triton-server", any_size=True, triton_server=tmp_path)
    damaged = copied(trained_run, tmp_path / "damaged")
    damaged.best.write_bytes(damaged.best.read_bytes()[:1000])
    says("not a usable checkpoint", run=damaged.folder)
    other = copied(trained_run, tmp_path / "other")
    state = load_checkpoint(other.best)
    save_checkpoint(other.best, {**state, "labels": ["a", "b", "c"]})
    says("other labels", run=other.folder)
    other.thresholds.write_text(json.dumps({"bird": 0.5}))
    save_checkpoint(other.best, state)
    says("threshold for each label", run=other.folder)


def test_an_unfinished_run_has_thresholds_of_a_half(trained_run: Path, tmp_path: Path) -> None:
    run = copied(trained_run, tmp_path / "unfinished")
    assert not load_trained(run.folder).untuned
    run.thresholds.unlink()
    trained = load_trained(run.folder)
    assert trained.untuned
    assert trained.description("fp32", False).thresholds == (0.5, 0.5, 0.5)


def test_full_disk(exported: Exported, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(exported())

    def full(self: Path, _: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_candidates", lambda *_: [model])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"m\.onnx: cannot be written: No space left"):
        export(Arguments(run=trained_run, out=tmp_path / "m.onnx"))
    assert not list(tmp_path.iterdir())


def test_metadata_survives_and_is_checked(tmp_path: Path, exported: Exported) -> None:
    content, description = read_model(exported())
    model = onnx.load_model_from_string(content)
    renamed = replace(description, labels=("größe", 'a "b"', "c|d,e"))
    describe(model, renamed)
    onnx.save(model, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx")[1] == renamed
    for damage in ("[0.5", "[0.5, 0.5]", "0.5"):
        next(entry for entry in model.metadata_props if entry.key == "thresholds").value = damage
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError, match="metadata is damaged"):
            read_model(tmp_path / "m.onnx")
