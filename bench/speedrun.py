"""`python -m bench.speedrun`: how much sooner `fast` has what `paper` ends with, and how much better it is by then.

For each seed, one after the other on the same machine:

    paper    trains to its end; its validation micro-F1 is the target, its time the unit
    sprint   `fast`, as many batches as fit a quarter of that time
    fast     `fast`, as many as fit all of it

Both presets have the same width and arithmetic, and in the end the same picture size. Each first takes a few steps on a
network that is thrown away, so that nothing is compiled on the clock; looking at validation is off the clock too
(bench.race).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine import command
from engine.config import LARGEST, Config, Device, Preset, resolve
from pipelines.dataset import Layout
from pipelines.errors import InputError

if TYPE_CHECKING:
    from bench.race import Outcome
    from engine.trainer import Trainer
    from pipelines.dataset import Dataset

SPRINT = 0.25  # of paper's time
LOOKS = 8  # of a run, beside those at the ends of epochs
RUNS: dict[str, Preset] = {"paper": "paper", "sprint": "fast", "fast": "fast"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains the presets paper and fast in turn and compares them by the clock.

    OUT gets speedrun.json and speedrun.png after each seed.
    """

    data: Path
    """Folder of the data set."""
    out: Path
    """Folder of the figures."""
    format: Layout = "auto"
    """Layout of the data set."""
    seeds: int = 3
    """Races, with seeds 0, 1, ..."""
    epochs: int | None = None
    """Epochs of paper; by default the preset's."""
    budget_minutes: float | None = None
    """Training time of paper, in place of --epochs: as many epochs as fit by the pace of its first steps."""
    image_size: int | None = None
    """As in engine.train, for both."""
    width: float | None = None
    """As in engine.train, for both."""
    batch_size: int | None = None
    """As in engine.train, for both; by default each preset's own."""
    amp: bool = False
    """Automatic mixed precision."""
    device: Device = "auto"
    """Where to train."""
    test: bool = False
    """Measure the outcomes on the test split too."""


def main() -> int:
    """Parses the command line and races; the exit status."""
    return speedrun(command.parse(Arguments, "python -m bench.speedrun"))


def speedrun(arguments: Arguments) -> int:
    """Races each seed, and writes figures after each; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from bench.speedrun_figures import write_figures
    from engine.answers import Stopped
    from engine.data import read_data
    from engine.fitting import fitting_batch
    from pipelines.progress import say

    configs = _configs(arguments)
    dataset = read_data(arguments.data, configs["paper"])
    say(dataset.summary())
    configs = {preset: fitting_batch(config, dataset) for preset, config in configs.items()}
    splits = ("val", "test") if arguments.test else ("val",)
    if missing := [split for split in splits if split not in dataset.splits]:
        raise InputError(f"{arguments.data}: there is no {missing[0]} split")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {arguments.out}: cannot be made: {error.strerror}") from None
    races: list[dict[str, Outcome]] = []
    with command.Interrupt() as interrupt:
        try:
            say("a few steps of each preset first, on a network that is thrown away")
            pace = {name: _pace(configs[preset], dataset, interrupt) for name, preset in RUNS.items() if name != "fast"}
            configs["paper"] = _in_budget(configs["paper"], dataset, pace["paper"], arguments.budget_minutes)
            say(f"a batch takes {pace['paper']:.3g} s in paper and {pace['sprint']:.3g} s in fast")
            for seed in range(arguments.seeds):
                seeded = {preset: replace(config, seed=seed) for preset, config in configs.items()}
                races.append(_race(seeded, dataset, pace, splits, interrupt))
                for line in write_figures(races, configs, dataset, arguments.out):
                    say(line)
        except Stopped:
            say(f"stopped; {len(races)} seeds were raced")
            return interrupt.status
    return command.OK


def _configs(arguments: Arguments) -> dict[Preset, Config]:
    """The presets with what the command line gives."""
    if arguments.seeds < 1:
        raise InputError(f"--seeds {arguments.seeds}: must be above 0")
    if arguments.epochs is not None and arguments.budget_minutes is not None:
        raise InputError("--epochs and --budget-minutes exclude each other")
    if arguments.budget_minutes is not None and not 0 < arguments.budget_minutes < math.inf:
        raise InputError(f"--budget-minutes {arguments.budget_minutes:g}: must be above 0 and finite")
    given = {name: getattr(arguments, name) for name in ("image_size", "width", "batch_size", "device")}
    given |= {"data": str(arguments.data.absolute()), "layout": arguments.format, "amp": arguments.amp or None}
    return {"paper": resolve("paper", {**given, "epochs": arguments.epochs}), "fast": resolve("fast", given)}


def _trainer(config: Config, dataset: "Dataset", stopped: Callable[[], bool]) -> "Trainer":
    from engine.device import decide
    from engine.run import Run
    from engine.trainer import Trainer

    return Trainer(config, dataset, decide(config.device, config.amp, config.compile), Run(Path()), stopped)


def _pace(config: Config, dataset: "Dataset", stopped: Callable[[], bool]) -> float:
    """Seconds a batch; what is compiled at first use is compiled by then."""
    from engine.pace import seconds_a_step

    return seconds_a_step(_trainer(config, dataset, stopped))


def _in_budget(config: Config, dataset: "Dataset", pace: float, minutes: float | None) -> Config:
    """The configuration with as many epochs as fit."""
    if minutes is None:
        return config
    steps = _trainer(config, dataset, lambda: False).steps
    return replace(config, epochs=min(int(LARGEST["epochs"]), max(1, round(60 * minutes / (pace * steps)))))


def _race(
    configs: dict[Preset, Config],
    dataset: "Dataset",
    pace: dict[str, float],
    splits: tuple[str, ...],
    stopped: Callable[[], bool],
) -> "dict[str, Outcome]":
    """The three runs of a seed.

    `pace`, seconds a batch of a run, is corrected by each: a few batches tell it less well than all of them.
    """
    from bench.race import race
    from pipelines.progress import bar, say

    outcomes: dict[str, Outcome] = {}
    for name, preset in RUNS.items():
        trainer = _trainer(configs[preset], dataset, stopped)
        seconds = trainer.total * pace["paper"]
        if preset == "fast":
            seconds = outcomes["paper"].seconds * (SPRINT if name == "sprint" else 1)
            trainer.total = max(1, int(seconds / pace.get(name, pace["sprint"])))
        with bar(f"{name}, seed {configs[preset].seed}") as advance:
            outcomes[name] = race(trainer, seconds / LOOKS, splits, advance)
        pace[name] = outcomes[name].seconds / (outcomes[name].looks[-1].pictures / trainer.config.batch_size)
        final = outcomes[name].final["val"]
        say(
            f"{name}, seed {configs[preset].seed}: {outcomes[name].seconds:.0f} s, micro-F1 {final['micro_f1']:.4f}, "
            f"macro-F1 {final['macro_f1']:.4f}, mAP {final['map']:.4f}"
        )
    return outcomes


if __name__ == "__main__":
    command.main(main)
