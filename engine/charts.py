"""Charts as numbers that a template draws: scales, ticks, paths and where labels go, in units of the drawing.

Drawn as SVG inside the page, a chart takes the page's colours, light or dark, and stays sharp. All charts are of one
size, small enough to be read on a phone and to stand beside each other on a screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 12, 34
LABEL_GAP = 13  # between names at the ends of lines, at least
CHARACTER = 6.2  # width of one in a name, about
POINTS = 80  # of a line, at most


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to places.

    Attributes:
        low, high: values at its ends.
        title: what it shows.
        log: whether distances are ratios.
        percent: whether ticks are shown as percentages.
        ticks: values that are marked; by default about five round ones.
    """

    low: float
    high: float
    title: str = ""
    log: bool = False
    percent: bool = False
    ticks: tuple[float, ...] = ()

    def share(self, value: float) -> float:
        """How far between the ends a value lies, 0 to 1."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return 0.5 if high == low else (value - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Place, 0 to 1, and text of each tick."""
        return [(self.share(value), self._text(value)) for value in self.ticks or self._round_values()]

    def _round_values(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 300 else (1,)
            values = [v for e in decades for m in steps if self.low <= (v := m * 10.0**e) <= self.high]
            if len(values) > 1:
                return values
        span = (self.high - self.low) or 1.0
        step = 10.0 ** math.floor(math.log10(span / 5))
        step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _text(self, value: float) -> str:
        return f"{value:.0%}" if self.percent else f"{value:,.10g}" if abs(value) >= 1 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Line:
    """Values against x, both [points]; `style` is a class of the style sheet, `name` stands at its end."""

    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
    style: str
    name: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """One value; `tip` is told when it is pointed at, `name` stands beside it, `whisker` is its interval."""

    x: float
    y: float
    tip: str
    style: str = "dot"
    name: str = ""
    radius: float = 4.0
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws.

    Attributes:
        title: its heading.
        alt: what it shows, in words.
        x, y: axes.
        lines, dots: in the order in which they are drawn.
        mark: a value of x with a word, as a vertical line.
        read: whether pointing at it tells the named lines' values there, as text of `digits` digits.
        bars: heights 0 to 1 of a histogram below the chart.
        room: width kept at the right for names.
    """

    title: str
    alt: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    mark: tuple[float, str] | None = None
    read: bool = False
    digits: int = 3
    bars: tuple[tuple[float, str], ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    right: int = field(init=False)

    def __post_init__(self) -> None:
        longest = max((cell_len(line.name) for line in self._named()), default=0)
        object.__setattr__(self, "right", RIGHT + round(CHARACTER * longest))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plotting area."""
        return LEFT, TOP, self.width - self.right, self.height - BOTTOM

    def px(self, value: float) -> float:
        """Place of a value of x, held within the area."""
        left, _, right, _ = self.box
        return round(left + (right - left) * min(1.0, max(0.0, self.x.share(value))), 1)

    def py(self, value: float) -> float:
        """Place of a value of y, held within the area."""
        _, top, _, bottom = self.box
        return round(bottom - (bottom - top) * min(1.0, max(0.0, self.y.share(value))), 1)

    def x_marks(self) -> list[tuple[float, str]]:
        left, _, right, _ = self.box
        return [(round(left + (right - left) * share, 1), text) for share, text in self.x.marks()]

    def y_marks(self) -> list[tuple[float, str]]:
        _, top, _, bottom = self.box
        return [(round(bottom - (bottom - top) * share, 1), text) for share, text in self.y.marks()]

    def path(self, line: Line) -> str:
        """The line as an SVG path; values that are not numbers leave a gap."""
        parts, pen = [], "M"
        for i in _thinned(len(line.x)):
            if not math.isfinite(line.y[i]):
                pen = "M"
                continue
            parts.append(f"{pen}{self.px(line.x[i]):g} {self.py(line.y[i]):g}")
            pen = "L"
        return "".join(parts)

    def _named(self) -> list[Line]:
        """Lines whose names stand at their ends; one alone is what the title says."""
        named = [line for line in self.lines if line.name and len(line.y)]
        return named if len(named) > 1 else []

    def names(self) -> list[tuple[float, str, str]]:
        """Place, style and name of each named line at its right end, no two on top of each other."""
        ends = sorted((self.py(line.y[-1]), line.style, line.name) for line in self._named())
        places = spread([place for place, _, _ in ends], TOP, self.height - BOTTOM)
        return [(place, style, name) for place, (_, style, name) in zip(places, ends, strict=True)]

    def readings(self) -> list[list[object]]:
        """[place, text] for each x of the first named line, and what the named lines have there."""
        named = [line for line in self.lines if line.name]
        if not self.read or not named:
            return []
        found: list[list[object]] = []
        for i in _thinned(len(named[0].x)):
            x = named[0].x[i]
            values = [f"{line.name} {line.y[i]:.{self.digits}f}" for line in named if math.isfinite(line.y[i])]
            found.append([self.px(x), f"{self.x.title} {x:,.6g} · {' · '.join(values)}"])
        return found


def spread(places: Sequence[float], low: float, high: float) -> list[float]:
    """Sorted places moved as little as they must be to lie LABEL_GAP apart, from `low` to `high` where that can be."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low) if not moved else max(place, moved[-1] + LABEL_GAP))
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - LABEL_GAP
    return [round(place, 1) for place in moved]


def _thinned(count: int) -> list[int]:
    """At most POINTS numbers below count, evenly, the first and the last among them."""
    return list(range(count)) if count <= POINTS else [round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)]
