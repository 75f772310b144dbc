"""One network in all the forms that answer pictures: ours exported, and what people run instead, with its weights.

The peers: torch eager, as it comes and in channels-last and half precision, torch.compile, and ONNX Runtime with its
defaults, for photographs behind PIL and torchvision's transforms.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.plain import PlainInceptionResNetV1
from bench.timing import Call
from engine.classifier import Classifier
from engine.model import InceptionResNetV1
from engine.model_file import Description, Precision, describe
from engine.quantised import quantised
from engine.session import PROVIDERS, Place, missing
from engine.to_onnx import to_onnx
from pipelines.augment import MEAN, STD

DEVICE: Place = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16 if DEVICE == "cuda" else torch.bfloat16
LABELS = 18

Answer = Callable[[], NDArray[np.float32]]  # probabilities [batch, LABELS]

FORMS: dict[str, tuple[Precision, Place]] = {"ours": ("fp32", DEVICE)}
if DEVICE == "cuda":
    FORMS |= {"ours, float16": ("fp16", "cuda"), "ours, float16, TensorRT": ("fp16", "tensorrt")}
else:
    FORMS |= {"ours, int8": ("int8", "cpu")}


class Network:
    """A network with random weights, and a batch of pictures for it.

    Args:
        size, batch: of the pictures.
        width: factor on the network's channels.

    Attributes:
        pixels: uint8 [batch, size, size, 3].
        images: the same normalised, float32 [batch, 3, size, size], on the device.
    """

    def __init__(self, size: int, batch: int, width: float) -> None:
        torch.manual_seed(0)
        self.size, self.batch, self.width = size, batch, width
        self.plain = PlainInceptionResNetV1(LABELS, width).eval()
        for module in self.plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)  # not the identity, lest folding be free
        self.pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        images = ((torch.from_numpy(self.pixels).float() - MEAN) / STD).permute(0, 3, 1, 2)
        self.images = images.contiguous().to(DEVICE)
        self.exported, self.ours, self.runtime = cache(self._exported), cache(self._ours), cache(self._runtime)

    def _exported(self, half: bool) -> Any:
        """Our ONNX model."""
        network = InceptionResNetV1(LABELS, self.width)
        network.load_state_dict(self.plain.state_dict())
        return to_onnx(network.eval(), self.size, half)

    def _ours(self, name: str) -> Classifier:
        """A classifier of FORMS.

        Raises:
            InputError: it does not work on this machine.
        """
        precision, place = FORMS[name]
        file = self.exported(precision == "fp16")
        if precision == "int8":
            file = quantised(file, self.pixels[:4])
        description = Description(
            labels=tuple(map(str, range(LABELS))),
            thresholds=(0.5,) * LABELS,
            image_size=self.size,
            any_size=False,
            precision=precision,
            mean=MEAN,
            std=STD,
            run="bench",
            epoch=0,
            versions={},
        )
        describe(file, description)
        return Classifier.of(file.SerializeToString(), description, place, self.batch)

    def _runtime(self) -> Callable[[NDArray[np.float32] | ort.OrtValue], NDArray[np.float32]]:
        """The plain network in ONNX Runtime with its defaults, from float32 [N, 3, size, size], on a GPU too."""
        program = torch.onnx.export(
            self.plain,
            (torch.zeros(2, 3, self.size, self.size),),
            input_names=["input"],
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
        assert program is not None
        if DEVICE == "cuda":
            missing("cuda")  # loads the libraries
        session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=[PROVIDERS[DEVICE]])
        assert session.get_providers()[0] == PROVIDERS[DEVICE]  # it falls back to the CPU without an error

        outputs = [session.get_outputs()[0].name]

        def probabilities(images: NDArray[np.float32] | ort.OrtValue) -> NDArray[np.float32]:
            if isinstance(images, ort.OrtValue):
                logits = session.run_with_ort_values(outputs, {"input": images})[0].numpy()
            else:
                (logits,) = session.run(outputs, {"input": images})
            answer: NDArray[np.float32] = 1 / (1 + np.exp(-logits))
            return answer

        return probabilities

    def session(self, name: str) -> Answer:
        """The batch through a form of ours; on a GPU the pixels are there, as where it decodes."""
        session = self.ours(name).session
        pixels = self.pixels if DEVICE == "cpu" else torch.from_numpy(self.pixels).to(DEVICE)
        return lambda: session(pixels)

    def onnx_runtime(self) -> Answer:
        """The batch through it; on a GPU the pictures are there, as for the others."""
        images, run = self.images.cpu().numpy(), self.runtime()
        if DEVICE == "cuda":
            images = ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
        return lambda: run(images)

    def in_torch(self, dtype: torch.dtype = torch.float32, tuned: bool = False, compiled: bool = False) -> Answer:
        """The plain network in torch; `tuned`: in channels-last; `compiled`: with its weights taken for constants, on a
        GPU with its CUDA graphs."""
        layout = torch.channels_last if tuned else torch.contiguous_format
        network: Any = PlainInceptionResNetV1(LABELS, self.width).eval()
        network.load_state_dict(self.plain.state_dict())
        network.to(DEVICE, dtype, memory_format=layout)
        if compiled:
            options: dict[str, Any] = {"triton.cudagraphs": True} if DEVICE == "cuda" else {"freezing": True}
            network = torch.compile(network, dynamic=False, options=options)
        images = self.images.to(dtype, memory_format=layout)

        def call() -> NDArray[np.float32]:
            with torch.inference_mode():
                answer: NDArray[np.float32] = torch.sigmoid(network(images).float()).cpu().numpy()
            return answer

        return call

    def photographs(self, name: str, paths: Sequence[str]) -> Call:
        """Photographs to labels by a form of ours."""
        classifier = self.ours(name)
        return lambda: classifier(list(paths))

    def usual_way(self, paths: Sequence[str]) -> Call:
        """Photographs to labels by PIL, torchvision's transforms and ONNX Runtime with its defaults."""
        from torchvision import transforms

        transform = transforms.Compose(
            [
                transforms.Resize((self.size, self.size)),
                transforms.ToTensor(),
                transforms.Normalize([MEAN / 255] * 3, [STD / 255] * 3),
            ]
        )
        run = self.runtime()

        def call() -> list[list[int]]:
            found: list[list[int]] = []
            for start in range(0, len(paths), self.batch):
                opened = [Image.open(path).convert("RGB") for path in paths[start : start + self.batch]]
                batch = torch.stack([transform(image) for image in opened]).numpy()
                found += [np.flatnonzero(row).tolist() for row in run(batch) >= 0.5]
            return found

        return call
