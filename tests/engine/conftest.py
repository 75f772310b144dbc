"""A run that looks trained, and ONNX files of it, made once for all tests."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from filelock import FileLock

from engine.checkpoint import save_checkpoint
from engine.config import resolve
from engine.export import Arguments, export
from engine.model import InceptionResNetV1
from engine.run import Run, write_json
from pipelines.read import read_dataset
from tests.conftest import picture

SIZE, WIDTH = 80, 0.125
LABELS = ("bird", "cat", "dog")


def looks_trained(labels: int, width: float, seed: int = 0) -> InceptionResNetV1:
    """A network with weights, running statistics and answers of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = InceptionResNetV1(labels, width)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
        network.logits.weight.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on 40 pictures of sizes from 20×90 to 150×90."""
    folder = tmp_path_factory.mktemp("trained")
    root = folder / "data"
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        picture(i, 20 + 130 * i // 39, 90).save(root / "images" / f"{i}.png")
        rows.append(f"{i}.png,{LABELS[i % 3]}{' bird' if i % 4 == 0 else ''}\n")
    (root / "train.csv").write_text("image,labels\n" + "".join(rows))
    values = {"data": str(root), "image_size": SIZE, "width": WIDTH, "batch_size": 4, "val_fraction": 0.4}
    config = resolve("demo", values)
    run = Run(folder / "run")
    run.create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYLABEL_CACHE", str(folder / "cache"))
        dataset = read_dataset(root, val_fraction=0.4)
    write_json(run.config, {**config.values(), "labels": list(LABELS), "fingerprint": dataset.fingerprint()})
    network = looks_trained(len(LABELS), WIDTH)
    save_checkpoint(
        run.best, {"model": network.state_dict(), "labels": list(LABELS), "progress": {"epoch": 3}, "optimizer": {}}
    )
    write_json(run.thresholds, {"bird": 0.45, "cat": 0.5, "dog": 0.55})
    return run.folder


@pytest.fixture(scope="session")
def exported(
    trained_run: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[..., Path]:
    """The ONNX file of the run in a precision, exported when any of the processes that test first asks for it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(pytestconfig, "workerinput") else own) / "exported"
    folder.mkdir(exist_ok=True)

    def file(precision: str = "fp32", any_size: bool = False) -> Path:
        out = folder / f"{precision}-{any_size}.onnx"
        with FileLock(f"{out}.lock"), pytest.MonkeyPatch.context() as patch:
            if not out.exists():
                patch.setenv("MANYLABEL_CACHE", str(folder / "cache"))
                if precision == "int8":  # which starts from the same translation
                    translated = onnx.load(file())
                    patch.setattr("engine.to_onnx.to_onnx", lambda *_: translated)
                arguments = Arguments(
                    run=trained_run,
                    out=out,
                    precision=precision,
                    any_size=any_size,
                    max_f1_loss=100,  # type: ignore[arg-type]
                )
                assert export(arguments) == 0
        return out

    return file
