"""Shapes of the sample's objects: polygons, back to front, in a square from -1 to 1 with y downwards."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Tone = Literal["main", "accent", "light", "dark"]


class Part(NamedTuple):
    """One polygon of an object and which of the object's colours fills it."""

    tone: Tone
    points: Points


Shape = tuple[Part, ...]


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _arc(cx: float, cy: float, rx: float, ry: float, start: float = 0, end: float = 360, points: int = 28) -> Points:
    """Points on an ellipse, clockwise on the screen from `start` degrees (0 points right)."""
    angle = np.radians(np.linspace(start, end, points))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _spikes(tips: int, outer: float, inner: float) -> Points:
    angle = -np.pi / 2 + np.pi * np.arange(2 * tips) / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _tree() -> Shape:
    return (
        Part("dark", _box(-0.15, 0.5, 0.15, 1.0)),
        Part("main", _polygon((-0.75, 0.62), (0, -0.2), (0.75, 0.62))),
        Part("main", _polygon((-0.62, 0.16), (0, -0.62), (0.62, 0.16))),
        Part("main", _polygon((-0.46, -0.3), (0, -1.0), (0.46, -0.3))),
        Part("light", _polygon((-0.46, -0.3), (0, -1.0), (-0.12, -0.3))),
        Part("light", _polygon((-0.62, 0.16), (-0.36, -0.16), (-0.22, 0.16))),
        Part("light", _polygon((-0.75, 0.62), (-0.48, 0.33), (-0.34, 0.62))),
    )


def _cloud() -> Shape:
    return (
        Part("main", _arc(-0.58, 0.2, 0.42, 0.38)),
        Part("main", _arc(0.6, 0.22, 0.4, 0.36)),
        Part("main", _arc(-0.1, -0.12, 0.52, 0.5)),
        Part("main", _arc(0.38, 0.0, 0.36, 0.36)),
        Part("main", _box(-0.6, 0.15, 0.62, 0.58)),
        Part("light", _arc(-0.2, -0.24, 0.3, 0.26)),
        Part("light", _arc(-0.62, 0.12, 0.2, 0.16)),
    )


def _house() -> Shape:
    return (
        Part("dark", _box(0.4, -0.85, 0.62, -0.3)),
        Part("main", _box(-0.72, -0.1, 0.72, 0.9)),
        Part("accent", _polygon((-1.0, -0.05), (0, -0.95), (1.0, -0.05))),
        Part("dark", _box(0.12, 0.3, 0.46, 0.9)),
        Part("light", _box(-0.52, 0.18, -0.08, 0.58)),
        Part("dark", _box(-0.33, 0.18, -0.27, 0.58)),
        Part("dark", _box(-0.52, 0.35, -0.08, 0.41)),
    )


def _bird() -> Shape:
    return (
        Part("accent", _polygon((-0.1, 0.1), (0.3, 0.0), (0.36, -0.5), (0.16, -0.95), (-0.02, -0.45))),
        Part("main", _polygon((-0.45, 0.12), (-1.0, -0.02), (-0.92, 0.2), (-1.0, 0.4), (-0.45, 0.34))),
        Part("main", _arc(-0.02, 0.25, 0.6, 0.26)),
        Part("main", _arc(0.56, 0.08, 0.25, 0.24)),
        Part("dark", _polygon((0.76, -0.02), (1.0, 0.12), (0.76, 0.2))),
        Part("accent", _polygon((0.22, 0.22), (-0.26, 0.28), (-0.5, -0.2), (-0.62, -0.85), (-0.14, -0.5))),
        Part("light", _arc(0.6, 0.04, 0.08, 0.08, points=10)),
        Part("dark", _arc(0.62, 0.04, 0.04, 0.04, points=8)),
    )


def _flower() -> Shape:
    angles = np.radians(np.arange(6) * 60 + 30)
    petals = [Part("main", _arc(0.4 * np.cos(a), -0.35 + 0.4 * np.sin(a), 0.25, 0.25, points=18)) for a in angles]
    return (
        Part("dark", _box(-0.06, -0.2, 0.06, 1.0)),
        Part("dark", _polygon((0, 0.85), (0.18, 0.5), (0.6, 0.38), (0.45, 0.75))),
        Part("dark", _polygon((0, 0.95), (-0.18, 0.62), (-0.58, 0.5), (-0.42, 0.86))),
        *petals,
        Part("accent", _arc(0, -0.35, 0.26, 0.26)),
    )


def _sun() -> Shape:
    ray = _polygon((0.6, -0.13), (1.0, 0.0), (0.6, 0.13))
    rays = []
    for angle in np.radians(np.arange(10) * 36):
        c, s = np.cos(angle), np.sin(angle)
        rays.append(Part("main", ray @ np.array([[c, s], [-s, c]])))
    return (*rays, Part("main", _arc(0, 0, 0.5, 0.5)), Part("light", _arc(0, 0, 0.34, 0.34)))


def _car() -> Shape:
    return (
        Part("main", _polygon((-0.55, -0.05), (-0.36, -0.5), (0.3, -0.5), (0.6, -0.05))),
        Part(
            "main",
            _polygon((-1, -0.08), (-0.55, -0.12), (0.6, -0.12), (0.95, 0.02), (1.0, 0.35), (-1.0, 0.35)),
        ),
        Part("light", _polygon((-0.42, -0.08), (-0.29, -0.4), (-0.06, -0.4), (-0.06, -0.08))),
        Part("light", _polygon((0.05, -0.08), (0.05, -0.4), (0.25, -0.4), (0.47, -0.08))),
        Part("accent", _box(-1.0, 0.12, 1.0, 0.2)),
        Part("dark", _arc(-0.52, 0.34, 0.25, 0.25)),
        Part("dark", _arc(0.52, 0.34, 0.25, 0.25)),
        Part("light", _arc(-0.52, 0.34, 0.1, 0.1, points=12)),
        Part("light", _arc(0.52, 0.34, 0.1, 0.1, points=12)),
    )


def _boat() -> Shape:
    return (
        Part("dark", _box(-0.06, -1.0, 0.04, 0.5)),
        Part("light", _polygon((0.1, -0.95), (0.8, 0.3), (0.1, 0.3))),
        Part("accent", _polygon((-0.12, -0.7), (-0.12, 0.3), (-0.7, 0.3))),
        Part("main", _polygon((-1.0, 0.42), (1.0, 0.42), (0.66, 0.9), (-0.62, 0.9))),
        Part("accent", _polygon((-1.0, 0.42), (1.0, 0.42), (0.93, 0.52), (-0.93, 0.52))),
    )


def _star() -> Shape:
    return (Part("main", _spikes(5, 1.0, 0.42)), Part("light", _spikes(5, 0.55, 0.23)))


def _fish() -> Shape:
    return (
        Part("accent", _polygon((-0.45, 0.0), (-1.0, -0.5), (-0.82, 0.0), (-1.0, 0.5))),
        Part("accent", _polygon((-0.15, -0.3), (0.0, -0.68), (0.4, -0.3))),
        Part("main", _arc(0.22, 0.0, 0.78, 0.42)),
        Part("light", _polygon((-0.05, -0.36), (0.12, -0.4), (0.12, 0.4), (-0.05, 0.36))),
        Part("accent", _polygon((0.05, 0.1), (0.3, 0.02), (0.1, 0.55))),
        Part("light", _arc(0.66, -0.1, 0.12, 0.12, points=14)),
        Part("dark", _arc(0.68, -0.1, 0.06, 0.06, points=10)),
    )


def _moon() -> Shape:
    outer = _arc(0.24, 0, 0.95, 0.95, 60, 300, 36)
    inner = _arc(0.66, 0, 0.82, 0.82, 275, 85, 36)
    return (Part("main", np.concatenate([outer, inner])),)


def _umbrella() -> Shape:
    scallops = [_arc(x, 0.06, 0.238, 0.13, 0, -180, 9) for x in (0.714, 0.238, -0.238, -0.714)]
    canopy = np.concatenate([_arc(0, 0.06, 0.95, 0.95, 180, 360), *scallops])
    panel = np.concatenate([_arc(0, 0.06, 0.46, 0.93, 180, 360, 20), *scallops[1:3]])
    hook = np.concatenate([_arc(0.2, 0.78, 0.26, 0.22, 180, 0, 12), _arc(0.2, 0.78, 0.14, 0.1, 0, 180, 12)])
    return (
        Part("dark", _box(-0.06, -1.0, 0.06, 0.8)),
        Part("dark", hook),
        Part("main", canopy),
        Part("accent", panel),
    )


def _balloon() -> Shape:
    envelope = np.concatenate([_arc(0, -0.35, 0.65, 0.65, 150, 390), _polygon((0.18, 0.42), (-0.18, 0.42))])
    stripe = np.concatenate([_arc(0, -0.35, 0.26, 0.65, 150, 390), _polygon((0.08, 0.42), (-0.08, 0.42))])
    return (
        Part("dark", _polygon((-0.18, 0.4), (-0.12, 0.4), (-0.14, 0.75), (-0.2, 0.75))),
        Part("dark", _polygon((0.18, 0.4), (0.12, 0.4), (0.14, 0.75), (0.2, 0.75))),
        Part("main", envelope),
        Part("accent", stripe),
        Part("dark", _polygon((-0.25, 0.68), (0.25, 0.68), (0.2, 1.0), (-0.2, 1.0))),
    )


def _clock() -> Shape:
    return (
        Part("dark", _polygon((-0.5, 0.6), (-0.34, 0.72), (-0.62, 1.0), (-0.76, 0.94))),
        Part("dark", _polygon((0.5, 0.6), (0.34, 0.72), (0.62, 1.0), (0.76, 0.94))),
        Part("accent", _arc(-0.52, -0.68, 0.3, 0.3, 115, 335)),
        Part("accent", _arc(0.52, -0.68, 0.3, 0.3, 205, 425)),
        Part("main", _arc(0, 0.1, 0.8, 0.8)),
        Part("light", _arc(0, 0.1, 0.6, 0.6)),
        Part("dark", _polygon((-0.07, 0.14), (-0.05, -0.4), (0.05, -0.4), (0.07, 0.14))),
        Part("dark", _polygon((-0.04, 0.2), (-0.02, 0.04), (0.4, 0.28), (0.36, 0.38))),
    )


def _mushroom() -> Shape:
    cap = np.concatenate([_arc(0, 0.1, 0.95, 0.95, 180, 360), _arc(0, 0.1, 0.95, 0.16, 0, 180)])
    stalk = _polygon((-0.26, 0.1), (0.26, 0.1), (0.36, 0.85), (0.22, 1.0), (-0.22, 1.0), (-0.36, 0.85))
    return (
        Part("light", stalk),
        Part("main", cap),
        Part("light", _arc(-0.1, -0.48, 0.2, 0.18, points=18)),
        Part("light", _arc(0.46, -0.2, 0.17, 0.16, points=18)),
        Part("light", _arc(-0.54, -0.12, 0.17, 0.15, points=18)),
    )


def _cactus() -> Shape:
    def column(x: float, top: float, bottom: float, width: float) -> Points:
        return np.concatenate(
            [_arc(x, top + width, width, width, 180, 360, 12), _box(x - width, bottom, x + width, bottom)[2:]]
        )

    return (
        Part("main", column(0, -1.0, 0.6, 0.24)),
        Part("main", column(-0.62, -0.45, 0.18, 0.15)),
        Part("main", _box(-0.77, 0.0, -0.1, 0.26)),
        Part("main", column(0.62, -0.7, 0.0, 0.15)),
        Part("main", _box(0.1, -0.18, 0.77, 0.1)),
        Part("light", _box(-0.04, -0.8, 0.04, 0.55)),
        Part("accent", _polygon((-0.5, 0.5), (0.5, 0.5), (0.38, 1.0), (-0.38, 1.0))),
        Part("dark", _box(-0.56, 0.48, 0.56, 0.62)),
    )


_MAKERS: dict[str, Callable[[], Shape]] = {
    "tree": _tree,
    "cloud": _cloud,
    "house": _house,
    "bird": _bird,
    "flower": _flower,
    "sun": _sun,
    "car": _car,
    "boat": _boat,
    "star": _star,
    "fish": _fish,
    "moon": _moon,
    "umbrella": _umbrella,
    "balloon": _balloon,
    "clock": _clock,
    "mushroom": _mushroom,
    "cactus": _cactus,
}

SHAPES: dict[str, Shape] = {label: make() for label, make in _MAKERS.items()}
