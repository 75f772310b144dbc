"""The random numbers of augmentation: a pure function of (seed, epoch, position), in whatever batches it is asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ANGLE = 15.0  # degrees to either side
SMALLEST_CROP = 0.9  # of the picture's side
BRIGHTNESS = 0.2  # factor 1 ± this
CONTRAST = 0.2
HUE = 18.0  # degrees to either side

NUMBERS = 8  # random numbers a draw; the generator gives 4 a counter


@dataclass(frozen=True, slots=True)
class Draws:
    """What happens to each picture of a batch; arrays of float32 with the batch first.

    Attributes:
        matrix: [batch, 2, 3], from output pixels to pixels of the letterboxed picture: rotation, crop and flip in one.
        colour: [batch, 3, 4], a row an output channel: factors of red, green, blue, and what is added (0 to 255).
    """

    matrix: NDArray[np.float32]
    colour: NDArray[np.float32]


def uniform_numbers(seed: int, epoch: int, start: int, count: int) -> NDArray[np.float64]:
    """[count, 8] numbers in [0, 1) of the positions from `start` on.

    Philox is a counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): a
    position's numbers are found without drawing those before it.
    """
    key = np.random.SeedSequence((seed, epoch, 2)).generate_state(2, np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=start * (NUMBERS // 4), key=key))
    return generator.random((count, NUMBERS))


def draw(seed: int, epoch: int, start: int, count: int, size: int) -> Draws:
    """Draws of the positions start … start + count of an epoch, for pictures of size × size pixels.

    Flip with probability 1/2, rotation by ±15° about the centre, crop of 90 to 100 % of the side enlarged back,
    brightness and contrast by ±20 %, hue by ±18°.
    """
    u = uniform_numbers(seed, epoch, start, count)
    angle = np.deg2rad(ANGLE * (2 * u[:, 0] - 1))
    zoom = SMALLEST_CROP + (1 - SMALLEST_CROP) * u[:, 1]
    flip = np.where(u[:, 2] < 0.5, -1.0, 1.0)
    shift = (u[:, 3:5] - 0.5) * ((1 - zoom) * size)[:, None]
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turn = np.stack([np.stack([cos * flip, -sin], -1), np.stack([sin * flip, cos], -1)], 1)
    middle = np.full(2, size / 2)
    offset = middle + shift - turn @ middle
    return Draws(
        matrix=np.concatenate([turn, offset[:, :, None]], 2).astype(np.float32),
        colour=colour_matrix(
            1 + BRIGHTNESS * (2 * u[:, 5] - 1), 1 + CONTRAST * (2 * u[:, 6] - 1), HUE * (2 * u[:, 7] - 1)
        ),
    )


# Luma and the two colour differences of NTSC television; hue turns the plane of these two.
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
FROM_YIQ = np.linalg.inv(TO_YIQ)


def colour_matrix(
    brightness: NDArray[np.float64], contrast: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Hue, then contrast about 128, then brightness as one matrix [batch, 3, 4], as DALI's color_twist has them.

    Args:
        brightness, contrast: factors [batch].
        hue: degrees [batch].
    """
    angle = np.deg2rad(hue)
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = np.sin(angle), -np.sin(angle)
    factors = (brightness * contrast)[:, None, None] * (FROM_YIQ @ turn @ TO_YIQ)
    added = brightness * 128 * (1 - contrast)
    return np.concatenate([factors, np.repeat(added, 3).reshape(-1, 3, 1)], 2).astype(np.float32)
