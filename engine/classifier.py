"""Photographs to labels, in Python: an ONNX file of ours as a function.

classifier = Classifier("model.onnx")
labels, probabilities = classifier(["a.jpg", "b.jpg"])
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.model_file import Description, read_model
from engine.session import Device, Session, decide
from pipelines.augment import PictureSpec
from pipelines.errors import InputError
from pipelines.inference import Letterbox, Photographs

Image = NDArray[np.uint8] | Any  # or a PIL image


@dataclass(frozen=True, slots=True)
class Answers:
    """Of some photographs, in their order.

    Attributes:
        numbers: of the photographs.
        readable: of those that `probabilities` [len(readable), labels] has rows for.
        errors: why the others could not be read, by their number.
    """

    numbers: range
    readable: list[int]
    probabilities: NDArray[np.float32]
    errors: dict[int, str]


class Classifier:
    """A network that answers photographs with labels.

    Args:
        path: an ONNX file of engine.export.
        device: "auto" takes the GPU where it works; `note` says what it took.
        batch_size: photographs that go through the network together; by default 16 on a CPU, 64 on a GPU.
        threshold: probability from which on a label is decided; by default each label's own, from the file.

    Raises:
        InputError: a file that is damaged or not ours, or a device that does not work.
    """

    def __init__(
        self, path: str | Path, device: Device = "auto", batch_size: int | None = None, threshold: float | None = None
    ) -> None:
        self._prepare(*read_model(Path(path)), device, batch_size, threshold, 0)

    @classmethod
    def of(
        cls,
        content: bytes,
        description: Description,
        device: Device = "auto",
        batch_size: int | None = None,
        threshold: float | None = None,
        number: int = 0,
    ) -> "Classifier":
        """From the content of a file; `number` is that of the GPU."""
        made = cls.__new__(cls)
        made._prepare(content, description, device, batch_size, threshold, number)
        return made

    def _prepare(
        self,
        content: bytes,
        description: Description,
        device: Device,
        batch_size: int | None,
        threshold: float | None,
        number: int,
    ) -> None:
        self.description = description
        place, why = decide(device, description)
        self.batch_size = batch_size or (16 if place == "cpu" else 64)
        try:
            self.session = Session(content, description, place, self.batch_size, number)
        except InputError as error:
            if device != "auto" or place == "cpu":
                raise
            place, why = "cpu", f"not {place}: {error}"
            self.batch_size = batch_size or 16
            self.session = Session(content, description, place, self.batch_size)
        self.note = f"{description.precision} on {place}{f' ({why})' if why else ''}"
        self.labels = description.labels
        own = np.array(description.thresholds, np.float32)
        self.thresholds = own if threshold is None else np.full_like(own, threshold)
        self._letterbox: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.uint8]] | None = None

    def __call__(
        self, images: str | Path | Image | Sequence[str | Path | Image]
    ) -> tuple[list[list[str]], NDArray[np.float32]]:
        """Labels and probabilities of photographs.

        Args:
            images: paths, uint8 RGB arrays [H, W, 3] of any sizes, PIL images, one array [N, H, W, 3]; or one of them.

        Returns:
            The decided labels of each photograph, and all probabilities, float32 [N, labels] in the order of `labels`.

        Raises:
            InputError: a photograph that cannot be read.
            TypeError, ValueError: something that is no photograph.
        """
        given = _listed(images)
        if all(isinstance(image, str | Path) for image in given):
            answers = list(self.stream([os.fspath(path) for path in given]))
            for number, reason in (item for found in answers for item in found.errors.items()):
                raise InputError(f"{given[number]}: {reason}")
            parts = [found.probabilities for found in answers]
        else:
            arrays = [_pixels(image) for image in given]
            parts = [self._answer(arrays[i : i + self.batch_size]) for i in range(0, len(arrays), self.batch_size)]
        probabilities = np.concatenate([np.empty((0, len(self.labels)), np.float32), *parts])
        return self.decided(probabilities), probabilities

    def decided(self, probabilities: NDArray[np.float32]) -> list[list[str]]:
        """Names of the labels whose probability reaches their threshold, for each row of [N, labels]."""
        return [[self.labels[i] for i in np.flatnonzero(row)] for row in probabilities >= self.thresholds]

    def stream(self, paths: Sequence[str]) -> Iterator[Answers]:
        """Answers as they come; the next photographs are decoded meanwhile."""
        spec = self._spec()
        any_size = self.description.any_size
        for found in Photographs(paths, self.batch_size, spec, letterboxed=not any_size):
            probabilities = np.empty((0, len(self.labels)), np.float32)
            if found.images is not None:
                pictures = [found.images[i] for i in range(len(found.readable))] if any_size else []
                parts = [self.session(self._handed_over(p)[None]) for p in pictures]
                probabilities = (
                    np.concatenate(parts) if any_size else self.session(self._handed_over(found.images.as_tensor()))
                )
            yield Answers(found.numbers, found.readable, probabilities, found.errors)

    def _spec(self) -> PictureSpec:
        size, number = self.description.image_size, self.session.number
        if self.session.device == "cpu":
            return PictureSpec(size, "cpu", threads=len(os.sched_getaffinity(0)))
        from engine.device import threads_beside_gpu

        return PictureSpec(size, "gpu", threads=threads_beside_gpu(), device_id=number)

    def _handed_over(self, tensor: Any) -> Any:
        """DALI's tensor as what the session takes, without a copy."""
        if self.session.device == "cpu":
            return np.asarray(tensor)
        import torch

        return torch.utils.dlpack.from_dlpack(tensor)

    def _answer(self, arrays: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if self.description.any_size:
            return np.concatenate([self.session(array[None]) for array in arrays])
        if self._letterbox is None:
            size, threads = self.description.image_size, len(os.sched_getaffinity(0))
            self._letterbox = Letterbox(size, self.batch_size, threads)
        return self.session(self._letterbox(arrays))


def _listed(images: Any) -> list[Any]:
    if isinstance(images, str | Path) or hasattr(images, "convert"):
        return [images]
    if isinstance(images, np.ndarray):
        if images.ndim not in (3, 4):
            raise ValueError(f"images: an array of shape {images.shape}; [H, W, 3] or [N, H, W, 3] is taken")
        return [images] if images.ndim == 3 else list(images)
    return list(images)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """A uint8 RGB array [H, W, 3] of a PIL image, turned as its EXIF data says, or of an array."""
    if hasattr(image, "convert"):
        image = _of_pil(image)
    if isinstance(image, str | Path):
        raise TypeError("images: paths and pictures; one or the other is taken at a time")
    if not isinstance(image, np.ndarray):
        raise TypeError(f"images: {type(image).__name__}; a path, a uint8 array [H, W, 3] or a PIL image is taken")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"images: {image.dtype} of shape {image.shape}; uint8 [H, W, 3] is taken")
    return np.ascontiguousarray(image)


def _of_pil(image: Any) -> NDArray[np.uint8]:
    """RGB of a PIL image as the decoder reads its file; 16 bits are scaled, which PIL would cut off at 255."""
    from PIL import Image, ImageOps

    if image.mode in ("I", "F"):
        raise ValueError(f"images: a PIL image of mode {image.mode}; numbers of 32 bits are not supported")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return np.array(image.convert("RGB"))
