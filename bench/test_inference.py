"""The network alone, and photographs to labels: ours beside what people run, at the study's 320×320 and full width.

`extra_info` has how many times as long a peer takes as ours in float32 and in int8, the two taken in turn.

The peers: torch as it comes (eager), the same in bfloat16 and channels-last, torch.compile, and for photographs PIL and
torchvision's transforms before ONNX Runtime with its defaults. All have the same weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.plain import PlainInceptionResNetV1
from bench.timing import median_ratio
from engine.classifier import Classifier
from engine.model import InceptionResNetV1
from engine.model_file import Description, Precision, describe
from engine.quantised import quantised
from engine.to_onnx import to_onnx
from pipelines.augment import MEAN, STD

SIZE, LABELS, BATCH, PHOTOGRAPHS, PAIRS = 320, 18, 16, 64, 7
REAL = Path(__file__).parents[2] / "shared" / "datasets" / "coco96" / "train2017"

Call = Callable[[], Any]


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain() -> PlainInceptionResNetV1:
    """With running statistics that are not the identity, lest folding them be free."""
    torch.manual_seed(0)
    network = PlainInceptionResNetV1(LABELS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def ours(plain: PlainInceptionResNetV1, pictures: NDArray[np.uint8]) -> dict[Precision, Classifier]:
    network = InceptionResNetV1(LABELS)
    network.load_state_dict(plain.state_dict())
    model = to_onnx(network.eval(), SIZE)
    models = {"fp32": model, "int8": quantised(model, pictures[:4])}
    made: dict[Precision, Classifier] = {}
    for precision, file in models.items():
        description = Description(
            labels=tuple(map(str, range(LABELS))),
            thresholds=(0.5,) * LABELS,
            image_size=SIZE,
            any_size=False,
            precision=precision,  # type: ignore[arg-type]
            mean=MEAN,
            std=STD,
            run="bench",
            epoch=0,
            versions={},
        )
        describe(file, description)
        made[description.precision] = Classifier.of(file.SerializeToString(), description, "cpu", BATCH)
    return made


def torch_call(network: torch.nn.Module, images: torch.Tensor) -> Call:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return torch.sigmoid(network(images))

    return call


def network_peer(name: str, plain: PlainInceptionResNetV1, pictures: NDArray[np.uint8]) -> Call:
    images = ((torch.from_numpy(pictures).float() - MEAN) / STD).permute(0, 3, 1, 2).contiguous()
    if name == "torch eager":
        return torch_call(plain, images)
    if name == "torch.compile":
        return torch_call(torch.compile(plain, dynamic=False), images)  # type: ignore[arg-type]
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    other = PlainInceptionResNetV1(LABELS).eval()
    other.load_state_dict(plain.state_dict())
    other.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return torch_call(other, images.to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_network_ours(
    benchmark: Any, ours: dict[Precision, Classifier], pictures: NDArray[np.uint8], precision: Precision
) -> None:
    answers = benchmark(lambda: ours[precision].session(pictures))
    assert answers.shape == (BATCH, LABELS)
    benchmark.extra_info["images/s"] = round(BATCH / benchmark.stats["median"], 1)
    if precision == "int8":
        fp32 = lambda: ours["fp32"].session(pictures)  # noqa: E731
        ratio = median_ratio(fp32, lambda: ours["int8"].session(pictures), "cpu", PAIRS)
        benchmark.extra_info["fp32/int8"] = round(ratio, 2)


@pytest.mark.parametrize(
    "name", ["torch eager", "torch eager channels-last", "torch bf16 channels-last", "torch.compile"]
)
def test_network_peers(
    benchmark: Any,
    plain: PlainInceptionResNetV1,
    ours: dict[Precision, Classifier],
    pictures: NDArray[np.uint8],
    name: str,
) -> None:
    peer = network_peer(name, plain, pictures)
    answers = benchmark(peer)
    benchmark.extra_info["images/s"] = round(BATCH / benchmark.stats["median"], 1)
    tolerance = 0.05 if "bf16" in name else 1e-3
    np.testing.assert_allclose(answers.float().numpy(), ours["fp32"].session(pictures), atol=tolerance)
    record(benchmark, peer, {precision: lambda c=c: c.session(pictures) for precision, c in ours.items()})  # type: ignore[misc]


def record(benchmark: Any, peer: Call, ours: dict[Precision, Call]) -> None:
    for precision, call in ours.items():
        benchmark.extra_info[f"× ours {precision}"] = round(median_ratio(peer, call, "cpu", PAIRS), 2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Real photographs of about 640×480 where they are there; else drawn ones of that size."""
    if REAL.is_dir():
        return sorted(map(str, REAL.glob("*.jpg")))[:PHOTOGRAPHS]
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(PHOTOGRAPHS):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return sorted(map(str, folder.glob("*.jpg")))


@pytest.fixture(scope="module")
def usual_way(plain: PlainInceptionResNetV1, photographs: list[str]) -> Call:
    """torchvision's transforms and a session with ONNX Runtime's defaults."""
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is the peer")
    transform = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.ToTensor(),
            transforms.Normalize([MEAN / 255] * 3, [STD / 255] * 3),
        ]
    )
    program = torch.onnx.export(
        plain,
        (torch.zeros(2, 3, SIZE, SIZE),),
        input_names=["input"],
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def call() -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(photographs), BATCH):
            opened = [Image.open(path).convert("RGB") for path in photographs[start : start + BATCH]]
            batch = torch.stack([transform(image) for image in opened])
            (logits,) = session.run(None, {"input": batch.numpy()})
            found += [np.flatnonzero(row).tolist() for row in 1 / (1 + np.exp(-logits)) >= 0.5]
        return found

    return call


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_photographs_ours(
    benchmark: Any, ours: dict[Precision, Classifier], photographs: list[str], precision: Precision
) -> None:
    labels, _ = benchmark(lambda: ours[precision](photographs))
    assert len(labels) == len(photographs)
    benchmark.extra_info["images/s"] = round(len(photographs) / benchmark.stats["median"], 1)


def test_photographs_usual_way(
    benchmark: Any, ours: dict[Precision, Classifier], photographs: list[str], usual_way: Call
) -> None:
    assert len(benchmark(usual_way)) == len(photographs)
    benchmark.extra_info["images/s"] = round(len(photographs) / benchmark.stats["median"], 1)
    record(benchmark, usual_way, {precision: lambda c=c: c(photographs) for precision, c in ours.items()})  # type: ignore[misc]
