"""python -m engine.infer: photographs in, labels and probabilities out, with nothing but an ONNX file of ours.

In Python, `Classifier` is the same as a function.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from engine import command
from pipelines.errors import InputError

if TYPE_CHECKING:
    from engine.answer_file import AnswerFile
    from engine.classifier import Classifier
    from engine.ranks import Ranks


UNREADABLE, MOST = 10, 100  # exit status 10 + photographs that could not be read, 100 of them at most
LONGEST_WAIT = 7 * 24 * 3600.0  # seconds, of the fastest process for the slowest
LINE_EVERY = 60.0  # seconds between lines where there is no bar


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Classifies photographs with an ONNX file of engine.export.

    Exit status: 0 all done; 11 to 110 done, but 1 to 100 or more photographs could not be read, each has its row;
    2 bad input; 130 stopped by Ctrl-C, 143, 138 or 129 by another signal, to be gone on with by --resume. Under
    torchrun, which would start again for any status but 0, all done is 0, with unreadable photographs too.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The ONNX file."""
    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Photographs, folders, globs, tables whose first column names photographs; - reads a list from standard input."""
    out: Path = Path("predictions.csv")
    """File to write, .csv, .jsonl or .parquet: a row a photograph."""
    resume: bool = False
    """Go on with a file that was interrupted."""
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Where to compute; auto takes the GPU where it works and says what it took, the others never fall back."""
    batch_size: int | None = None
    """Photographs that go through the network together; by default 16 on a CPU, 64 on a GPU."""
    threshold: float | None = None
    """Probability from which on any label is decided; by default each label's own, from the file."""


def __getattr__(name: str) -> Any:
    """`Classifier`, when it is asked for: it brings ONNX Runtime, which --help does without."""
    if name != "Classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine.classifier import Classifier

    return Classifier


def main() -> int:
    """Parses the command line and classifies; the exit status."""
    return infer(command.parse(Arguments, "python -m engine.infer"))


def infer(arguments: Arguments) -> int:
    """Classifies as the command line says; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise InputError(f"--batch-size {arguments.batch_size}: must be above 0")
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold:g}: must lie between 0 and 1")
    if any(_same(arguments.out, path) for path in arguments.paths):
        raise InputError(f"--out {arguments.out}: is what the photographs are to be read from; give another file")
    from engine.ranks import joined

    with joined(LONGEST_WAIT) as ranks:
        return _infer(arguments, ranks)


def _infer(arguments: Arguments, ranks: "Ranks") -> int:
    from engine.answer_file import digest
    from engine.classifier import Classifier
    from engine.model_file import read_model
    from pipelines.check import decoder_silenced
    from pipelines.listing import as_text, photographs
    from pipelines.progress import say

    content, description = read_model(arguments.file)
    paths = ranks.from_first(lambda: photographs(arguments.paths, _standard_input()))
    options = (arguments.device, arguments.batch_size, arguments.threshold)
    classifier = Classifier.of(content, description, *options, number=ranks.local)
    version = digest(content, arguments.threshold)
    del content
    with (
        _answer_file(arguments, description.labels, version, ranks) as predictions,
        command.Interrupt() as interrupt,
    ):
        left = ranks.from_first(lambda: [path for path in paths if as_text(path) not in predictions.done])
        already = f", {len(paths) - len(left):,} of them done" if predictions.done else ""
        say(f"{len(paths):,} photographs{already}; {classifier.note}")
        own = left[ranks.part(len(left))]
        began = time.perf_counter()
        with decoder_silenced():
            finished = _classify(classifier, own, predictions, interrupt)
        found = ranks.gather((finished, predictions.rows, predictions.unreadable))
        rows, unreadable = (sum(numbers) for numbers in ([f[1] for f in found], [f[2] for f in found]))
        if not all(whole for whole, _, _ in found):
            say(f"stopped, {rows:,} of {len(paths):,} done; the same command with --resume goes on")
            return interrupt.status
        if ranks.first:
            predictions.finish()
    rate = speed(len(left), time.perf_counter() - began)
    say(f"{arguments.out}: {rows:,} photographs, {rate}")
    if unreadable:
        say(f"{unreadable:,} of them could not be read; column error says why")
        if ranks.count == 1:
            return UNREADABLE + min(unreadable, MOST)
    return command.OK


def _answer_file(arguments: Arguments, labels: Sequence[str], version: str, ranks: "Ranks") -> "AnswerFile":
    """This process's. What the first, who knows what was there, has against it holds for all."""
    from engine.answer_file import AnswerFile

    opened: list[AnswerFile] = []

    def begin() -> None:
        opened.append(AnswerFile(arguments.out, labels, version, arguments.resume, ranks.rank))

    ranks.from_first(begin)
    if not ranks.first:
        begin()
    return opened[0]


def _standard_input() -> Iterator[str]:
    """Lines as names of files are: any bytes."""
    yield from map(os.fsdecode, sys.stdin.buffer if sys.stdin else ())


def _same(out: Path, path: str) -> bool:
    return out.exists() and os.path.exists(path) and out.samefile(path)


def _classify(
    classifier: "Classifier", paths: list[str], predictions: "AnswerFile", stopped: Callable[[], bool]
) -> bool:
    """Adds a row for each path; whether it came to the end."""
    from pipelines.listing import as_text
    from pipelines.progress import bar, console, say

    began = shown = time.perf_counter()
    with bar("classifying") as advance:
        for found in classifier.stream(paths):
            errors = [found.errors.get(number) for number in found.numbers]
            decided = classifier.decided(found.probabilities)
            predictions.add([as_text(paths[i]) for i in found.numbers], decided, found.probabilities, errors)
            done, now = found.numbers.stop, time.perf_counter()
            rate = speed(done, now - began)
            advance(done, len(paths), rate)
            if not console.is_terminal and now - shown > LINE_EVERY:
                say(f"{done:,} of {len(paths):,}  {rate}")
                shown = now
            if stopped() and done < len(paths):
                return False
    return True


def speed(images: int, seconds: float) -> str:
    rate = images / max(seconds, 1e-9)
    return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"


if __name__ == "__main__":
    command.main(main)
