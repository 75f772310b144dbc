"""Loaders of the same pictures with the same kind of augmentation: ours, torchvision's, timm's, and a plain DALI chain.

Each gives a function that makes one pass over the pictures, decoded from files, letterboxed, flipped, rotated by ±15°,
cropped, jittered in brightness, contrast and hue, and normalised to float32, in batches; nothing is left to do when it
returns. Workers of torch.utils.data stay alive between passes. timm crops the picture as it is, without a letterbox.
"""

import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.augment import MEAN, STD, PictureSpec
from pipelines.draws import ANGLE, BRIGHTNESS, CONTRAST, HUE, SMALLEST_CROP, draw
from pipelines.loader import PictureStream, Request

Pass = Callable[[], int]  # gives the number of pictures

WORKERS = 2
AREA = (SMALLEST_CROP**2, 1.0)
SHIFT, SCALE = MEAN / 255, STD / 255


def ours(files: Sequence[str], size: int, batch: int) -> Pass:
    """`pipelines.loader` as training on a CPU uses it, but for the memory of decoded pictures: each pass decodes."""
    return _ours(files, size, batch, PictureSpec(size, threads=WORKERS))


def ours_on_gpu(files: Sequence[str], size: int, batch: int) -> Pass:
    """The same where training on a GPU has it: decoded and drawn there, all cores beside it."""
    passed = _ours(files, size, batch, PictureSpec(size, "gpu", threads=len(os.sched_getaffinity(0))))

    def once() -> int:
        pictures = passed()
        torch.cuda.synchronize()
        return pictures

    return once


def _ours(files: Sequence[str], size: int, batch: int, spec: PictureSpec) -> Pass:
    epochs = count()

    def once() -> int:
        epoch = next(epochs)

        def request(number: int) -> Request | None:
            rows = np.arange(len(files))[number * batch : (number + 1) * batch]
            return Request(rows, draw(0, epoch, number * batch, batch, size)) if len(rows) == batch else None

        return sum(len(b.rows) for b in PictureStream(Path("/"), files, request, batch, spec).batches())

    return once


class _Pictures(torch.utils.data.Dataset[Any]):
    def __init__(self, files: Sequence[str], read: Callable[[str], Any], transform: Callable[[Any], Any]) -> None:
        self.files, self.read, self.transform = files, read, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.read(self.files[i])), i


def torchvision_v2(files: Sequence[str], size: int, batch: int) -> Pass:
    """torchvision.io's decoder, transforms v2 on uint8 tensors, a DataLoader with two workers."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    def letterbox(image: torch.Tensor) -> torch.Tensor:
        longest = max(image.shape[1:])
        if longest > size:
            sides = [max(1, round(side * size / longest)) for side in image.shape[1:]]
            image = v2.functional.resize(image, sides, antialias=True)
        height, width = image.shape[1:]
        left, top = (size - width) // 2, (size - height) // 2
        padded: torch.Tensor = v2.functional.pad(image, [left, top, size - width - left, size - height - top])
        return padded

    transform = v2.Compose(
        [
            letterbox,
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(ANGLE, v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size, AREA, (1.0, 1.0), antialias=True),
            v2.ColorJitter(BRIGHTNESS, CONTRAST, hue=HUE / 360),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([SHIFT] * 3, [SCALE] * 3),
        ]
    )
    dataset = _Pictures(files, lambda name: decode_image(name, ImageReadMode.RGB), transform)
    loader = torch.utils.data.DataLoader(dataset, batch, num_workers=WORKERS, drop_last=True, persistent_workers=True)
    return lambda: sum(len(rows) for _, rows in loader)


def timm_loader(files: Sequence[str], size: int, batch: int) -> Pass:
    """timm's training transform, with the rotation it has not, and its loader with two workers."""
    from PIL import Image
    from timm.data import create_loader, create_transform
    from torchvision.transforms import InterpolationMode, RandomRotation

    dataset: Any = _Pictures(files, lambda name: Image.open(name).convert("RGB"), lambda image: image)
    loader = create_loader(
        dataset,
        (3, size, size),
        batch,
        is_training=True,
        use_prefetcher=False,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    made = create_transform(
        (3, size, size),
        is_training=True,
        scale=AREA,
        ratio=(1.0, 1.0),
        color_jitter=(BRIGHTNESS, CONTRAST, 0, HUE / 360),
        interpolation="bilinear",
        mean=(SHIFT,) * 3,
        std=(SCALE,) * 3,
    )
    made.transforms.insert(1, RandomRotation(ANGLE, InterpolationMode.BILINEAR))  # of the crop, which is smaller
    dataset.transform = made
    return lambda: sum(len(rows) for _, rows in loader)


def dali_chain(files: Sequence[str], size: int, batch: int) -> Pass:
    """One DALI operator a step, on the CPU, with as many threads."""
    from nvidia.dali import Pipeline, fn, types

    batches = len(files) // batch

    def paths(number: int) -> list[Any]:
        if number >= batches:
            raise StopIteration  # a pass ends: nothing is made ahead for the next, in another's time
        return [np.frombuffer(name.encode(), np.uint8) for name in files[number * batch : (number + 1) * batch]]

    with Pipeline(batch_size=batch, num_threads=WORKERS, device_id=None) as pipeline:
        encoded = fn.io.file.read(fn.external_source(paths, batch=True, dtype=types.UINT8, ndim=1))
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        if _largest(files) > size:
            image = fn.resize(image, size=[size, size], mode="not_larger", antialias=True)
        image = fn.crop(image, crop=(size, size), out_of_bounds_policy="pad", fill_values=0)
        image = fn.rotate(image, angle=fn.random.uniform(range=(-ANGLE, ANGLE)), keep_size=True, fill_value=0)
        image = fn.random_resized_crop(image, size=size, random_area=AREA, random_aspect_ratio=(1.0, 1.0))
        image = fn.color_twist(
            image,
            brightness=fn.random.uniform(range=(1 - BRIGHTNESS, 1 + BRIGHTNESS)),
            contrast=fn.random.uniform(range=(1 - CONTRAST, 1 + CONTRAST)),
            hue=fn.random.uniform(range=(-HUE, HUE)),
        )
        image = fn.crop_mirror_normalize(
            image,
            mirror=fn.random.coin_flip(),
            mean=[MEAN] * 3,
            std=[STD] * 3,
            output_layout="HWC",
            dtype=types.FLOAT,
        )
        pipeline.set_outputs(image)
    pipeline.build()

    def once() -> int:
        made = sum(len(pipeline.run()[0]) for _ in range(batches))
        pipeline.reset()
        return made

    return once


def _largest(files: Sequence[str]) -> int:
    from PIL import Image

    return max(max(Image.open(name).size) for name in files[:32])


PEERS: dict[str, Callable[[Sequence[str], int, int], Pass]] = {
    "torchvision v2": torchvision_v2,
    "timm": timm_loader,
    "DALI, an operator a step": dali_chain,
}
