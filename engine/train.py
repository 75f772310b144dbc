"""python -m engine.train: a folder of photographs and a table of labels in, a trained network out."""

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from engine import command
from engine.config import Compile, Config, Device, Preset, Schedule, resolve
from pipelines.dataset import Layout
from pipelines.errors import InputError
from pipelines.sampling import Sampling

if TYPE_CHECKING:
    from engine.device import Placement
    from engine.run import Run
    from pipelines.dataset import Dataset

MAY_CHANGE = ("epochs", "device", "compile", "picture_memory")  # on --resume; anything else would make it another run
NAMED = 10  # rejected pictures that are printed; the run's folder names all


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
    """Folder of a run to go on with; only --epochs, --device, --compile and --picture-memory may be given beside it."""
    amp: bool = False
    """Automatic mixed precision."""
    epochs: int | None = None
    """Passes over the training pictures."""
    batch_size: int | None = None
    """Pictures a step."""
    image_size: int | None = None
    """Side of the square picture that the network is given, in pixels."""
    width: float | None = None
    """Factor on the network's channels."""
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
    loader_report: bool = False
    """Measure the loader alone, the network alone and both together, say which one waits, and stop."""

    def given(self) -> dict[str, Any]:
        """Names and values that differ from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def main() -> int:
    """Parses the command line and trains; the exit status."""
    return train(command.parse(Arguments, "python -m engine.train"))


def train(arguments: Arguments) -> int:
    """Trains as the command line says; the exit status.

    Raises:
        InputError: bad input, told in one line.
    """
    from engine.answers import Stopped
    from engine.run import write_json
    from engine.trainer import Trainer
    from engine.weights import has_block8, load_weights, read_weights
    from pipelines.check import BackgroundCheck
    from pipelines.progress import say

    run, config, resumed = _run_and_config(arguments)
    from engine.device import decide

    placement = decide(config.device, config.amp, config.compile)
    for note in placement.notes:
        say(note)
    weights = {} if config.init is None or resumed is not None else read_weights(Path(config.init))
    if weights:
        config = replace(config, block8=has_block8(weights))
    dataset = _dataset(config, None if resumed is None else run.rejected_files())
    config = _fitting_batch(config, dataset)
    if resumed is not None and resumed.get("fingerprint") != dataset.fingerprint():
        raise InputError(f"{dataset.root}: the data set has changed since {run.folder} began")
    with command.Interrupt() as interrupt:
        trainer = Trainer(config, dataset, placement, run, interrupt)
        if arguments.loader_report:
            from engine.loader_report import loader_report

            for line in loader_report(trainer):
                say(line)
            return command.OK
        if resumed is not None:
            run.create()
            trainer.restore()
            if resumed != {**resumed, **config.values()}:  # what was given beside --resume holds from now on
                write_json(run.config, {**resumed, **config.values()})
        elif config.init is not None:
            say(load_weights(trainer.model, weights, Path(config.init)))
        try:
            # Only now: bad input so far leaves no folder behind.
            with run.created() if resumed is None else nullcontext(), BackgroundCheck(dataset.root) as check:
                if resumed is None:
                    _record(run, config, dataset)
                _describe(run, config, dataset, placement)
                trainer.fit()
                _tell_bad(check.found(), dataset)
        except Stopped:
            say(f"stopped and saved; go on with: python -m engine.train --resume {run.folder}")
            return interrupt.status
    _summarise(run)
    return command.OK


def _run_and_config(arguments: Arguments) -> tuple["Run", Config, dict[str, Any] | None]:
    """The run, its configuration, and what config.json holds if it is one to go on with."""
    from datetime import datetime

    from engine.run import Run
    from pipelines.progress import say

    given = arguments.given()
    if arguments.resume is not None:
        fixed = [name for name in given if name not in ("resume", "loader_report", *MAY_CHANGE)]
        if fixed:
            raise InputError(f"--{fixed[0].replace('_', '-')} cannot be given with --resume: it would be another run")
        run = Run(arguments.resume)
        content = run.read_config()
        given.pop("resume")
        given.pop("loader_report", None)
        return run, replace(Config.load(content, run.config), **given), content
    preset = arguments.preset
    if preset is None:
        import torch

        preset = "paper" if torch.cuda.is_available() else "demo"
        say(f"preset {preset}, since there is {'a' if preset == 'paper' else 'no'} GPU; --preset chooses another")
    for name in ("preset", "out", "loader_report"):
        given.pop(name, None)
    given["layout"] = given.pop("format", None)
    for name in ("data", "init"):
        if name in given:
            given[name] = str(given[name].absolute())
    out = arguments.out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}"
    run = Run(out)
    run.require_new()
    return run, resolve(preset, given), None


def _dataset(config: Config, known_bad: dict[str, str] | None) -> "Dataset":
    from engine.data import read_data
    from pipelines.progress import say

    dataset = read_data(None if config.data is None else Path(config.data), config, known_bad)
    if config.data is None:
        say(f"no --data: the sample data set in {dataset.root}")
    say(dataset.summary())
    for note in dataset.notes:
        say(f"note: {note}")
    for rejected in dataset.rejected[:NAMED]:
        say(f"left out: {rejected.file}: {rejected.reason}")
    if len(dataset.rejected) > NAMED:
        say(f"left out: {len(dataset.rejected):,} pictures in all; rejected.csv in the run's folder names them")
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


def _fitting_batch(config: Config, dataset: "Dataset") -> Config:
    """The configuration with a batch no larger than an epoch."""
    from pipelines.progress import say
    from pipelines.sampling import epoch_rows

    targets = dataset.targets[dataset.splits["train"]]
    rows = len(epoch_rows(targets, config.sampling, config.seed, 0, config.oversample_target))
    if rows < 2:
        raise InputError(f"{dataset.root}: {rows} training pictures are too few")
    if rows < config.batch_size:
        say(f"batch size {rows}, since an epoch has no more pictures")
        return replace(config, batch_size=rows)
    return config


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


def _describe(run: "Run", config: Config, dataset: "Dataset", placement: "Placement") -> None:
    from engine.sampling_report import sampling_report
    from pipelines.progress import say

    kind = "float32" if placement.amp is None else str(placement.amp).removeprefix("torch.")
    say(
        f"{config.preset}: {config.image_size}×{config.image_size}, width {config.width:g}, batch {config.batch_size}, "
        f"{config.epochs} epochs, {kind} on {placement.device.type}{', recorded' if placement.recorded else ''}; "
        f"run in {run.folder}"
    )
    for line in sampling_report(dataset, config, run):
        say(line)


def _summarise(run: "Run") -> None:
    import json

    from pipelines.progress import say

    report = json.loads(run.report.read_text())
    say(
        f"best epoch {report['epoch']}: val loss {report['loss']:.4f}, micro-F1 {report['micro_f1']:.4f} "
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
