"""The picture graph: decode, letterbox, augment, normalise. Training, evaluation and inference share it.

Validation and inference see `letterbox`. Training sees the same square through a map and a colour matrix drawn anew
each time, by `fused` on the CPU, one compiled pass, and by `separate` on a GPU, DALI's own operators in the fewest
launches; both draw the same picture.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

log = logging.getLogger("manylabel")

LARGEST = 178_956_970  # pixels of a picture; PIL too takes more for an attack or a mistake
DECODE_ERRORS = (RuntimeError, UnicodeDecodeError)  # the latter where DALI's message names a file that is not UTF-8
MEAN, STD = 127.5, 128.0  # of each channel, pictures being 0 to 255

Placement = Literal["cpu", "gpu"]
Pixel = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """What the network is given.

    Attributes:
        size: side of the square picture in pixels.
        placement: "cpu", or "gpu": decoding shared between both ("mixed") and the rest on the GPU.
        dtype: of the normalised pictures; on the CPU those of training may stay float32, of evaluation they do.
        threads: DALI's threads for reading, decoding and augmentation.
        device_id: number of the GPU.
        kept: side in pixels that pictures to augment are shrunk to on the CPU before anything else, where that is not
            `size`: what `memory` keeps then serves streams of several sizes, and gives what a file gives.
    """

    size: int
    placement: Placement = "cpu"
    dtype: Pixel = "float32"
    threads: int = 2
    device_id: int = 0
    kept: int | None = None


def decode(path: Any, placement: Placement) -> Any:
    """Paths (uint8 text) to RGB pictures [H, W, 3]; see `decode_bytes`."""
    from nvidia.dali import fn

    return decode_bytes(fn.io.file.read(path), placement)


def decode_bytes(encoded: Any, placement: Placement) -> Any:
    """Files' contents to RGB pictures [H, W, 3], turned as their EXIF data says; alpha is dropped.

    A picture of more than LARGEST pixels by its header is an error like a damaged one, before memory is taken for it.
    """
    from nvidia.dali import fn, types

    shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.INT64)
    fits = fn.cast(shape[0] * shape[1] <= LARGEST, dtype=types.INT32)
    encoded = fn.slice(encoded, end=fn.cast(encoded.shape()[0], dtype=types.INT32) * fits, axes=[0])
    device = "mixed" if placement == "gpu" else "cpu"
    return fn.decoders.image(encoded, device=device, output_type=types.RGB)


def letterbox(image: Any, size: int) -> Any:
    """The whole picture in a square of uint8 [size, size, 3]: what validation and inference see.

    Resized, filtered when shrinking, so that the longer side has `size` pixels; black borders around it.
    """
    from nvidia.dali import fn, types

    image = fn.resize(image, size=[size, size], mode="not_larger", interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop(image, crop=(size, size), out_of_bounds_policy="pad", fill_values=0)


def fused(image: Any, matrix: Any, colour: Any, spec: PictureSpec) -> Any:
    """Augmented and normalised pictures [size, size, 3] in one pass on the CPU.

    Args:
        image: uint8 [H, W, 3].
        matrix: float32 [2, 3], from output pixels to pixels of the letterboxed picture.
        colour: float32 [3, 4], a row an output channel: factors of red, green and blue, and what is added.
        spec: size and type: bfloat16, which comes as its bits in uint16, or else float32.
    """
    return _fused_operator(spec.size, spec.dtype == "bfloat16")(image, matrix, colour)


@cache
def _fused_operator(size: int, bfloat16: bool) -> Any:
    from nvidia.dali import types

    from pipelines import fused

    run = fused.run_bfloat16 if bfloat16 else fused.run_float32
    made = types.UINT16 if bfloat16 else types.FLOAT
    return _operator(run, fused.shapes_of_draws(size), [types.UINT8, types.FLOAT, types.FLOAT], [3, 2, 2], made)


def fit(image: Any, size: int) -> Any:
    """Pictures shrunk until no side is longer than `size` pixels, as `fused` does it; what `memory` keeps."""
    from nvidia.dali import fn

    return fn.reshape(_fit_operator(size)(image), layout="HWC")


@cache
def _fit_operator(size: int) -> Any:
    from nvidia.dali import types

    from pipelines import fused

    return _operator(fused.run_fit, fused.shapes_of_fit(size), [types.UINT8], [3], types.UINT8)


def _operator(run: Any, setup: Any, in_types: list[Any], ins_ndim: list[int], out_type: Any) -> Any:
    """DALI's operator for functions of `pipelines.fused`; what comes out has three dimensions."""
    from nvidia.dali.plugin.numba import NumbaFunction

    from pipelines.fused import RUN, SETUP, machine_code

    class Compiled(NumbaFunction):
        """What DALI would compile in each process anew is there already. By two methods of DALI 2.4's own."""

        codes = machine_code(RUN, run), machine_code(SETUP, setup)  # which last as long as the class does

        def _get_run_fn_cpu(self, *_: object) -> Any:
            return self.codes[0].address

        def _get_setup_fn_cpu(self, _: object) -> Any:
            return self.codes[1].address

    return Compiled(run, [out_type], in_types, [3], ins_ndim, setup)


def separate(image: Any, matrix: Any, colour: Any, size: int) -> Any:
    """What `fused` draws, as uint8 [size, size, 3], with DALI's own operators: three passes, on the CPU or a GPU.

    Colour comes before the map and stays unrounded, so that borders are black and only the end is clamped. A picture
    that is enlarged fades to black over the outer half of its outermost pixels, which in `letterbox` it does not.
    """
    from nvidia.dali import fn, math, types

    shape = image.shape(dtype=types.FLOAT, device="cpu")
    longest = math.max(shape[0], shape[1])
    shrunk = math.min(longest, float(size))
    image = fn.resize(
        image, size=fn.stack(shrunk, shrunk), mode="not_larger", interp_type=types.INTERP_LINEAR, antialias=True
    )
    image = fn.coord_transform(image, MT=colour, dtype=types.FLOAT)
    return fn.warp_affine(
        image,
        matrix=_to_picture(image.shape(dtype=types.FLOAT, device="cpu"), matrix, size),
        size=(size, size),
        fill_value=0,
        inverse_map=True,
        dtype=types.UINT8,
    )


def _to_picture(shape: Any, matrix: Any, size: int) -> Any:
    """The map from output pixels to those of a picture that is letterboxed, as `fused` composes it."""
    from nvidia.dali import fn, math

    sides = fn.stack(shape[1], shape[0])
    longest = math.max(shape[0], shape[1])
    step = longest / float(size)
    letterboxed = math.floor(sides * (float(size) / longest) + 0.5)
    middle = math.floor((size + 1.0 - letterboxed) / 2.0) + letterboxed / 2.0
    return fn.transforms.combine(
        matrix,
        fn.transforms.translation(offset=0.0 - middle),
        fn.transforms.scale(scale=fn.stack(step, step)),
        fn.transforms.translation(offset=sides / 2.0),
    )


def normalise(image: Any) -> Any:
    """(value − mean) / std in float32, rows of pixels with their channels together."""
    from nvidia.dali import fn, types

    return fn.crop_mirror_normalize(
        image,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[MEAN] * 3,
        std=[STD] * 3,
    )


def picture_graph(
    path: Any, numbers: tuple[Any, Any] | None, spec: PictureSpec, kept: Any = None, packed: bool = False
) -> tuple[Any, Any]:
    """Paths to pictures [size, size, 3], and the pictures that `memory` may keep for the next time.

    On the CPU they are normalised; for a GPU they are uint8, which `loader` hands to `kernels.normalize`: one launch
    from bytes to what the network computes in.

    Args:
        path: DALI node of paths.
        numbers: DALI nodes of matrix and colour of `draws.Draws`; None: no augmentation.
        spec: size, placement and type.
        kept: DALI nodes of whether a picture is there already, and of the picture; the path is then not read.
        packed: `path` holds files' contents instead.
    """
    compiled = spec.placement == "cpu" and fused_available()
    if kept is None:
        several = spec.kept is not None and spec.kept != spec.size
        still = _prepared(path, numbers is not None, spec, compiled and several, packed)
    else:
        there, picture = kept
        # Each picture of a batch goes its own way: a branch of DALI's, which it makes of statements only.
        if there:  # noqa: SIM108
            still = picture
        else:
            still = _prepared(path, numbers is not None, spec, compiled, packed)
    if numbers is None:
        image = still
    elif compiled:
        return fused(still, numbers[0], numbers[1], spec), still
    else:
        image = separate(still, numbers[0], numbers[1], spec.size)
    return image if spec.placement == "gpu" else normalise(image), still


def _prepared(path: Any, augmented: bool, spec: PictureSpec, shrunk: bool, packed: bool) -> Any:
    """Pictures before anything is drawn: whole where something will be, or shrunk, or else letterboxed."""
    image = decode_bytes(path, spec.placement) if packed else decode(path, spec.placement)
    if not augmented:
        return letterbox(image, spec.size)
    return fit(image, spec.kept or spec.size) if shrunk else image


@cache
def fused_available() -> bool:
    """Whether DALI's numba operator can be had; without it the separate operators draw, a tenth as fast."""
    try:
        import nvidia.dali.plugin.numba  # noqa: F401
    except Exception as error:  # numba refuses some versions of what it builds on with errors of its own
        log.warning("no compiled augmentation, DALI's slower operators instead: %s", error)
        return False
    return True
