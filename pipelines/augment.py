"""The picture graph: decode, letterbox, augment, normalise. Training, evaluation and inference share it.

One graph for CPU and GPU: `Placement` decides where the decoder and everything after it run.
"""

from dataclasses import dataclass
from typing import Any, Literal

MEAN, STD = 127.5, 128.0  # of each channel, pictures being 0 to 255

Placement = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """What the network is given.

    Attributes:
        size: side of the square picture in pixels.
        placement: "cpu", or "gpu": decoding shared between both ("mixed") and the rest on the GPU.
        half: float16 instead of float32.
        threads: DALI's threads for reading and decoding.
        device_id: number of the GPU.
    """

    size: int
    placement: Placement = "cpu"
    half: bool = False
    threads: int = 2
    device_id: int = 0


def decode(path: Any, placement: Placement) -> Any:
    """Paths (uint8 text) to RGB pictures [H, W, 3], turned as their EXIF data says; alpha is dropped."""
    from nvidia.dali import fn, types

    device = "mixed" if placement == "gpu" else "cpu"
    return fn.decoders.image(fn.io.file.read(path), device=device, output_type=types.RGB)


def jitter_colour(image: Any, brightness: Any, contrast: Any, hue: Any) -> Any:
    """Brightness and contrast factors and a turn of the hue in degrees, a picture."""
    from nvidia.dali import fn

    return fn.color_twist(image, brightness=brightness, contrast=contrast, hue=hue)


def shrink(image: Any, size: int) -> Any:
    """Resized, filtered when shrinking, so that the longer side has `size` pixels."""
    from nvidia.dali import fn, types

    return fn.resize(image, size=[size, size], mode="not_larger", interp_type=types.INTERP_LINEAR, antialias=True)


def pad(image: Any, size: int) -> Any:
    """Black borders to size × size, the picture in the middle."""
    from nvidia.dali import fn

    return fn.crop(image, crop=(size, size), out_of_bounds_policy="pad", fill_values=0)


def warp(image: Any, matrix: Any, size: int) -> Any:
    """Rotation, crop and flip in one bilinear pass; black where the picture ends."""
    from nvidia.dali import fn

    return fn.warp_affine(image, matrix=matrix, size=(size, size), fill_value=0, inverse_map=True)


def normalise(image: Any, half: bool) -> Any:
    """(value − mean) / std in float, rows of pixels with their channels together."""
    from nvidia.dali import fn, types

    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
        mean=[MEAN] * 3,
        std=[STD] * 3,
    )


def picture_graph(path: Any, numbers: tuple[Any, Any, Any, Any] | None, spec: PictureSpec) -> Any:
    """Paths to normalised pictures [size, size, 3].

    Args:
        path: DALI node of paths.
        numbers: DALI nodes of matrix, brightness, contrast and hue of `draws.Draws`; None: no augmentation.
        spec: size, placement and type.
    """
    image = shrink(decode(path, spec.placement), spec.size)
    if numbers is None:
        return normalise(pad(image, spec.size), spec.half)
    matrix, brightness, contrast, hue = numbers
    image = pad(jitter_colour(image, brightness, contrast, hue), spec.size)  # colour first: borders stay black
    return normalise(warp(image, matrix, spec.size), spec.half)
