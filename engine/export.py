"""python -m engine.export: a trained network as one ONNX file that classifies photographs by itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from engine import command
from engine.model_file import Precision
from pipelines.errors import InputError

if TYPE_CHECKING:
    from engine.trained import Trained
    from pipelines.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes a run's best network as an ONNX file and checks it against the trained network on real pictures."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    out: Path | None = None
    """The file; by default in the run's folder."""
    precision: Precision = "fp32"
    """fp32; fp16: for GPUs; int8: for CPUs, calibrated on training pictures, its cost in micro-F1 measured."""
    any_size: bool = False
    """Take pictures of any size; the letterbox is in the file."""
    data: Path | None = None
    """Folder of the data set, where it is no longer where the run found it."""
    max_f1_loss: float = 0.5
    """Points of micro-F1 that int8 may cost; export fails where it costs more."""
    triton_server: Path | None = None
    """Folder of a model repository for NVIDIA's Triton Inference Server, which the file is put into as well."""


def main() -> int:
    """Parses the command line and exports; the exit status."""
    return export(command.parse(Arguments, "python -m engine.export"))


def export(arguments: Arguments) -> int:
    """Exports as the command line says; the exit status.

    Raises:
        InputError: bad input, or a file that does not answer as the trained network does; told in one line.
    """
    from engine.trained import load_trained
    from pipelines.progress import say

    out = _out(arguments)
    trained = load_trained(arguments.run)
    if trained.untuned:
        say(f"thresholds 0.5: the run has not finished and has none for epoch {trained.epoch}")
    dataset = _dataset(arguments, trained)
    for model in _candidates(arguments, trained, dataset):
        content = _checked_bytes(model, out)
        objection = _objection(arguments, trained, dataset, content)
        if objection is None:
            break
    else:
        raise InputError(f"{objection}; nothing was written")
    _write(out, content)
    opset = model.opset_import[0].version
    say(f"{out}: {arguments.precision}, {len(content) / 1e6:.1f} MB, ONNX opset {opset}, {len(trained.labels)} labels")
    if arguments.triton_server is not None:
        from engine.triton_server import write_repository

        folder = write_repository(arguments.triton_server, content, trained.description(arguments.precision, False))
        say(f"{folder}: for Triton Inference Server; tritonserver --model-repository={arguments.triton_server}")
    return command.OK


def _out(arguments: Arguments) -> Path:
    """The file to write.

    Raises:
        InputError: options that do not go together, or a name that is not an ONNX file's.
    """
    if arguments.any_size and arguments.triton_server is not None:
        raise InputError("--triton-server takes letterboxed pictures, which --any-size files do not")
    if arguments.out is None:
        precision = "" if arguments.precision == "fp32" else f"-{arguments.precision}"
        return arguments.run / f"model{precision}{'-any-size' if arguments.any_size else ''}.onnx"
    if arguments.out.suffix != ".onnx":
        raise InputError(f"--out {arguments.out}: the file's name must end in .onnx")
    if not arguments.out.absolute().parent.is_dir():
        raise InputError(f"--out {arguments.out}: there is no folder {arguments.out.absolute().parent}")
    return arguments.out


def _dataset(arguments: Arguments, trained: "Trained") -> "Dataset":
    """The data set of the run.

    Raises:
        InputError: it is no longer there, or has other labels.
    """
    from engine.data import data_of_run, with_validation_of
    from engine.run import Run
    from pipelines.progress import say

    run = Run(arguments.run)
    config = replace(trained.config, allow_bad=True)  # what has gone since is no reason to export nothing
    dataset = data_of_run(config, arguments.data, trained.config.layout, run.rejected_files())
    if dataset.labels != trained.labels:
        raise InputError(f"{dataset.root}: has other labels than the run was trained for")
    if dataset.fingerprint() != trained.fingerprint:
        say(f"note: {dataset.root} has changed since the run was trained")
        for line in dataset.left_out():
            say(line)
        dataset = with_validation_of(run, dataset)
    return dataset


def _candidates(arguments: Arguments, trained: "Trained", dataset: "Dataset") -> Iterator[Any]:
    """The network as an ONNX model with its metadata; in int8 also one that costs less accuracy and more time."""
    from engine.model_file import describe
    from engine.to_onnx import to_onnx
    from pipelines.progress import bar, say

    description = trained.description(arguments.precision, arguments.any_size)
    half, size = arguments.precision == "fp16", trained.config.image_size
    with bar("translating"):
        model = to_onnx(trained.network, size, half, arguments.any_size)
    if arguments.precision != "int8":
        describe(model, description)
        yield model
        return
    from engine.parity import calibration_pictures
    from engine.quantised import quantised

    pictures = calibration_pictures(dataset, trained.config)
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    for kept in ([], [first]):
        say(f"int8: calibrating on {len(pictures)} training pictures{', first layer kept in fp32' if kept else ''}")
        with bar("calibrating"):
            made = quantised(model, pictures, kept)
        describe(made, description)
        yield made


def _checked_bytes(model: Any, out: Path) -> bytes:
    """The file's content, after ONNX's own check.

    Raises:
        InputError: 2 GB or more, the most that one file can have.
    """
    import onnx

    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise InputError(f"{out}: the network is larger than the 2 GB that one ONNX file can have")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _objection(arguments: Arguments, trained: "Trained", dataset: "Dataset", content: bytes) -> str | None:
    """Compares the file's answers with the trained network's and says how they differ; what is wrong, if anything."""
    from engine.parity import TOLERANCE, compare
    from pipelines.progress import bar, say

    description = trained.description(arguments.precision, arguments.any_size)
    with bar("comparing with the trained network") as advance:
        found = compare(content, description, trained, dataset, lambda done, total: advance(done, total, ""))
    say(found.line())
    if arguments.precision == "int8":
        if found.f1_loss <= arguments.max_f1_loss:
            return None
        return (
            f"int8 costs {found.f1_loss:.2f} points of micro-F1, more than {arguments.max_f1_loss:g}; "
            f"--max-f1-loss allows more, --precision fp32 costs none"
        )
    limit = TOLERANCE[arguments.precision, arguments.any_size]
    if found.largest <= limit:
        return None
    return f"the file's probabilities differ from the network's by {found.largest:.2g}, {limit:g} being allowed"


def _write(out: Path, content: bytes) -> None:
    from pipelines.cache import replace_file

    try:
        with replace_file(out) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    command.main(main)
