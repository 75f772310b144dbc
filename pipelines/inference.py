"""Photographs to letterboxed pictures, without labels and without trust: some of the files may be no pictures at all.

Decoding and letterbox are those of pipelines.augment, which validation uses. A file that cannot be read costs its own
row and nothing else.
"""

import os
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import DECODE_ERRORS, PictureSpec, decode, letterbox
from pipelines.check import decode_failures, unsupported

PREFETCH = 2  # batches that are made ahead
BATCH_PIXELS = 1 << 26  # of the files together: a batch of very large photographs has fewer of them


@dataclass(frozen=True, slots=True)
class Pictures:
    """Some of the photographs, in their order.

    Attributes:
        numbers: of the photographs, readable or not.
        readable: of those that `images` holds.
        images: DALI's pictures, uint8 RGB: `as_tensor()` is [len(readable), size, size, 3]; without letterbox, each has
            its own size. They are overwritten when the next are asked for. None where no photograph is readable.
        errors: why a photograph could not be read, by its number.
    """

    numbers: range
    readable: list[int]
    images: Any
    errors: dict[int, str]


class Photographs:
    """Reads photographs in batches, decoding ahead.

    Args:
        paths: of the files.
        batch_size: photographs a batch, at most.
        spec: size, placement and threads.
        letterboxed: whether the pictures are brought to `spec.size`.
    """

    def __init__(self, paths: Sequence[str], batch_size: int, spec: PictureSpec, letterboxed: bool = True) -> None:
        self.paths, self.batch_size, self.spec, self.letterboxed = paths, batch_size, spec, letterboxed
        self.errors: dict[int, str] = {}

    def __iter__(self) -> Iterator[Pictures]:
        waiting: deque[range] = deque()  # what DALI was given and has not handed over
        again: deque[range] = deque()  # what it was given when a file did not decode
        fresh = self._batches()

        def source() -> list[NDArray[np.uint8]]:
            """Paths of the next batch that has a file to read."""
            while True:
                numbers = again.popleft() if again else next(fresh)
                waiting.append(numbers)
                readable = self._readable(numbers)
                if readable:
                    return [np.frombuffer(os.fsencode(self.paths[i]), np.uint8) for i in readable]

        run = self._pipeline(source)
        while True:
            try:
                images = run()
            except StopIteration:
                break
            except DECODE_ERRORS as error:
                self._find_unreadable(waiting, error)
                again.extendleft(reversed(waiting))
                waiting.clear()
                run = self._pipeline(source)
                continue
            yield from self._delivered(waiting, images)
        yield from self._delivered(waiting, None)

    def _delivered(self, waiting: deque[range], images: Any) -> Iterator[Pictures]:
        """The next batch, after those that have no readable file; without `images` only these."""
        while waiting:
            numbers = waiting.popleft()
            readable = self._readable(numbers)
            errors = {i: self.errors.pop(i) for i in numbers if i in self.errors}
            yield Pictures(numbers, readable, images if readable else None, errors)
            if readable:
                return

    def _readable(self, numbers: range) -> list[int]:
        return [i for i in numbers if i not in self.errors]

    def _batches(self) -> Iterator[range]:
        """Numbers of the files, as many together as fit; files that are plainly no pictures are noted on the way."""
        first, pixels = 0, 0
        for i, path in enumerate(self.paths):
            found = _pixels(path)
            if isinstance(found, str):
                self.errors[i] = found
                found = 0
            if i > first and (i - first == self.batch_size or pixels + found > BATCH_PIXELS):
                yield range(first, i)
                first, pixels = i, 0
            pixels += found
        if len(self.paths) > first:
            yield range(first, len(self.paths))

    def _pipeline(self, source: Callable[[], list[NDArray[np.uint8]]]) -> Callable[[], Any]:
        from nvidia.dali import Pipeline, fn, types

        gpu = self.spec.placement == "gpu"
        pipeline = Pipeline(
            batch_size=self.batch_size,
            num_threads=self.spec.threads,
            device_id=self.spec.device_id if gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        with pipeline:
            path = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
            image = decode(path, self.spec.placement)
            pipeline.set_outputs(letterbox(image, self.spec.size) if self.letterboxed else image)
        pipeline.build()

        def run() -> Any:
            (images,) = pipeline.run()
            return images

        return run

    def _find_unreadable(self, waiting: deque[range], error: Exception) -> None:
        """Names the files that made the batches in flight fail.

        Raises:
            Exception: the given error, if all their files decode: it was about something else.
        """
        numbers = [i for batch in waiting for i in self._readable(batch)]
        reasons = decode_failures([self.paths[i] for i in numbers])
        found = {i: reason for i, reason in zip(numbers, reasons, strict=True) if reason}
        if not found:
            raise error
        self.errors.update(found)


def _pixels(path: str) -> int | str:
    """Pixels of the picture in a file, by its header, or why there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            return "not a file"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return unsupported(image) or image.width * image.height
    except UnidentifiedImageError:
        return "not a picture" if os.path.getsize(path) else "empty file"
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return error.strerror or "cannot be read"
    except Image.DecompressionBombError:
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    except Exception:  # whatever a damaged header makes of the reader; the decoder says what is wrong
        return 0


class Letterbox:
    """Letterboxes pictures that are in memory. Threads may share it; they take turns.

    Args:
        size: side of the square picture.
        batch_size: the most that `__call__` takes.
        threads: DALI's.
    """

    def __init__(self, size: int, batch_size: int, threads: int) -> None:
        from nvidia.dali import Pipeline, fn, types

        self._turn = Lock()
        self._pipeline = Pipeline(
            batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=False
        )
        with self._pipeline:
            image = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC")
            self._pipeline.set_outputs(letterbox(image, size))
        self._pipeline.build()

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """uint8 RGB pictures [H, W, 3] of any sizes, contiguous, to [N, size, size, 3]."""
        with self._turn:
            self._pipeline.feed_input("images", list(images))
            (letterboxed,) = self._pipeline.run()
            return np.array(letterboxed.as_tensor())
