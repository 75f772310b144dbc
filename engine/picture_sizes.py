"""The size of the training pictures over a run: small ones first, which cost less and teach most of it.

Progressive resizing (Howard's entry to DAWNBench, 2018; Tan and Le, "EfficientNetV2", 2021, section 4). The last stage
has the size that validation and inference have.
"""

from dataclasses import dataclass

from engine.config import SMALLEST_IMAGE, PictureSizes

# From which share of the run's batches on, and the side as a share of the full one.
GROWING = ((0.0, 0.6), (0.5, 0.8), (0.8, 1.0))
MULTIPLE = 16  # of sides below the full one
SMALLEST = -(-SMALLEST_IMAGE // MULTIPLE) * MULTIPLE


@dataclass(frozen=True, slots=True)
class Stage:
    """Batches of one size, up to the next stage's.

    Attributes:
        first: number of the first batch, counted over the run.
        size: side of the pictures in pixels.
    """

    first: int
    size: int


def stages(sizes: PictureSizes, full: int, total: int, steps: int, together: int = 1) -> list[Stage]:
    """The stages of a run, in order; the first begins at 0, and no two in turn have the same size.

    Args:
        sizes: "full": one stage; "growing": as GROWING says.
        full: side of the last stage's pictures.
        total: batches of the run.
        steps: batches an epoch.
        together: batches that make one update; a stage begins with an update.
    """
    found: list[Stage] = []
    for share, part in GROWING if sizes == "growing" else ((0.0, 1.0),):
        size = full if part == 1 else min(full, max(SMALLEST, round(part * full / MULTIPLE) * MULTIPLE))
        epoch, step = divmod(int(share * total), steps)
        stage = Stage(epoch * steps + step - step % together, size)
        if found and found[-1].first == stage.first:  # a run of so few batches has no room for both
            found.pop()
        if not found or found[-1].size != stage.size:
            found.append(stage)
    return found
