"""Augmentation on the CPU in one pass over the pixels: an operator of the DALI graph, compiled by numba.

DALI calls it from its own threads, without the interpreter lock. A picture goes through as

    shrink  where it is larger than the network's input: with a triangular filter, as DALI's resize does it
    warp    output pixel → picture: letterbox, rotation, crop and flip in one affine map, bilinear, black outside
    colour  a 3×4 matrix on red, green, blue and 1, clamped to 0 … 255; borders stay black
    store   (value − mean) / std as float32, or as the bits of bfloat16

and none of these is written to memory as a picture of its own, but the shrunk one. The three channels of a pixel share
a 64-bit integer, 21 bits each: a product with a weight is one multiplication. Positions are rounded to 1/256 pixel.
`augment.separate` draws the same picture, within rounding, with DALI's own operators.

DALI's numba plugin would compile what leads from its pointers to arrays anew in each process, four seconds an operator.
Here that too is kept on the disk: `machine_code` of the functions at the end.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipelines.augment import MEAN, STD

Pixels = NDArray[np.uint8]
Packed = NDArray[np.uint64]  # a pixel: red + green · 2^21 + blue · 2^42
Matrix = NDArray[np.float32]

LANE = np.uint64((1 << 21) - 1)
BYTES = np.uint64(0xFF | 0xFF << 21 | 0xFF << 42)  # 8 bits of each lane
THIRTEEN = np.uint64(0x1FFF | 0x1FFF << 21 | 0x1FFF << 42)  # 13 bits of each lane
UNIT = 8192  # weights of a filter add up to this: with 8 bits of a value, 21
HALF_UNIT = np.uint64(4096 | 4096 << 21 | 4096 << 42)

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function, fastmath: bool = True) -> Function:
    """To machine code without the interpreter lock; kept on the disk by numba, where it finds a place."""
    options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        machine_code: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        machine_code = njit(**options)(function)
    return machine_code


@compiled
def _filter(length: int, wanted: int, step: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Triangular filter from `length` pixels to fewer, `step` apart: first pixel and weights [wanted, taps] of each.

    Both lie with their middle on each other: where the shorter side does not come out whole, the scale stays the same.
    """
    reach = max(1.0, step)
    start_at = (length - wanted * step) / 2 - 0.5
    taps = min(length, 2 * math.ceil(reach) + 1)
    first = np.empty(wanted, np.int64)
    weight = np.zeros((wanted, taps), np.float32)
    for i in range(wanted):
        centre = (i + 0.5) * step + start_at
        start = math.ceil(centre - reach)
        first[i] = min(max(start, 0), length - taps)  # what lies beyond an edge counts as the edge
        total = 0.0
        for j in range(start, start + 2 * math.ceil(reach) + 1):
            share = 1.0 - abs(j - centre) / reach
            if share > 0:
                weight[i, min(max(j, 0), length - 1) - first[i]] += np.float32(share)
                total += share
        for k in range(taps):
            weight[i, k] /= np.float32(total)
    return first, weight


@compiled
def _whole(weight: NDArray[np.float32]) -> Packed:
    """Weights as integers that add up to UNIT."""
    whole = np.empty(weight.shape, np.uint64)
    for i in range(weight.shape[0]):
        left, largest = UNIT, 0
        for k in range(weight.shape[1]):
            share = math.floor(weight[i, k] * UNIT + 0.5)
            whole[i, k] = np.uint64(share)
            left -= share
            if weight[i, k] > weight[i, largest]:
                largest = k
        whole[i, largest] = np.uint64(np.int64(whole[i, largest]) + left)
    return whole


@compiled
def _pack(row: Pixels, packed: Packed) -> None:
    """A row of bytes [3 · width] to packed pixels [width]."""
    for x in range(packed.shape[0]):
        green, blue = np.uint64(row[3 * x + 1]) << np.uint64(21), np.uint64(row[3 * x + 2]) << np.uint64(42)
        packed[x] = np.uint64(row[3 * x]) | green | blue


@compiled
def _shrunk(image: Pixels, height: int, width: int) -> Packed:
    """Packed pixels [height, width] of a picture [H, W, 3] that is at least as large."""
    rows = image.reshape(image.shape[0], -1)
    out = np.empty((height, width), np.uint64)
    if height == image.shape[0] and width == image.shape[1]:
        for y in range(height):
            _pack(rows[y], out[y])
        return out
    step = max(image.shape[0], image.shape[1]) / max(height, width)
    first_row, row_weight = _filter(image.shape[0], height, step)
    first, column_weight = _filter(image.shape[1], width, step)
    weight = _whole(column_weight)
    sums = np.empty(rows.shape[1], np.float32)
    line = np.empty(rows.shape[1], np.uint8)
    packed = np.empty(image.shape[1], np.uint64)
    for y in range(height):
        sums[:] = np.float32(0.5)
        for k in range(row_weight.shape[1]):
            share = row_weight[y, k]
            if share > 0:
                row = rows[first_row[y] + k]
                for x in range(row.shape[0]):
                    sums[x] += share * np.float32(row[x])
        for x in range(sums.shape[0]):
            line[x] = np.uint8(sums[x])
        _pack(line, packed)
        for x in range(width):
            value, start = HALF_UNIT, first[x]
            for k in range(weight.shape[1]):
                value += weight[x, k] * packed[start + k]
            out[y, x] = (value >> np.uint64(13)) & BYTES
    return out


@partial(compiled, fastmath=False)
def _fitted(length: int, longest: int, size: int) -> int:
    """Length of a side once the longer side has `size` pixels.

    In float32 step by step, as DALI's resize has it: of a side that ends at half a pixel the rounding decides.
    """
    length_at_scale = np.float32(length) * (np.float32(size) / np.float32(longest))
    return max(1, math.floor(np.float64(length_at_scale) + 0.5))


@compiled
def _inside(step: float, start: float, low: float, high: float, count: int) -> tuple[int, int]:
    """The x from 0 to count for which low ≤ start + step · x ≤ high, as a half-open range; one more at either end."""
    if abs(step) < 1e-9:
        return (0, count) if low <= start <= high else (0, 0)
    a, b = (low - start) / step, (high - start) / step
    if step < 0:
        a, b = b, a
    # Clipped first: a map that hardly turns gives numbers beyond all integers.
    return math.floor(min(max(a, 0.0), float(count))), math.ceil(min(max(b + 1, 0.0), float(count)))


@compiled
def _edge(picture: Packed, x: float, y: float, colour: Matrix, row: NDArray[np.float32], at: int) -> None:
    """One output pixel anywhere, taps outside the picture being black."""
    height, width = picture.shape
    left, top = math.floor(x), math.floor(y)
    covered = red = green = blue = np.float32(0)
    for j in range(2):
        for i in range(2):
            u, v = left + i, top + j
            if 0 <= u < width and 0 <= v < height:
                share = np.float32((1 - abs(x - u)) * (1 - abs(y - v)))
                pixel = picture[v, u]
                covered += share
                red += share * np.float32(pixel & np.uint64(255))
                green += share * np.float32((pixel >> np.uint64(21)) & np.uint64(255))
                blue += share * np.float32(pixel >> np.uint64(42))
    for k in range(3):
        value = colour[k, 0] * red + colour[k, 1] * green + colour[k, 2] * blue + colour[k, 3] * covered
        row[at + k] = min(max(value, np.float32(0)), np.float32(255))


@compiled
def _warp_row(
    picture: Packed, matrix: NDArray[np.float64], y: int, colour: Matrix, row: NDArray[np.float32], line: Packed
) -> None:
    """One row of output [3 · size], 0 to 255, of the picture seen through the map."""
    height, width = picture.shape
    size = line.shape[0]
    step_x, step_y = matrix[0, 0], matrix[1, 0]
    start_x, start_y = matrix[0, 1] * y + matrix[0, 2], matrix[1, 1] * y + matrix[1, 2]
    a, b = _inside(step_x, start_x, -1.0, float(width), size)
    c, d = _inside(step_y, start_y, -1.0, float(height), size)
    seen, beyond = max(a, c), max(max(a, c), min(b, d))
    a, b = _inside(step_x, start_x, 0.0, width - 1.0, size)
    c, d = _inside(step_y, start_y, 0.0, height - 1.0, size)
    first, last = max(max(a, c), seen), min(min(b, d), beyond)

    one = 4294967296.0  # positions in 2^-32 pixels, rounded to 2^-8
    by_x, by_y = np.int64(step_x * one), np.int64(step_y * one)
    from_x, from_y = np.int64(start_x * one) + (1 << 23), np.int64(start_y * one) + (1 << 23)
    most_x, most_y = np.int64(width - 1) << 32, np.int64(height - 1) << 32
    while first < last:  # the exact ends, as the integers below have them
        p, q = from_x + by_x * first, from_y + by_y * first
        if 0 <= p < most_x and 0 <= q < most_y:
            break
        first += 1
    while last > first:
        p, q = from_x + by_x * (last - 1), from_y + by_y * (last - 1)
        if 0 <= p < most_x and 0 <= q < most_y:
            break
        last -= 1
    last = max(first, last)

    row[: 3 * seen] = np.float32(0)
    row[3 * beyond :] = np.float32(0)
    for x in range(seen, min(first, beyond)):
        _edge(picture, start_x + step_x * x, start_y + step_y * x, colour, row, 3 * x)
    for x in range(max(last, seen), beyond):
        _edge(picture, start_x + step_x * x, start_y + step_y * x, colour, row, 3 * x)

    pixels = picture.reshape(-1)
    p, q = from_x + by_x * first, from_y + by_y * first
    for x in range(first, last):
        at = (q >> 32) * width + (p >> 32)
        fx, fy = np.uint64((p >> 24) & 255), np.uint64((q >> 24) & 255)
        gx, gy = np.uint64(256) - fx, np.uint64(256) - fy
        above = ((pixels[at] * gx + pixels[at + 1] * fx) >> np.uint64(3)) & THIRTEEN
        below = ((pixels[at + width] * gx + pixels[at + width + 1] * fx) >> np.uint64(3)) & THIRTEEN
        line[x] = above * gy + below * fy
        p += by_x
        q += by_y
    scale = np.float32(1 / 8192)
    c00, c01, c02, c03 = colour[0, 0] * scale, colour[0, 1] * scale, colour[0, 2] * scale, colour[0, 3]
    c10, c11, c12, c13 = colour[1, 0] * scale, colour[1, 1] * scale, colour[1, 2] * scale, colour[1, 3]
    c20, c21, c22, c23 = colour[2, 0] * scale, colour[2, 1] * scale, colour[2, 2] * scale, colour[2, 3]
    zero, most = np.float32(0), np.float32(255)
    for x in range(first, last):
        red = np.float32(np.int32(line[x] & LANE))
        green = np.float32(np.int32((line[x] >> np.uint64(21)) & LANE))
        blue = np.float32(np.int32(line[x] >> np.uint64(42)))
        row[3 * x] = min(max(c00 * red + c01 * green + c02 * blue + c03, zero), most)
        row[3 * x + 1] = min(max(c10 * red + c11 * green + c12 * blue + c13, zero), most)
        row[3 * x + 2] = min(max(c20 * red + c21 * green + c22 * blue + c23, zero), most)


@compiled
def _to_picture(image_height: int, image_width: int, size: int, matrix: Matrix) -> NDArray[np.float64]:
    """The map from output pixels to those of a (shrunk) picture, both counted from the middle of the first pixel.

    `matrix` leads to pixels of the letterboxed picture, counted from its corner.
    """
    longest = max(image_height, image_width)
    step = longest / size
    height, width = _fitted(image_height, longest, size), _fitted(image_width, longest, size)
    middle = np.array([image_width, image_height]) / 2
    letterboxed = np.array([(size + 1 - width) // 2 + width / 2, (size + 1 - height) // 2 + height / 2])
    out = np.empty((2, 3))
    for i in range(2):
        a, b = float(matrix[i, 0]), float(matrix[i, 1])
        from_middle = float(matrix[i, 2]) + 0.5 * (a + b) - letterboxed[i]
        out[i, 0], out[i, 1], out[i, 2] = a * step, b * step, from_middle * step + middle[i] - 0.5
    return out


@compiled
def fitted_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a picture once `fit` is done with it."""
    longest = max(height, width)
    if longest <= size:
        return height, width
    return _fitted(height, longest, size), _fitted(width, longest, size)


@compiled
def _ready(image: Pixels, size: int, matrix: Matrix) -> tuple[Packed, NDArray[np.float64]]:
    """The picture, shrunk where it is too large, and the map from output pixels to its own."""
    height, width = fitted_shape(image.shape[0], image.shape[1], size)
    picture = _shrunk(image, height, width)
    return picture, _to_picture(height, width, size, matrix)


@compiled
def draw_float32(out: NDArray[np.float32], image: Pixels, matrix: Matrix, colour: Matrix) -> None:
    """One picture [H, W, 3] of any size to normalised pixels [size, size, 3]; the arguments of `augment.fused`."""
    size = out.shape[0]
    picture, mapped = _ready(image, size, matrix)
    row, line = np.empty(3 * size, np.float32), np.empty(size, np.uint64)
    flat = out.reshape(size, 3 * size)
    for y in range(size):
        _warp_row(picture, mapped, y, colour, row, line)
        for x in range(3 * size):
            flat[y, x] = (row[x] - np.float32(MEAN)) * np.float32(1 / STD)


@compiled
def draw_bfloat16(out: NDArray[np.uint16], image: Pixels, matrix: Matrix, colour: Matrix) -> None:
    """The same, out holding the bits of bfloat16, rounded to the nearest."""
    size = out.shape[0]
    picture, mapped = _ready(image, size, matrix)
    row, line = np.empty(3 * size, np.float32), np.empty(size, np.uint64)
    bits = row.view(np.uint32)
    flat = out.reshape(size, 3 * size)
    for y in range(size):
        _warp_row(picture, mapped, y, colour, row, line)
        for x in range(3 * size):
            row[x] = (row[x] - np.float32(MEAN)) * np.float32(1 / STD)
        for x in range(3 * size):
            rounded = bits[x] + np.uint32(0x7FFF) + ((bits[x] >> np.uint32(16)) & np.uint32(1))
            flat[y, x] = np.uint16(rounded >> np.uint32(16))


@compiled
def fit(out: Pixels, image: Pixels) -> None:
    """A picture [H, W, 3] shrunk to the shape of out: the first step of the draws, on its own."""
    if out.shape == image.shape:
        out[:] = image
        return
    packed = _shrunk(image, out.shape[0], out.shape[1])
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for k in range(3):
                out[y, x, k] = np.uint8((packed[y, x] >> np.uint64(21 * k)) & np.uint64(255))


# How DALI 2.4 calls, all pointers being numbers. For what comes out, and again for what goes in: rows of pointers to
# data and to shapes, numbers of dimensions, length of the rows.
RUN = types.void(*2 * [types.uint64, types.uint64, types.uint64, types.int32])
# The same without data, and the number of pictures; a row holds a pointer a picture.
SETUP = types.void(*2 * [types.uint64, types.uint64, types.int32], types.int32)


def machine_code(signature: Any, function: Callable[..., None]) -> Any:
    """What DALI can call: `address` is that of the code as long as this is referred to. Kept on the disk as above."""
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:
        return cfunc(signature)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_context: Any, _number: Any) -> Any:
    """A number as a pointer."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


@compiled
def _row(pointers: int, length: int) -> NDArray[np.uint64]:
    row: NDArray[np.uint64] = carray(_pointer(pointers), length, np.uint64)
    return row


@compiled
def _shape(pointer: int) -> NDArray[np.int64]:
    shape: NDArray[np.int64] = carray(_pointer(pointer), 3, np.int64)
    return shape


@compiled
def _image(data: int, shapes: int) -> Pixels:
    """The first of the row, bytes [H, W, 3]."""
    shape = _shape(_row(shapes, 1)[0])
    image: Pixels = carray(_pointer(_row(data, 1)[0]), (shape[0], shape[1], 3), np.uint8)
    return image


@compiled
def _numbers(data: int) -> tuple[Matrix, Matrix]:
    """The second and third of the row: matrix and colour."""
    row = _row(data, 3)
    return carray(_pointer(row[1]), (2, 3), np.float32), carray(_pointer(row[2]), (3, 4), np.float32)


def run_fit(outs: int, out_shapes: int, _o: int, _n: int, ins: int, in_shapes: int, _i: int, _m: int) -> None:
    fit(_image(outs, out_shapes), _image(ins, in_shapes))


def run_float32(outs: int, out_shapes: int, _o: int, _n: int, ins: int, in_shapes: int, _i: int, _m: int) -> None:
    size = _shape(_row(out_shapes, 1)[0])[0]
    matrix, colour = _numbers(ins)
    out = carray(_pointer(_row(outs, 1)[0]), (size, size, 3), np.float32)
    draw_float32(out, _image(ins, in_shapes), matrix, colour)


def run_bfloat16(outs: int, out_shapes: int, _o: int, _n: int, ins: int, in_shapes: int, _i: int, _m: int) -> None:
    size = _shape(_row(out_shapes, 1)[0])[0]
    matrix, colour = _numbers(ins)
    out = carray(_pointer(_row(outs, 1)[0]), (size, size, 3), np.uint16)
    draw_bfloat16(out, _image(ins, in_shapes), matrix, colour)


def shapes_of_fit(size: int) -> Callable[..., None]:
    """Tells DALI the shapes of what `run_fit` makes of a batch."""

    def setup(out_shapes: int, _o: int, _n: int, in_shapes: int, _i: int, _m: int, pictures: int) -> None:
        outs, ins = _row(out_shapes, pictures), _row(in_shapes, pictures)
        for i in range(pictures):
            out, image = _shape(outs[i]), _shape(ins[i])
            out[0], out[1] = fitted_shape(image[0], image[1], size)
            out[2] = 3

    return setup


def shapes_of_draws(size: int) -> Callable[..., None]:
    """Tells DALI the shapes of what `run_float32` and `run_bfloat16` make of a batch."""

    def setup(out_shapes: int, _o: int, _n: int, _in_shapes: int, _i: int, _m: int, pictures: int) -> None:
        outs = _row(out_shapes, pictures)
        for i in range(pictures):
            out = _shape(outs[i])
            out[0], out[1], out[2] = size, size, 3

    return setup
