"""Small pictures for people, decoded as training decodes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import decode_bytes
from pipelines.shards import read_or_none


def thumbnails(root: Path, files: Sequence[str], size: int) -> list[NDArray[np.uint8]]:
    """uint8 RGB [height, width, 3] of each picture of a data set, the longer side `size` pixels.

    Raises:
        RuntimeError: a picture does not decode.
    """
    from nvidia.dali import Pipeline, fn, types

    if not files:
        return []
    contents = [read_or_none(f"{root}/{file}") for file in files]
    pipeline = Pipeline(batch_size=len(files), num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = decode_bytes(fn.external_source(lambda: contents, dtype=types.UINT8, ndim=1), "cpu")
        interp = types.INTERP_LINEAR
        small = fn.resize(image, size=[size, size], mode="not_larger", interp_type=interp, antialias=True)
        pipeline.set_outputs(small)
    (pictures,) = pipeline.run()
    return [np.array(pictures[i]) for i in range(len(files))]
