"""The network's answers for the rows of a split."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import kernels
from engine.device import Placement
from pipelines.loader import PADDING, PictureStream


class Stopped(Exception):  # noqa: N818 -- nothing went wrong
    """The user asked to stop in the middle."""


def predict(
    model: nn.Module,
    stream: PictureStream,
    placement: Placement,
    labels: int,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Logits (float32 [rows, labels], on the CPU) and row numbers of every picture of a stream, each once.

    `progress` is told the number of batches done.

    Raises:
        Stopped: `stopped` became true.
    """
    model.eval()
    logits, rows = [], []
    with torch.inference_mode():
        for batch in stream.batches():
            if stopped():
                raise Stopped
            with placement.autocast():
                answer = model(batch.images)
            logits.append(answer.float().cpu())
            rows.append(batch.rows.clone())
            progress(len(rows))
    if not rows:
        return torch.empty(0, labels), np.empty(0, np.int64)
    row = torch.cat(rows)
    kept = row != PADDING
    return torch.cat(logits)[kept], row[kept].numpy()


def mean_loss(logits: torch.Tensor, targets: NDArray[np.bool_]) -> float:
    """Binary cross-entropy, unweighted, the mean over rows and labels."""
    return float(kernels.sigmoid_bce(logits, torch.from_numpy(targets)))
