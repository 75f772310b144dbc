"""The network's answers for the rows of a split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import kernels
from engine.config import Config, Device
from engine.device import Placement, decide
from engine.model import InceptionResNetV1
from engine.ranks import ALONE, Ranks
from pipelines.dataset import Dataset
from pipelines.loader import PADDING, PictureStream, evaluation_stream

MOST = 64  # pictures a batch: a run's may be of many processes and GPUs, and nothing is gained by more


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


def predict_part(
    model: InceptionResNetV1,
    dataset: Dataset,
    split: str,
    batch_size: int,
    image_size: int,
    placement: Placement,
    ranks: Ranks,
    stopped: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """As `predict`, for a split: each rank answers for its part, and all get all answers, in the split's order.

    `progress` is told pictures done and in all, of the part.

    Raises:
        Stopped: `stopped` became true; it is not asked where there are several ranks, who would wait for each other.
    """
    rows = dataset.splits[split]
    rows = rows[ranks.part(len(rows))]
    stream = evaluation_stream(dataset.root, dataset.files, rows, batch_size, placement.spec(image_size))
    own = predict(
        model,
        stream,
        placement,
        len(model.logits.bias),
        stopped if ranks.count == 1 else lambda: False,
        lambda done: progress(min(len(rows), done * batch_size), len(rows)),
    )
    if ranks.count == 1:
        return own
    logits, numbers = zip(*ranks.gather(own), strict=True)
    return torch.cat(logits), np.concatenate(numbers)


def mean_loss(logits: torch.Tensor, targets: NDArray[np.bool_]) -> float:
    """Binary cross-entropy, unweighted, the mean over rows and labels."""
    return float(kernels.sigmoid_bce(logits, torch.from_numpy(targets)))


def answers(
    network: InceptionResNetV1,
    dataset: Dataset,
    split: str,
    config: Config,
    device: Device,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Logits and row numbers of a split in float32 arithmetic, whatever the run was trained in.

    An exported file computes in float32 too: figures and thresholds are those of the file.

    Args:
        network: answers for `dataset`'s pictures; is moved to the device.
        config: of its run, for picture size and the largest batch.
        progress: told pictures done and in all.
        ranks: who share the pictures.

    Raises:
        Stopped: `stopped` became true.
        InputError: there is no such device.
    """
    placement = decide(device, amp=False, compile="off", local=ranks.local)
    network.to(device=placement.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _without_tf32():
        return predict_part(
            network,
            dataset,
            split,
            min(config.batch_size, MOST),
            config.image_size,
            placement,
            ranks,
            stopped,
            progress,
        )


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions compute in float32 proper; flags() of torch.backends.cudnn would switch off what it is not given."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
