"""Feature maps as the rows that compiled CPU passes go over."""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from kernels.arguments import row_pitch

_WIDE = 256  # elements a row that fill the vector registers
AT_ONCE = 128  # rows whose sums a pass takes in float32, before it goes on in float64
_PART = 1 << 16  # elements a part: well over what a part costs to hand out, several for each core
_SMALL = 1 << 14  # in maps that make few parts, so that two cores, or a few, get an even share
_FEW = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Channels-last maps as rows of `fold` pixels: narrow maps that lie without gaps are taken as fewer, wider rows.

    Attributes:
        count: of rows.
        channels: of each map.
        fold: pixels a row, a power of two.
        parts: into how many the rows are cut; the machine has no say in it, so the same input gives the same bits.
        pitches: elements from one row of each map to the next.
    """

    count: int
    channels: int
    fold: int
    parts: int
    pitches: tuple[int, ...]

    @staticmethod
    def of(*maps: Tensor) -> "Rows":
        """Of maps [N, C, H, W] of one shape, each channels-last or a channel slice."""
        n, channels, h, w = maps[0].shape
        return _cut(n * h * w, channels, tuple([row_pitch(m) for m in maps]))

    @property
    def width(self) -> int:
        """Elements a row."""
        return self.channels * self.fold


@lru_cache(4096)  # a network asks for the same few in each step
def _cut(pixels: int, channels: int, pitches: tuple[int, ...]) -> Rows:
    count, fold = pixels, 1
    if channels < _WIDE and all(pitch == channels for pitch in pitches):
        while fold * channels < _WIDE and count % 2 == 0:
            count, fold = count // 2, 2 * fold
        pitches = tuple(pitch * fold for pitch in pitches)
    elements = count * fold * channels
    parts = max(elements // _PART, min(elements // _SMALL, _FEW))
    return Rows(count, channels, fold, max(1, min(count, parts)), pitches)
