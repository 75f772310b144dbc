"""Batches on the device. A batch is a pure function of its number, so a loader starts anywhere and starts again."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import kernels
from pipelines.augment import DECODE_ERRORS, MEAN, STD, PictureSpec, picture_graph
from pipelines.check import decode_failures
from pipelines.draws import Draws, draw
from pipelines.errors import InputError
from pipelines.listing import as_text
from pipelines.memory import PictureMemory
from pipelines.sampling import Sampling, epoch_rows, rank_slice
from pipelines.shards import location, read_or_none

log = logging.getLogger("manylabel")

PREFETCH = 2  # batches that are made ahead
NOTHING = np.zeros((1, 1, 3), np.uint8)  # stands for a picture that is not in memory
PADDING = -1  # row number of a place in a batch that holds no picture of its own


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and their rows.

    Attributes:
        images: [batch, 3, size, size], channels-last, normalised, on the pipeline's device.
        rows: int64 [batch] on the CPU; PADDING where the place is filled up.
    """

    images: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class Request:
    """What a batch shall hold: row numbers (PADDING for none), and what happens to each picture."""

    rows: NDArray[np.int64]
    draws: Draws | None


class Held:
    """What DALI handed over and the GPU may not have read yet: as soon as Python lets go of it, DALI fills it again.

    Python orders steps far faster than a GPU takes them, so it waits here for the batch before the last one.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[torch.cuda.Event, Any]] = deque()

    def keep(self, outputs: Any) -> None:
        """Until all that has been ordered on the current stream is done, or longer."""
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self.waiting.append((event, outputs))
        if len(self.waiting) > PREFETCH:
            self.waiting[0][0].synchronize()
            self.waiting.popleft()

    def let_go(self) -> None:
        """Of everything, once the GPU has read it: the pipeline ends, and another may take its memory."""
        if self.waiting:
            torch.cuda.current_stream().synchronize()
            self.waiting.clear()


@dataclass
class PictureStream:
    """Runs the picture graph over requests; replaces pictures that went bad since they were checked.

    Attributes:
        root, files: the data set's pictures.
        request: the request of a batch by its number; None after the last.
        batch_size: pictures a batch, the same for all.
        spec: size, placement and type.
        memory: pictures that need not be decoded again; None: none are kept.
        bad: rows that turned out not to decode, with the reason; grows.
    """

    root: Path
    files: Sequence[str]
    request: Callable[[int], Request | None]
    batch_size: int
    spec: PictureSpec
    memory: PictureMemory | None = None
    bad: dict[int, str] = field(default_factory=dict)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches from number `start` on.

        Raises:
            InputError: no picture of a batch and its neighbours can be decoded any more.
        """
        number, run, held = start, self._pipeline(start), Held()
        while True:
            try:
                images, rows, *decoded = run()
            except StopIteration:
                held.let_go()
                return
            except DECODE_ERRORS as error:
                held.let_go()
                self._find_bad(number, error)
                run = self._pipeline(number)
                continue
            if decoded and self.memory is not None:
                self._keep(number, decoded[0])
            batch = Batch(_normalised(_tensor(images), self.spec), _tensor(rows).view(-1))
            if self.spec.placement == "gpu":
                held.keep(images)
            yield batch
            number += 1

    def _pipeline(self, start: int) -> Callable[[], Any]:
        from nvidia.dali import pipeline_def, types

        augmented = getattr(self.request(start), "draws", None) is not None
        gpu, remembers = self.spec.placement == "gpu", self.memory is not None

        def source(iteration: int) -> tuple[Any, ...]:
            request = self.request(start + iteration)
            if request is None:
                raise StopIteration
            shown, rows = self._good(start + iteration, request.rows)
            given: tuple[Any, ...] = ([self._encoded(row) for row in shown], rows[:, None])
            if request.draws is not None:
                given += (request.draws.matrix, request.draws.colour)
            if self.memory is not None:
                kept = [self.memory.pictures.get(row) for row in shown]
                there = np.array([picture is not None for picture in kept])
                given += (there, [NOTHING if picture is None else picture for picture in kept])
            return given

        inputs: dict[str, Any] = {
            "dtype": [types.UINT8, types.INT64] + [types.FLOAT] * 2 * augmented + [types.BOOL, types.UINT8] * remembers,
            "ndim": [1, 1] + [2, 2] * augmented + [0, 3] * remembers,
            "layout": ["", ""] + ["", ""] * augmented + ["", "HWC"] * remembers,
        }
        define = pipeline_def(
            batch_size=self.batch_size,
            num_threads=self.spec.threads,
            device_id=self.spec.device_id if gpu else None,
            prefetch_queue_depth=PREFETCH,
            enable_conditionals=remembers,
        )
        pipeline = define(_graph)(source, inputs, augmented, self.spec, self._packed())
        pipeline.build()
        run: Callable[[], Any] = pipeline.run
        return run

    def _keep(self, number: int, decoded: Any) -> None:
        """Remembers the pictures of a batch before anything was drawn on them."""
        memory, request = self.memory, self.request(number)
        if memory is None or request is None:
            return
        for place, row in enumerate(self._good(number, request.rows)[0]):
            if row not in memory.pictures:
                memory.keep(row, np.asarray(decoded.at(place)))

    def _encoded(self, row: int) -> NDArray[np.uint8]:
        """The path of a file, or the content of one in a shard."""
        path = f"{self.root}/{self.files[row]}"
        if not self._packed():
            return np.frombuffer(os.fsencode(path), np.uint8)
        return read_or_none(path)

    def _packed(self) -> bool:
        return len(self.files) > 0 and location(self.files[0]) is not None

    def _good(self, number: int, rows: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
        """Rows to show, bad pictures replaced by the next good one of the batch, padding by any; and rows to report."""
        stand_in = self._stand_in(number)
        shown, kept = [], rows.copy()
        for place, row in enumerate(rows.tolist()):
            if row == PADDING or row in self.bad:
                following = rows[place:].tolist() + rows[:place].tolist()
                row = next((r for r in following if r != PADDING and r not in self.bad), stand_in)
                kept[place] = self._replacement(row)
            shown.append(row)
        return shown, kept

    def _stand_in(self, number: int) -> int:
        """A good picture of a batch, or else of its neighbours: a ragged last batch may hold a single one.

        Raises:
            InputError: there is none; it is not about a picture then, but about all of them.
        """
        for near in (number, number + 1, number - 1):
            good = self._left(near)
            if good:
                return good[0]
        raise InputError(f"{self.root}: none of the pictures of a batch can be decoded any more")

    def _left(self, number: int) -> list[int]:
        """Rows of a batch that are not known to be bad."""
        request = self.request(number) if number >= 0 else None
        rows = [] if request is None else request.rows.tolist()
        return [row for row in rows if row != PADDING and row not in self.bad]

    def _replacement(self, row: int) -> int:
        """The row number to report for a place whose own picture is missing."""
        return row

    def _find_bad(self, number: int, error: Exception) -> None:
        """Names the pictures that made the batches in flight fail.

        Raises:
            Exception: the given error, if all their pictures decode: it was about something else.
        """
        found = {}
        for near in range(number - 1, number + PREFETCH + 2):
            rows = self._left(near)
            reasons = decode_failures([str(self.root / self.files[row]) for row in rows])
            found.update({row: reason for row, reason in zip(rows, reasons, strict=True) if reason})
        if not found:
            raise error
        for row, reason in found.items():
            log.warning("%s: %s; left out from here on", as_text(self.files[row]), reason)
        self.bad.update(found)


def _graph(
    source: Callable[[int], Any], inputs: dict[str, Any], augmented: bool, spec: PictureSpec, packed: bool
) -> Any:
    """The picture graph on what a source of batches gives: images and rows, and pictures to remember where wanted."""
    from nvidia.dali import fn

    path, row, *rest = fn.external_source(source, num_outputs=len(inputs["ndim"]), batch=True, **inputs)
    numbers = (rest[0], rest[1]) if augmented else None
    kept = (rest[-2], rest[-1]) if len(rest) > 2 * augmented else None
    image, still = picture_graph(path, numbers, spec, kept, packed)
    return (image, row) if kept is None else (image, row, still)


class EvaluationStream(PictureStream):
    """A stream in which a place without a picture of its own reports PADDING, so that no row counts twice."""

    def _replacement(self, row: int) -> int:
        return PADDING


def _normalised(pixels: torch.Tensor, spec: PictureSpec) -> torch.Tensor:
    """[batch, 3, size, size] of what the graph gives [batch, size, size, 3]: bytes, numbers, or bits of bfloat16."""
    if pixels.dtype == torch.uint8:
        return kernels.normalize(pixels, [MEAN] * 3, [STD] * 3, getattr(torch, spec.dtype))
    return (pixels.view(torch.bfloat16) if pixels.dtype == torch.uint16 else pixels).permute(0, 3, 1, 2)


def _tensor(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return tensor


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything random about the pictures of a training run.

    Attributes:
        rows: row numbers of the training split.
        targets: bool [len(rows), labels].
        sampling, target: as in `sampling.epoch_rows`.
        seed: of sampling and augmentation.
        batch_size: pictures a step of all ranks together.
        size: side of the pictures in pixels.
        augment: whether pictures are drawn anew each time.
        rank, ranks: which share of each step this process takes.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.bool_]
    sampling: Sampling
    target: int | None
    seed: int
    batch_size: int
    size: int
    augment: bool
    rank: int = 0
    ranks: int = 1

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers of the data set in the order of an epoch."""
        return self.rows[epoch_rows(self.targets, self.sampling, self.seed, epoch, self.target)]

    def steps(self) -> int:
        """Steps an epoch; the ragged rest of an epoch is dropped."""
        return len(self.epoch(0)) // self.batch_size


def training_stream(
    root: Path,
    files: Sequence[str],
    plan: TrainingPlan,
    spec: PictureSpec,
    memory: PictureMemory | None = None,
    end: int | None = None,
) -> PictureStream:
    """Batch number n is step n % steps of epoch n // steps. Nothing stops at an epoch's end, and without an `end`
    nothing at all."""
    steps = plan.steps()
    current: dict[int, NDArray[np.int64]] = {}

    def request(number: int) -> Request | None:
        if end is not None and number >= end:
            return None
        epoch, step = divmod(number, steps)
        if epoch not in current:
            for old in [known for known in current if known < epoch - 1]:  # the one before is still asked for
                del current[old]
            current[epoch] = plan.epoch(epoch)
        positions = rank_slice(step, plan.batch_size, plan.rank, plan.ranks)
        count = positions.stop - positions.start
        draws = draw(plan.seed, epoch, positions.start, count, plan.size) if plan.augment else None
        return Request(current[epoch][positions], draws)

    share = rank_slice(0, plan.batch_size, plan.rank, plan.ranks)
    return PictureStream(root, files, request, share.stop - share.start, spec, memory)


def evaluation_stream(
    root: Path, files: Sequence[str], rows: NDArray[np.int64], batch_size: int, spec: PictureSpec
) -> PictureStream:
    """Each row once, in order, without randomness; the last batch is filled up with PADDING."""

    def request(number: int) -> Request | None:
        chosen = rows[number * batch_size : (number + 1) * batch_size]
        if not len(chosen):
            return None
        return Request(np.pad(chosen, (0, batch_size - len(chosen)), constant_values=PADDING), None)

    return EvaluationStream(root, files, request, batch_size, spec)
