"""python -m engine.evaluate: the figures of a trained network on any data set and split."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from engine import command
from engine.config import Device
from pipelines.dataset import Layout
from pipelines.errors import InputError

if TYPE_CHECKING:
    from engine.predicted import Predicted
    from engine.ranks import Ranks
    from engine.trained import Trained
    from pipelines.dataset import Dataset

NAMED = 5  # labels that a line names


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Figures of a run's best network on a split, at 0.5 and at the run's tuned thresholds, with 95 % intervals."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Folder of the data set; by default the run's own. Labels are matched by name."""
    format: Layout | None = None
    """Layout of the data set; by default the run's for its own data, else found out."""
    split: Literal["val", "test", "train"] = "val"
    """Pictures to evaluate on; a data set without val has one split off, as in training."""
    allow_bad: bool = False
    """Evaluate even where more than 5 % of the data set's pictures are missing or damaged."""
    out: Path | None = None
    """JSON file for the figures."""
    predictions: Path | None = None
    """File for the probabilities, .csv, .jsonl or .parquet, with the columns of engine.infer."""
    device: Device = "auto"
    """Where to compute, in float32."""
    draws: int = 1000
    """Bootstrap draws that the intervals come from; 0: no intervals."""
    seed: int = 0
    """Of the draws."""


def main() -> int:
    """Parses the command line and evaluates; the exit status."""
    return evaluate(command.parse(Arguments, "python -m engine.evaluate"))


def evaluate(arguments: Arguments) -> int:
    """Evaluates as the command line says; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from engine.ranks import STALLED, joined

    _require_folders(arguments)
    with joined(STALLED) as ranks:
        return _evaluate(arguments, ranks)


def _evaluate(arguments: Arguments, ranks: "Ranks") -> int:
    from engine.answers import Stopped
    from engine.data import data_of_run, with_validation_of
    from engine.evaluation_table import print_figures
    from engine.run import Run, write_json
    from engine.trained import load_trained
    from pipelines.progress import bar, say

    trained = ranks.from_first(lambda: load_trained(arguments.run))
    config = replace(trained.config, allow_bad=trained.config.allow_bad or arguments.allow_bad)
    own = Run(arguments.run).rejected_files() if arguments.data is None else None
    dataset = ranks.from_first(lambda: data_of_run(config, arguments.data, arguments.format, own))
    elsewhere, read = arguments.data is not None, dataset
    if not elsewhere or dataset.labels == trained.labels:
        dataset = ranks.from_first(lambda: with_validation_of(Run(arguments.run), read, elsewhere))
    changed = not (elsewhere and dataset is read) and ranks.from_first(dataset.fingerprint) != trained.fingerprint
    for note in _notes(trained, dataset, changed):
        say(note)
    with command.Interrupt() as interrupt, bar(f"evaluating {arguments.split}") as advance:
        try:
            found, content = evaluation(
                trained,
                dataset,
                arguments.split,
                arguments.device,
                arguments.draws,
                arguments.seed,
                interrupt,
                lambda done, total: advance(done, total, ""),
                ranks,
            )
        except Stopped:
            return interrupt.status
    if not ranks.first:
        return command.OK
    print_figures(content)
    if arguments.out is not None:
        write_json(arguments.out, content)
        say(f"figures        {arguments.out}")
    if arguments.predictions is not None:
        _write_predictions(arguments.predictions, trained, found)
        say(f"probabilities  {arguments.predictions}")
    return command.OK


def evaluation(
    trained: "Trained",
    dataset: "Dataset",
    split: str,
    device: Device = "auto",
    draws: int = 1000,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ranks: "Ranks | None" = None,
) -> tuple["Predicted", dict[str, Any]]:
    """The answers for a split, for all labels of the network, and the figures of those that the data set has too.

    `ranks` share the pictures; all get all answers, and only the first draws intervals.

    Raises:
        Stopped: `stopped` became true.
        InputError: the data set has no such split, or no label of the network.
    """
    from engine.answers import answers
    from engine.figures import figures
    from engine.predicted import Predicted
    from engine.ranks import ALONE

    if not len(dataset.splits.get(split, ())):
        there = ", ".join(name for name, rows in dataset.splits.items() if len(rows))
        raise InputError(f"{dataset.root}: has no pictures in {split}; it has {there}")
    known = [i for i, label in enumerate(trained.labels) if label in set(dataset.labels)]
    if not known:
        raise InputError(f"{dataset.root}: has none of the labels that the run was trained for")
    ranks = ranks or ALONE
    logits, rows = answers(trained.network, dataset, split, trained.config, device, stopped, progress, ranks)
    draws = draws if ranks.first else 0
    matched = replace(dataset, labels=trained.labels, targets=_matched(dataset, trained.labels))
    found = Predicted.of(logits, rows, matched)
    labels, thresholds = [trained.labels[i] for i in known], [trained.thresholds[i] for i in known]
    compared = Predicted.of(logits[:, known], rows, replace(matched, targets=matched.targets[:, known]))
    return found, {
        "run": trained.name,
        "epoch": trained.epoch,
        "data": dataset.root.name,
        "split": split,
        "loss": compared.loss,
        **figures(labels, compared.probabilities, compared.targets, thresholds, draws, seed),
        "thresholds": dict(zip(labels, thresholds, strict=True)),
    }


def _matched(dataset: "Dataset", labels: Sequence[str]) -> Any:
    """Targets of a data set [rows, labels] in the order of other labels; False for those that it does not have."""
    import numpy as np

    column = {label: i for i, label in enumerate(dataset.labels)}
    targets = np.zeros((len(dataset.targets), len(labels)), bool)
    for i, label in enumerate(labels):
        if label in column:
            targets[:, i] = dataset.targets[:, column[label]]
    return targets


def _require_folders(arguments: Arguments) -> None:
    """Raises InputError for options that would only fail at the end."""
    if arguments.draws < 0:
        raise InputError(f"--draws {arguments.draws}: must not be negative")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed}: must not be negative")
    for name, path in (("out", arguments.out), ("predictions", arguments.predictions)):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"--{name} {path}: there is no folder {path.absolute().parent}")
    if arguments.predictions is not None:
        from engine.answer_file import ENDINGS

        if arguments.predictions.suffix.lower() not in ENDINGS:
            raise InputError(f"--predictions {arguments.predictions}: must end in {', '.join(ENDINGS)}")


def _notes(trained: "Trained", dataset: "Dataset", changed: bool) -> list[str]:
    notes = [dataset.summary(), *dataset.told()]
    if changed:
        notes.append(f"note: {dataset.root} has changed since the run was trained")
    if trained.untuned:
        notes.append(f"thresholds 0.5: the run has not finished and has none for epoch {trained.epoch}")
    lacking = [label for label in trained.labels if label not in set(dataset.labels)]
    unknown = [label for label in dataset.labels if label not in set(trained.labels)]
    if lacking or unknown:
        told = [f"the data set lacks {_some(lacking)}"] if lacking else []
        told += [f"the network does not know {_some(unknown)}"] if unknown else []
        both = len(trained.labels) - len(lacking)
        notes.append(f"note: figures are of the {both} labels that both have: {'; '.join(told)}")
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _write_predictions(path: Path, trained: "Trained", found: "Predicted") -> None:
    import numpy as np

    from engine.answer_file import AnswerFile

    decided = found.probabilities >= np.array(trained.thresholds, np.float32)
    names = [[trained.labels[i] for i in np.flatnonzero(row)] for row in decided]
    partial = uuid.uuid4().hex[:12]  # nothing is gone on with here
    with AnswerFile(path, trained.labels, partial, resume=False) as predictions:
        predictions.add(found.files, names, found.probabilities, [None] * len(found.files))
        predictions.finish()


if __name__ == "__main__":
    command.main(main)
