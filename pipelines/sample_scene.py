"""Draws one picture of the sample data set: a backdrop, objects in some pose, clutter, light, noise."""

import colorsys
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.sample_objects import SHAPES, Points

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SHORTEST, LONGEST = 120, 320
MOST_OBJECTS = 5
SUPERSAMPLING = 2
JPEG_QUALITY = (85, 92)

# An object's size over the picture's shorter side: range for one object alone, and for five.
SIZE_ALONE, SIZE_CROWDED = (0.5, 0.75), (0.36, 0.48)
SMALLEST = 0.3
ROTATION = 25.0
SHEAR = 0.18
STRETCH = 0.12
# Share of an object that what lies before it may hide.
MOST_HIDDEN = 0.3
# How often a neighbour may overlap an object at all.
OVERLAPS = 0.3
PLACEMENT_TRIES = 60
# Side of the grid on which overlaps are measured.
GRID = 72
# Distance (0 to 1) between an object's colour and the colour behind it.
CONTRAST = 0.22
CLUTTER_BEHIND, CLUTTER_BEFORE = (2, 7), (0, 3)
OUTLINED = 0.6

BRIGHTNESS, GAIN, TINT, SLOPE = 0.1, 0.2, 0.1, 0.25
NOISE = (2.0, 11.0)
LUMA = np.array([0.3, 0.59, 0.11], np.float32)  # weights of red, green and blue in brightness
BLURRED, BLUR = 0.3, (0.4, 0.9)

Rng = np.random.Generator
Colour = tuple[int, int, int]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]


class Pose(NamedTuple):
    """Where an object lies, in pixels of the picture: points `p` of its shape go to `p @ matrix + centre`."""

    matrix: Points
    centre: Points


def draw_scene(rng: Rng, scene: str, labels: Sequence[str]) -> bytes:
    """A scene that shows the objects of the labels, as a JPEG file."""
    from PIL import Image, ImageDraw, ImageFilter

    width, height = draw_size(rng)
    canvas = draw_backdrop(rng, scene, width * SUPERSAMPLING, height * SUPERSAMPLING)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(*CLUTTER_BEHIND, endpoint=True)):
        _paint(draw, _clutter(rng, width, height), _random_colour(rng))
    layout = Layout(width, height)
    for label in labels:
        pose = layout.place(rng, label, len(labels))
        _draw_object(rng, canvas, draw, label, pose)
    for _ in range(rng.integers(*CLUTTER_BEFORE, endpoint=True)):
        points = _clutter(rng, width, height)
        if layout.cover(points):
            _paint(draw, points, _random_colour(rng))
    picture = Image.fromarray(_light(rng, np.asarray(canvas.reduce(SUPERSAMPLING), np.float32)))
    if rng.random() < BLURRED:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY, endpoint=True)))
    return file.getvalue()


def draw_size(rng: Rng) -> tuple[int, int]:
    """Width and height of a picture: lying, standing or nearly square."""
    if rng.random() < 0.25:
        short, ratio = rng.uniform(SHORTEST, LONGEST / 1.08), rng.uniform(1.0, 1.08)
    else:
        short, ratio = rng.uniform(SHORTEST, 240), rng.uniform(1.15, 1.5)
    sides = int(short), int(min(short * ratio, LONGEST))
    return sides if rng.random() < 0.45 else (sides[1], sides[0])


class Layout:
    """What of each object can still be seen, on a coarse grid over the picture."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._scale = GRID / max(width, height)
        self._areas: list[int] = []
        self._visible: list[Mask] = []

    def hidden(self) -> list[float]:
        """Share of each object that lies behind others."""
        return [1 - float(v.sum()) / area for v, area in zip(self._visible, self._areas, strict=True)]

    def place(self, rng: Rng, label: str, objects: int) -> Pose:
        """Finds a place for one more object, in front of those before it, that hides little of them."""
        crowd = (objects - 1) / (MOST_OBJECTS - 1)
        low, high = ((1 - crowd) * a + crowd * b for a, b in zip(SIZE_ALONE, SIZE_CROWDED, strict=True))
        size = rng.uniform(low, high)
        limit = MOST_HIDDEN if rng.random() < OVERLAPS else 0.03
        best: tuple[float, Pose, Mask] | None = None
        for _ in range(PLACEMENT_TRIES):
            pose = self._pose(rng, label, size)
            mask = self._mask([part.points @ pose.matrix + pose.centre for part in SHAPES[label]])
            worst = self._most_hidden_by(mask)
            if best is None or worst < best[0]:
                best = worst, pose, mask
            if worst <= limit:
                break
            size = max(SMALLEST, size * 0.97)
        assert best is not None
        self._put(best[2])
        self._areas.append(int(best[2].sum()))
        self._visible.append(best[2])
        return best[1]

    def cover(self, points: Points) -> bool:
        """Covers what lies behind a polygon, unless that would hide too much of an object."""
        mask = self._mask([points])
        fits = self._most_hidden_by(mask) <= MOST_HIDDEN
        if fits:
            self._put(mask)
        return fits

    def _pose(self, rng: Rng, label: str, size: float) -> Pose:
        scale = size / 2 * min(self.width, self.height)
        angle = np.radians(rng.uniform(-ROTATION, ROTATION))
        c, s = np.cos(angle), np.sin(angle)
        stretch = np.exp(rng.uniform(-STRETCH, STRETCH))
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        matrix = np.array([[mirror / stretch, 0], [rng.uniform(-SHEAR, SHEAR), stretch]])
        matrix = scale * matrix @ np.array([[c, s], [-s, c]])
        points = np.concatenate([part.points for part in SHAPES[label]]) @ matrix
        space = np.array([self.width, self.height]) - np.ptp(points, axis=0)
        where = np.array([rng.random(), rng.beta(*HEIGHTS.get(label, (1.0, 1.0)))])
        return Pose(matrix, where * space - points.min(axis=0))

    def _mask(self, polygons: Iterable[Points]) -> Mask:
        from PIL import Image, ImageDraw

        size = round(self.width * self._scale), round(self.height * self._scale)
        image = Image.new("L", size)
        draw = ImageDraw.Draw(image)
        for points in polygons:
            draw.polygon((points * self._scale).ravel().tolist(), fill=1)
        return np.asarray(image).view(np.bool_)

    def _most_hidden_by(self, mask: Mask) -> float:
        left = (float((v & ~mask).sum()) / area for v, area in zip(self._visible, self._areas, strict=True))
        return 1 - min(left, default=1.0)

    def _put(self, mask: Mask) -> None:
        self._visible = [visible & ~mask for visible in self._visible]


# How often an object has about the colour that is usual for it; a hint, since others have it too.
USUAL_COLOUR, HUE_SPREAD = 0.8, 0.04
HUES = {
    **{"tree": 0.33, "cloud": 0.58, "house": 0.05, "bird": 0.65, "flower": 0.9, "sun": 0.14, "car": 0.0, "boat": 0.08},
    **{"star": 0.16, "fish": 0.5, "moon": 0.2, "umbrella": 0.8, "balloon": 0.95, "clock": 0.72, "mushroom": 0.02},
    "cactus": 0.38,
}

# Where objects tend to lie between the picture's top and bottom (parameters of a beta distribution).
_HIGH, _LOW = (1.0, 2.0), (2.0, 1.0)
HEIGHTS = {
    **dict.fromkeys(("cloud", "bird", "sun", "star", "moon", "balloon"), _HIGH),
    **dict.fromkeys(("tree", "house", "flower", "car", "boat", "fish", "mushroom", "cactus"), _LOW),
}


def draw_backdrop(rng: Rng, scene: str, width: int, height: int) -> "Image.Image":
    """A sky, above some ground in most scenes, of coarse gradients and blotches."""
    from PIL import ImageDraw

    rows, columns = 24, 24
    dark = scene == "night"
    top, bottom, ground = (_backdrop_colour(rng, dark) for _ in range(3))
    down = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    pixels = top + (bottom - top) * down + np.zeros((1, columns, 1), np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(2, 12), (rows, columns, 1)).astype(np.float32)
    canvas = _enlarge(pixels, width, height)
    if scene == "sky":
        return canvas
    horizon = round(rng.uniform(0.4, 0.75) * height)
    shade = ground * (1.15 - 0.4 * down) + rng.normal(0, rng.uniform(2, 14), (rows, columns, 1)).astype(np.float32)
    canvas.paste(_enlarge(shade, width, height - horizon), (0, horizon))
    draw = ImageDraw.Draw(canvas)
    lighter, darker = (_rgb(ground * factor) for factor in (1.18, 0.8))
    unit = max(width, height) / 100
    if scene == "street":
        middle = rng.uniform(0.2, 0.8) * width
        for left in np.arange(-1.5, 2.5, rng.uniform(0.3, 0.6)) * width:
            draw.line([(middle, horizon), (left, height)], fill=darker, width=max(1, round(unit / 2)))
    else:
        for _ in range(rng.integers(15, 50)):
            x, y = rng.uniform(0, width), rng.uniform(horizon, height)
            tip = (x + 6 * unit, y) if scene == "sea" else (x + rng.normal(0, unit), y - 4 * unit)
            draw.line([(x, y), tip], fill=lighter if rng.random() < 0.5 else darker, width=max(1, round(unit / 2)))
    return canvas


def _backdrop_colour(rng: Rng, dark: bool) -> Pixels:
    value = rng.uniform(0.12, 0.38) if dark else rng.uniform(0.5, 0.95)
    return np.array(_hsv(rng.random(), rng.uniform(0.1, 0.55), value), np.float32)


def _enlarge(pixels: Pixels, width: int, height: int) -> "Image.Image":
    from PIL import Image

    small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return small.resize((width, max(1, height)), Image.Resampling.BICUBIC)


def _clutter(rng: Rng, width: int, height: int) -> Points:
    """A stroke, a blob or a shard that means nothing."""
    side = min(width, height)
    centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    kind = rng.integers(3)
    if kind == 0:
        return centre + side * _stroke(rng)
    corners = 24 if kind == 1 else int(rng.integers(3, 6))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners)) if kind == 2 else np.linspace(0, 2 * np.pi, corners)
    wobble = 1 + 0.3 * np.sin(angle * rng.integers(2, 4) + rng.uniform(0, 6))
    radius = side * rng.uniform(0.03, 0.1) * wobble[:, None]
    blob: Points = centre + radius * np.stack([np.cos(angle), rng.uniform(0.5, 1) * np.sin(angle)], axis=1)
    return blob


def _stroke(rng: Rng) -> Points:
    """Outline of a bent line, for a picture of side 1, about the origin."""
    along = np.linspace(-1, 1, 14)
    bend, length, thickness = rng.uniform(-0.5, 0.5), rng.uniform(0.12, 0.4), rng.uniform(0.006, 0.02)
    line = length * np.stack([along, bend * (along**2 - 0.5)], axis=1)
    edge = np.array([0, thickness])
    angle = rng.uniform(0, np.pi)
    c, s = np.cos(angle), np.sin(angle)
    outline: Points = np.concatenate([line - edge, line[::-1] + edge]) @ np.array([[c, s], [-s, c]])
    return outline


def _draw_object(rng: Rng, canvas: "Image.Image", draw: "ImageDraw.ImageDraw", label: str, pose: Pose) -> None:
    shape = SHAPES[label]
    polygons = [part.points @ pose.matrix + pose.centre for part in shape]
    colours = _object_colours(rng, label, _mean_colour(canvas, np.concatenate(polygons)))
    if rng.random() < OUTLINED:
        size = float(np.ptp(np.concatenate(polygons), axis=0).max())
        width = max(2, round(SUPERSAMPLING * size * rng.uniform(0.02, 0.05)))
        for points in polygons:
            corners = (points * SUPERSAMPLING).ravel().tolist()
            draw.line(corners + corners[:4], fill=colours["dark"], width=width, joint="curve")
    for part, points in zip(shape, polygons, strict=True):
        _paint(draw, points, colours[part.tone])


def _paint(draw: "ImageDraw.ImageDraw", points: Points, colour: Colour) -> None:
    draw.polygon((points * SUPERSAMPLING).ravel().tolist(), fill=colour)


def _mean_colour(canvas: "Image.Image", points: Points) -> Pixels:
    """Mean colour of the canvas where an object is to go."""
    from PIL import Image

    (left, top), (right, bottom) = points.min(axis=0) * SUPERSAMPLING, points.max(axis=0) * SUPERSAMPLING
    box = max(0, left), max(0, top), min(canvas.width, right), min(canvas.height, bottom)
    return np.array(canvas.resize((1, 1), Image.Resampling.BOX, box=box).getpixel((0, 0)), np.float32)


def _object_colours(rng: Rng, label: str, behind: Pixels) -> dict[str, Colour]:
    main = _contrasting(rng, HUES[label] if rng.random() < USUAL_COLOUR else None, behind)
    accent = _contrasting(rng, None, behind, main)
    light = main + (255 - main) * rng.uniform(0.5, 0.85)
    dark = main * rng.uniform(0.15, 0.4)
    return {"main": _rgb(main), "accent": _rgb(accent), "light": _rgb(light), "dark": _rgb(dark)}


def _contrasting(rng: Rng, hue: float | None, *others: Pixels) -> Pixels:
    """A colour about a hue, or any, far enough from others, or the farthest of a few."""
    best, best_distance = np.zeros(3, np.float32), -1.0
    for _ in range(12):
        colour = np.array(_random_colour(rng, hue), np.float32)
        distance = min(float(np.abs((colour - other) @ LUMA).sum()) for other in others)
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance > 255 * CONTRAST:
            break
    return best


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _rgb(pixel: Pixels) -> Colour:
    red, green, blue = (round(float(channel)) for channel in pixel.clip(0, 255))
    return red, green, blue


def _random_colour(rng: Rng, hue: float | None = None) -> Colour:
    if hue is None:
        return _hsv(rng.random(), rng.uniform(0.25, 0.95), rng.uniform(0.2, 1.0))
    return _hsv((hue + rng.normal(0, HUE_SPREAD)) % 1, rng.uniform(0.55, 0.95), rng.uniform(0.35, 1.0))


def _light(rng: Rng, pixels: Pixels) -> NDArray[np.uint8]:
    """Brightness, contrast, tint, a slope of light across the picture, and noise."""
    height, width, _ = pixels.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = 1 + np.float32(rng.uniform(0, SLOPE)) * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    gain = np.float32(1 + rng.uniform(-GAIN, GAIN))
    tint = (1 + rng.uniform(-TINT, TINT, 3)).astype(np.float32)
    shift = np.float32(255 * rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    lit = (pixels - 128) * gain * tint * slope[..., None] + 128 + shift
    lit += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(*NOISE))
    return lit.clip(0, 255).astype(np.uint8)
