"""A run's best network, with what it was trained for."""

import json
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import load_checkpoint
from engine.config import Config
from engine.model import InceptionResNetV1
from engine.model_file import Description, Precision
from engine.provenance import provenance
from engine.run import Run
from pipelines.augment import MEAN, STD
from pipelines.errors import InputError


@dataclass(frozen=True, slots=True)
class Trained:
    """The network of a run's best epoch, in float32 on the CPU, ready to answer.

    Attributes:
        untuned: whether the run, being unfinished, has no thresholds for this epoch; 0.5 then.
        fingerprint: of the data set.
    """

    name: str
    network: InceptionResNetV1
    config: Config
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    untuned: bool
    epoch: int
    fingerprint: str

    def description(self, precision: Precision, any_size: bool) -> Description:
        """What an ONNX file of this network says about itself."""
        return Description(
            labels=self.labels,
            thresholds=self.thresholds,
            image_size=self.config.image_size,
            any_size=any_size,
            precision=precision,
            mean=MEAN,
            std=STD,
            run=self.name,
            epoch=self.epoch,
            versions=provenance()["versions"],
        )


def load_trained(folder: Path) -> Trained:
    """The network of a run's folder.

    Raises:
        InputError: no run there, or one without a usable checkpoint, or with thresholds for other labels.
    """
    run = Run(folder)
    content = run.read_config()
    try:
        config, labels = Config.load(content, run.config), tuple(content["labels"])
        fingerprint = str(content["fingerprint"])
    except (TypeError, KeyError):
        raise InputError(f"{run.config}: holds values that are not a run's") from None
    state = load_checkpoint(run.best)
    network = InceptionResNetV1(len(labels), config.width, config.dropout, config.block8)
    try:
        network.load_state_dict(state["model"])
        epoch = int(state["progress"]["epoch"])
    except (KeyError, RuntimeError, TypeError):
        raise InputError(f"{run.best}: is not of the network that {run.config} describes") from None
    if tuple(state["labels"]) != labels:
        raise InputError(f"{run.best}: was trained for other labels than {run.config} has")
    thresholds = _thresholds(run, labels, epoch)
    return Trained(
        folder.resolve().name,
        network.eval(),
        config,
        labels,
        thresholds or (0.5,) * len(labels),
        thresholds is None,
        epoch,
        fingerprint,
    )


def _thresholds(run: Run, labels: tuple[str, ...], epoch: int) -> tuple[float, ...] | None:
    """The thresholds of an epoch; None where there are none, or those of an epoch that the run has left behind."""
    reported = run.reported()
    if not run.thresholds.exists() or (reported is not None and reported[0] != epoch):
        return None
    try:
        found = json.loads(run.thresholds.read_text())
        return tuple(float(found[label]) for label in labels)
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{run.thresholds}: does not hold a threshold for each label") from None
