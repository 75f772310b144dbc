"""python -m engine.train: a folder of photographs and a table of labels in, a trained network out."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from engine import command
from engine.config import BranchInit, Compile, Config, Device, Optimizer, PictureSizes, Preset, Schedule, resolve
from pipelines.dataset import NAMED, Layout
from pipelines.errors import InputError
from pipelines.sampling import Sampling

if TYPE_CHECKING:
    from engine.device import Placement
    from engine.picture_sizes import Stage
    from engine.ranks import Ranks
    from engine.run import Run
    from engine.watchdog import Watchdog
    from pipelines.dataset import Dataset

MAY_CHANGE = ("epochs", "device", "compile", "picture_memory")  # on --resume; anything else would make it another run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains Inception-ResNet-v1 on pictures with several labels each. Options left out are the preset's."""

    data: Path | None = None
    """Folder of the data set; without it, the embedded sample data set."""
    format: Layout = "auto"
    """Layout of the data set."""
    preset: Preset | None = None
    """demo: small, for a laptop; paper: the study as it stands; fast: one-cycle schedule. Without a GPU: demo."""
    out: Path | None = None
    """Folder of the run; by default a new one below runs/."""
    resume: Path | None = None
    """Folder of a run to go on with; beside it only --epochs, --device, --compile, --picture-memory, --stall-seconds
    and --loader-report may be given."""
    amp: bool = False
    """Automatic mixed precision."""
    epochs: int | None = None
    """Passes over the training pictures."""
    batch_size: int | Literal["auto"] | None = None
    """Pictures a step, of all processes together; auto: as many as fit into memory, an eighth of an epoch at most."""
    image_size: int | None = None
    """Side of the square picture that the network is given, in pixels."""
    picture_sizes: PictureSizes | None = None
    """growing: train on smaller pictures first, which is faster: half of the run at 0.6 of the side, three tenths at
    0.8."""
    width: float | None = None
    """Factor on the network's channels."""
    branch_init: BranchInit | None = None
    """he: as all convolutions; zero: residual branches add nothing at first."""
    optimizer: Optimizer | None = None
    """muon: steps of the convolutions' weights are made orthogonal; the others are Adam's as before."""
    lr: float | None = None
    """Learning rate; of a schedule, its peak."""
    schedule: Schedule | None = None
    """Course of the learning rate; one-cycle: rises over the first fifth, then falls as a cosine to 0."""
    accumulate: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Batches whose gradients are averaged for one step of the optimizer; batch norm sees one batch at a time."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema_decay: float | None = None
    """Validate and keep an exponential moving average of the weights, with this decay a step, as 0.999."""
    sync_norm: bool = False
    """Batch norm over the pictures of all processes instead of each one's own."""
    patience: int | None = None
    """Epochs without a lower validation loss after which training stops."""
    seed: int | None = None
    """Of initialisation, split, sampling and augmentation."""
    sampling: Sampling | None = None
    """uniform: each picture once an epoch; oversample: rare labels' pictures repeated; weighted: drawn by rarity;
    repeat-factor: repeated by the root of their rarity."""
    oversample_target: int | None = None
    """Pictures that each label shall have when oversampling, and below which repeat-factor repeats; by default
    2,500, scaled down below 30,000 pictures."""
    class_weights: bool = False
    """Weigh positive cases in the loss by negatives / positives of the label."""
    positive_weight: float | None = None
    """Weight of the positive cases of all labels in the loss."""
    augment: bool = True
    """Flip, rotation, crop and colour jitter."""
    device: Device | None = None
    """Where to train; auto: CUDA where there is a usable GPU."""
    compile: Compile | None = None
    """Record a step's launches once and replay them (CUDA graphs); auto: on CUDA. The CPU's passes are compiled as
    they are."""
    init: Path | None = None
    """Weights to start from: a checkpoint of ours, or facenet-pytorch's, .pt or .safetensors; a head for other labels
    starts anew."""
    val_fraction: float | None = None
    """Share of the training pictures that is split off where the data set has no validation split."""
    allow_bad: bool = False
    """Train even where more than 5 % of the pictures are missing or damaged."""
    checkpoint_steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Save every N steps, beside the end of each epoch."""

    picture_memory: Annotated[float | None, tyro.conf.arg(metavar="GB")] = None
    """Memory for decoded pictures, so that later epochs need not decode them; by default a quarter of what is free."""
    stall_seconds: float | None = None
    """Seconds without progress after which it is said where, and after which a process that waits for another gives up;
    by default 600."""
    loader_report: bool = False
    """Measure the loader alone, the network alone and both together, say which one waits, and stop."""

    def given(self) -> dict[str, Any]:
        """Names and values that differ from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def main() -> int:
    """Parses the command line and trains; the exit status."""
    return train(command.parse(Arguments, "python -m engine.train"))


def train(arguments: Arguments) -> int:
    """Trains as the command line says, with the other processes of torchrun if there are any; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from engine.ranks import STALLED, joined
    from engine.watchdog import Watchdog

    seconds = STALLED if arguments.stall_seconds is None else arguments.stall_seconds
    if not 0 < seconds < 1e6:
        raise InputError(f"--stall-seconds {seconds:g}: must lie between 0 and 1,000,000")
    with joined(1.2 * seconds) as ranks:
        name = f"rank {ranks.rank}: " if ranks.count > 1 else ""
        with Watchdog(seconds, name) as watchdog, command.Interrupt() as interrupt:
            return _train(arguments, ranks, watchdog, interrupt)


def _train(arguments: Arguments, ranks: "Ranks", watchdog: "Watchdog", interrupt: command.Interrupt) -> int:
    from engine.answers import Stopped
    from engine.fitting import fitting_batch
    from engine.run import write_json
    from engine.trainer import OutOfMemory, Trainer
    from engine.weights import load_weights, read_weights
    from pipelines.check import BackgroundCheck
    from pipelines.progress import say

    run, config, resumed = ranks.from_first(lambda: _run_and_config(arguments))
    from engine.device import decide

    placement = decide(config.device, config.amp, config.compile, ranks.local)
    for note in placement.notes:
        say(note)
    # A run that was killed before its first checkpoint begins anew.
    begun = resumed is not None and ranks.from_first(lambda: run.last.exists() or run.previous.exists())
    fresh = None if begun else config.init
    weights = None if fresh is None else ranks.from_first(lambda: read_weights(Path(fresh)))
    if weights is not None:
        config = replace(config, block8=weights.block8)
    dataset = ranks.from_first(lambda: _dataset(config, None if resumed is None else run.rejected_files()))
    if not dataset.root.is_dir():
        raise InputError(f"rank {ranks.rank}: {dataset.root}: is not there on this machine")
    config = fitting_batch(config, dataset)
    if arguments.batch_size == "auto" and resumed is None:
        config = replace(config, batch_size=_largest_batch(config, dataset, placement, ranks))
        say(f"batch size {config.batch_size}, as large as fits, an eighth of an epoch at most")
    if resumed is not None and resumed.get("fingerprint") != ranks.from_first(dataset.fingerprint):
        raise InputError(f"{dataset.root}: the data set has changed since {run.folder} began")
    trainer = Trainer(config, dataset, placement, run, interrupt, ranks, watchdog)
    if arguments.loader_report:
        from engine.loader_report import loader_report

        for line in loader_report(trainer):
            say(line)
        return command.OK
    try:
        # Only now: bad input so far leaves no folder behind.
        with ExitStack() as stack:
            if resumed is not None:
                ranks.from_first(lambda: _hold(run, stack))
                if trainer.restore():
                    weights = None
                now = {**resumed, **config.values()}
                if ranks.first and resumed != now:  # what was given beside --resume holds from now on
                    write_json(run.config, now)
            if weights is not None:
                say(load_weights(trainer.model, weights, dataset.labels))
            if ranks.first:
                if resumed is None:
                    stack.enter_context(run.created())
                    _record(run, config, dataset)
                check = stack.enter_context(BackgroundCheck(dataset.root))
                _describe(run, config, dataset, placement, ranks, trainer.stages())
            trainer.fit()
            if ranks.first:
                _tell_bad(check.found(), dataset)
    except Stopped:
        say(f"stopped and saved; go on with: python -m engine.train --resume {run.folder}")
        ranks.gather(None)  # torchrun ends the others when one leaves: not before the first has written
        return interrupt.status
    except OutOfMemory:
        pass  # once nothing refers to the trainer any more, there is room to try
    else:
        if ranks.first:
            _summarise(run)
        return command.OK
    del trainer
    from engine.fitting import largest_batch  # not with the others: they may have had memory enough, and wait

    most = config.batch_size // ranks.count - 1
    fitting = largest_batch(config, placement, len(dataset.labels), most) * ranks.count
    raise InputError(
        f"out of memory with --batch-size {config.batch_size}; {fitting} is the largest that fits here, and "
        f"--accumulate N makes an update of N such batches"
    )


def _hold(run: "Run", stack: ExitStack) -> None:
    """The folder of a run to go on with is there, and ours alone until the stack is left."""
    run.create()
    stack.enter_context(run.locked())


def _largest_batch(config: Config, dataset: "Dataset", placement: "Placement", ranks: "Ranks") -> int:
    """Of all processes together, tried on each."""
    from engine.fitting import largest_batch
    from pipelines.sampling import epoch_rows

    targets = dataset.targets[dataset.splits["train"]]
    rows = len(epoch_rows(targets, config.sampling, config.seed, 0, config.oversample_target))
    most = max(2, rows // (8 * ranks.count))
    return min(rows, min(ranks.gather(largest_batch(config, placement, len(dataset.labels), most))) * ranks.count)


def _run_and_config(arguments: Arguments) -> tuple["Run", Config, dict[str, Any] | None]:
    """The run, its configuration, and what config.json holds if it is one to go on with."""
    from datetime import datetime

    from engine.ranks import started_by_torchrun
    from engine.run import Run
    from pipelines.progress import say

    given = arguments.given()
    if arguments.resume is not None:
        fixed = [name for name in given if name not in ("resume", "loader_report", "stall_seconds", *MAY_CHANGE)]
        if fixed:
            raise InputError(f"--{fixed[0].replace('_', '-')} cannot be given with --resume: it would be another run")
        run = Run(arguments.resume)
        content = run.read_config()
        for name in ("resume", "loader_report", "stall_seconds"):
            given.pop(name, None)
        return run, replace(Config.load(content, run.config), **given), content
    preset = arguments.preset
    if preset is None:
        import torch

        preset = "paper" if torch.cuda.is_available() else "demo"
        say(f"preset {preset}, since there is {'a' if preset == 'paper' else 'no'} GPU; --preset chooses another")
    for name in ("preset", "out", "loader_report", "stall_seconds"):
        given.pop(name, None)
    if arguments.batch_size == "auto":
        given.pop("batch_size")
    given["layout"] = given.pop("format", None)
    for name in ("data", "init"):
        if name in given:
            given[name] = str(given[name].absolute())
    out = arguments.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}"
    run, config = Run(out), resolve(preset, given)
    if started_by_torchrun():
        if arguments.out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            raise InputError("--max-restarts needs --out: a restarted process has to know which run to go on with")
        begun = _begun(run, config, arguments.batch_size == "auto")
        if begun is not None:
            say(f"{run.folder}: this run has begun there; it goes on")
            return run, Config.load(begun, run.config), begun
    run.require_new()
    return run, config, None


def _begun(run: "Run", config: Config, any_batch: bool) -> dict[str, Any] | None:
    """What config.json in the run's folder holds, if it is this very run: torchrun starts the same command again.

    `any_batch`: whether the batch size was to be found out. A batch may have been as small as an epoch, too.
    """
    if not run.config.exists():
        return None
    content = run.read_config()
    begun = Config.load(content, run.config)
    batch_size = begun.batch_size if any_batch or begun.batch_size < config.batch_size else config.batch_size
    same = begun == replace(config, block8=begun.block8, batch_size=batch_size)
    return content if same else None


def _dataset(config: Config, known_bad: dict[str, str] | None) -> "Dataset":
    from engine.data import read_data
    from pipelines.progress import say

    dataset = read_data(None if config.data is None else Path(config.data), config, known_bad)
    if config.data is None:
        say(f"no --data: the sample data set in {dataset.root}")
    say(dataset.summary())
    for line in dataset.told():
        say(line)
    if len(dataset.rejected) > NAMED:
        say("rejected.csv in the run's folder names them all")
    return dataset


def _tell_bad(found: list[tuple[str, str]], dataset: "Dataset") -> None:
    """Names the pictures that the background check found, of those that the run was to train on."""
    from pipelines.progress import say

    used = set(dataset.files)
    bad = [(file, reason) for file, reason in found if file in used]
    for file, reason in bad[:NAMED]:
        say(f"found meanwhile: {file}: {reason}; the next run leaves it out")
    if len(bad) > NAMED:
        say(f"found meanwhile: {len(bad):,} pictures in all that do not decode; the next run leaves them out")


def _record(run: "Run", config: Config, dataset: "Dataset") -> None:
    """config.json: all that is needed to repeat the run; rejected.csv: what was left out."""
    import csv

    from engine.provenance import provenance
    from engine.run import write_json

    content = {**config.values(), "labels": list(dataset.labels), "fingerprint": dataset.fingerprint(), **provenance()}
    write_json(run.config, content)
    if dataset.rejected:
        with run.rejected.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("file", "reason"), *((r.file, r.reason) for r in dataset.rejected)])


def _describe(
    run: "Run", config: Config, dataset: "Dataset", placement: "Placement", ranks: "Ranks", stages: list["Stage"]
) -> None:
    from engine.sampling_report import sampling_report
    from pipelines.progress import say

    kind = "float32" if placement.amp is None else str(placement.amp).removeprefix("torch.")
    sizes = [f"{stage.size}×{stage.size}" for stage in stages]
    say(
        f"{config.preset}: {', then '.join(sizes)}, width {config.width:g}, batch {config.batch_size}, "
        f"{config.epochs} {'epoch' if config.epochs == 1 else 'epochs'}, {kind} on {placement.device.type}"
        f"{', recorded' if placement.recorded else ''}"
        f"{f', {ranks.count} processes' if ranks.count > 1 else ''}; "
        f"run in {run.folder}"
    )
    for line in sampling_report(dataset, config, run):
        say(line)


def _summarise(run: "Run") -> None:
    import json

    from pipelines.progress import say

    report = json.loads(run.report.read_text())
    say(
        f"kept epoch {report['epoch']}: val loss {report['loss']:.4f}, micro-F1 {report['micro_f1']:.4f} "
        f"({report['tuned']['micro_f1']:.4f} with tuned thresholds), macro-F1 {report['macro_f1']:.4f}, "
        f"mAP {report['map']:.4f}"
    )
    say(f"network      {run.best}")
    say(f"thresholds   {run.thresholds}")
    say(f"figures      {run.report} and {run.page}")
    say(f"epochs       {run.metrics}")
    say(f"TensorBoard  tensorboard --logdir {run.tensorboard}")


if __name__ == "__main__":
    command.main(main)
