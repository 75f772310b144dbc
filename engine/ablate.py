"""python -m engine.ablate: the study's arms and ours on any data set, as a table and figures."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from engine import command
from engine.arms import ARMS, Arm, command_line
from engine.config import LARGEST, PRESETS, Config, Device, resolve
from pipelines.dataset import Layout
from pipelines.errors import InputError

if TYPE_CHECKING:
    from pipelines.dataset import Dataset

FAILED = 1  # exit status
PR_SET_PDEATHSIG = 1  # of Linux's prctl
ALL: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains baseline, class weights, augmentation with oversampling, and ours, and compares them.

    Each run has a folder of its own below OUT/runs; the same command goes on where Ctrl-C or a crash left it. Exit
    status: 0 done, 1 a run failed (the others are in the table), 2 bad input, 130 stopped by Ctrl-C, 143, 138 or 129 by
    another signal.
    """

    data: Path
    """Folder of the data set."""
    out: Path
    """Folder of the study."""
    summary: Path | None = None
    """Folder for ablation.json, ablation.csv, ablation.md and figures/; by default OUT."""
    format: Layout = "auto"
    """Layout of the data set."""
    arms: tuple[Arm, ...] = ALL
    """Arms to run, in this order."""
    seeds: int = 2
    """Runs of each arm, with seeds 0, 1, ..."""
    budget_minutes: float | None = None
    """Time of each run; an arm gets as many epochs as fit, by the pace of its first steps."""
    epochs: int | None = None
    """Epochs of each run, in place of a budget; by default the preset's."""
    image_size: int | None = None
    """As in engine.train, for all arms."""
    width: float | None = None
    """As in engine.train, for all arms."""
    batch_size: int | None = None
    """As in engine.train, for all arms."""
    amp: bool = False
    """Automatic mixed precision."""
    allow_bad: bool = False
    """As in engine.train, for all arms."""
    device: Device = "auto"
    """Where to train and evaluate."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run to make."""

    arm: Arm
    seed: int
    folder: Path


@dataclass(slots=True)
class Study:
    """What is known while a study runs."""

    arguments: Arguments
    epochs: dict[str, int]
    seconds: list[float] = field(default_factory=list)
    failed: list[Planned] = field(default_factory=list)

    def planned(self) -> list[Planned]:
        """All runs, seed by seed, so that early tables have every arm."""
        out = self.arguments.out.absolute()
        return [
            Planned(arm, seed, out / "runs" / f"{arm}-{seed}")
            for seed in range(self.arguments.seeds)
            for arm in self.arguments.arms
        ]


def main() -> int:
    """Parses the command line and runs the study; the exit status."""
    return ablate(command.parse(Arguments, "python -m engine.ablate"))


def ablate(arguments: Arguments) -> int:
    """Runs what is left of the study, and writes its table and figures; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from engine.ablation import collect, write_summary
    from engine.answers import Stopped
    from pipelines.progress import say

    _check(arguments)
    begun = _begun(arguments.out / "study.json")
    dataset = _dataset(arguments, None if begun is None else begun.get("rejected"))
    say(dataset.summary())
    with command.Interrupt() as interrupt:
        study = Study(arguments, _plan(arguments, dataset, begun, interrupt))
        try:
            _run(study, interrupt)
            done = [(run.arm, run.seed, run.folder) for run in study.planned() if _finished(run.folder)]
            if not done:
                raise InputError(f"{arguments.out}: no run was finished")
            results = collect(done, dataset, arguments.device, interrupt)
        except Stopped:
            say("stopped; the same command goes on")
            return interrupt.status
    write_summary(results, arguments.summary or arguments.out)
    for run in study.failed:
        say(f"missing: {ARMS[run.arm].title}, seed {run.seed}, in {run.folder}")
    return FAILED if study.failed else command.OK


def _run(study: Study, interrupt: "command.Interrupt") -> None:
    """Makes the runs that are not finished, one after the other.

    Raises:
        Stopped: Ctrl-C, here or in a run.
    """
    from engine.answers import Stopped
    from pipelines.progress import say

    runs = study.planned()
    for number, run in enumerate(runs):
        if interrupt():
            raise Stopped
        if _finished(run.folder):
            continue
        say(f"run {number + 1} of {len(runs)}: {ARMS[run.arm].title}, seed {run.seed}{_left(study, runs)}")
        began = time.perf_counter()
        status = _train(_command(study, run), interrupt)
        if status in command.STOPPED:
            raise Stopped
        if status == command.OK and _finished(run.folder):
            study.seconds.append(time.perf_counter() - began)
        else:
            study.failed.append(run)
            say(f"{ARMS[run.arm].title}, seed {run.seed}: failed with exit status {status}; the others go on")


def _check(arguments: Arguments) -> None:
    """Raises InputError for options that do not go together, before anything is read."""
    if arguments.seeds < 1:
        raise InputError(f"--seeds {arguments.seeds}: must be above 0")
    if not arguments.arms or len(set(arguments.arms)) < len(arguments.arms):
        raise InputError("--arms: each arm once, and one at least")
    if arguments.epochs is not None and arguments.budget_minutes is not None:
        raise InputError("--epochs and --budget-minutes exclude each other")
    if arguments.budget_minutes is not None and not 0 < arguments.budget_minutes < math.inf:
        raise InputError(f"--budget-minutes {arguments.budget_minutes:g}: must be above 0 and finite")
    for arm in arguments.arms:
        _config(arguments, arm, 0)


def _config(arguments: Arguments, arm: Arm, seed: int) -> Config:
    """The configuration of a run."""
    values = {**ARMS[arm].values}
    return resolve(values.pop("preset"), {**values, **_common(arguments), "seed": seed})


def _recipe(arguments: Arguments, arm: Arm) -> dict[str, Any]:
    """What makes the arm: a preset may change from one version to the next."""
    values = _config(arguments, arm, 0).values()
    return {name: value for name, value in values.items() if name not in ("data", "device", "epochs", "seed")}


def _has_others(arguments: Arguments, arm: Arm) -> bool:
    """Whether there are runs of the arm by another recipe: an earlier version wrote none into study.json."""
    from engine.run import Run

    names = ({*PRESETS["fast"]} | {*ARMS[arm].values}) - {"preset", "epochs", "batch_size"}
    wanted = _config(arguments, arm, 0)
    for folder in (arguments.out / "runs").glob(f"{arm}-*"):
        run = Run(folder)
        if run.config.exists():
            own = Config.load(run.read_config(), run.config)
            if any(getattr(own, name) != getattr(wanted, name) for name in names):
                return True
    return False


def _common(arguments: Arguments) -> dict[str, Any]:
    """What all arms have, as values of the configuration."""
    return {
        "data": str(arguments.data.absolute()),
        "layout": arguments.format,
        "epochs": arguments.epochs,
        "image_size": arguments.image_size,
        "width": arguments.width,
        "batch_size": arguments.batch_size,
        "amp": arguments.amp,
        "allow_bad": arguments.allow_bad,
        "device": arguments.device,
    }


def _dataset(arguments: Arguments, known_bad: dict[str, str] | None) -> "Dataset":
    from engine.data import read_data

    return read_data(arguments.data, _config(arguments, arguments.arms[0], 0), known_bad)


def _begun(path: Path) -> dict[str, Any] | None:
    """What study.json holds; None where no study has begun.

    Raises:
        InputError: something else is in it.
    """
    import json

    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found["epochs"] = {str(arm): int(count) for arm, count in found["epochs"].items()}
        found["options"] = dict(found["options"])
        found["recipes"] = dict(found.get("recipes", {}))  # an earlier version wrote none
        found["rejected"] = None if found.get("rejected") is None else dict(found["rejected"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not a study's; another --out begins anew") from None
    return found


def _plan(
    arguments: Arguments, dataset: "Dataset", begun: dict[str, Any] | None, stopped: Callable[[], bool]
) -> dict[str, int]:
    """Epochs of each arm. study.json holds them, the options that must stay the same when the study goes on, and the
    pictures that it leaves out.

    Raises:
        InputError: another study is in the folder.
    """
    from engine.pace import seconds_an_epoch
    from engine.run import write_json
    from pipelines.progress import say

    path = arguments.out / "study.json"
    options = {name: value for name, value in _common(arguments).items() if name not in ("data", "device")}
    options |= {"budget_minutes": arguments.budget_minutes, "fingerprint": dataset.fingerprint()}
    changed = [] if begun is None else [name for name in options if begun["options"].get(name) != options[name]]
    if changed == ["fingerprint"]:
        raise InputError(f"{path}: {arguments.data} has changed since the study began; another --out begins anew")
    if changed:
        raise InputError(f"{path}: the study there has another {changed[0]}; another --out begins anew")
    epochs: dict[str, int] = {} if begun is None else begun["epochs"]
    recipes = {} if begun is None else begun["recipes"]
    for arm in arguments.arms:
        known = arm in recipes
        if recipes[arm] != _recipe(arguments, arm) if known else _has_others(arguments, arm):
            what = f"{ARMS[arm].title} was another recipe when the study began"
            raise InputError(f"{path}: {what}; another --out begins anew")
        recipes[arm] = _recipe(arguments, arm)
    for arm in arguments.arms:
        if arm in epochs:
            continue
        if stopped():
            break
        config = _config(arguments, arm, 0)
        epochs[arm] = config.epochs
        if arguments.budget_minutes is not None:
            seconds = seconds_an_epoch(config, dataset)
            epochs[arm] = min(int(LARGEST["epochs"]), max(1, round(60 * arguments.budget_minutes / seconds)))
            say(f"{ARMS[arm].title}: {seconds:.0f} s an epoch, {epochs[arm]} epochs")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rejected = {row.file: row.reason for row in dataset.rejected}
    write_json(path, {"options": options, "epochs": epochs, "recipes": recipes, "rejected": rejected})
    return epochs


def _finished(folder: Path) -> bool:
    from engine.run import Run

    run = Run(folder)
    reported = run.reported()
    return reported is not None and reported[1] and run.thresholds.exists()


def _command(study: Study, run: Planned) -> list[str]:
    """The command line that begins a run or goes on with it."""
    from engine.run import Run

    start = [sys.executable, "-m", "engine.train"]
    if Run(run.folder).config.exists():
        return [*start, "--resume", str(run.folder), *command_line({"device": study.arguments.device})]
    values = {**ARMS[run.arm].values, **_common(study.arguments), "seed": run.seed, "out": run.folder}
    values |= {"epochs": study.epochs[run.arm], "format": values.pop("layout")}
    return [*start, *command_line({**values, "amp": values["amp"] or None})]


def _train(line: list[str], interrupt: "command.Interrupt") -> int:
    """Runs it in a process of its own, which a crash takes nothing else with; its exit status."""
    import ctypes
    import os
    import signal

    source = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])

    def follow() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    # A session of its own: Ctrl-C reaches it once, from here, and it saves; so it does where this process is killed.
    environment = {**os.environ, "PYTHONPATH": source}
    process = subprocess.Popen(line, env=environment, start_new_session=True, preexec_fn=follow)
    told = False
    try:
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if interrupt() and not told:
                    process.send_signal(interrupt.status - 128)
                    told = True
    except BaseException:
        process.kill()
        process.wait()
        raise


def _left(study: Study, runs: list[Planned]) -> str:
    """How long the rest will take, by what the runs so far took."""
    if not study.seconds:
        return ""
    failed = {run.folder for run in study.failed}
    left = sum(not _finished(run.folder) and run.folder not in failed for run in runs)
    return f"; about {left * sum(study.seconds) / len(study.seconds) / 60:.0f} min left"


if __name__ == "__main__":
    command.main(main)
