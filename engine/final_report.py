"""What a run is worth: answers, thresholds and figures of its best epoch on validation, written to its folder."""

from collections.abc import Callable

from engine.answers import answers
from engine.bootstrap import affordable_draws
from engine.config import Config
from engine.figures import figures
from engine.model import InceptionResNetV1
from engine.predicted import Predicted
from engine.ranks import ALONE, Ranks
from engine.run import Run, write_json
from engine.thresholds import tuned_thresholds
from pipelines.dataset import Dataset


def write_figures(
    run: Run,
    network: InceptionResNetV1,
    epoch: int,
    dataset: Dataset,
    config: Config,
    stopped: Callable[[], bool],
    progress: Callable[[int, int], None],
    ranks: Ranks = ALONE,
    finished: bool = False,
) -> None:
    """validation.npz, thresholds.json and report.json of a network, in float32 arithmetic; the first rank writes.

    `finished`: whether training has come to its end, for those who wait for that.

    Raises:
        Stopped: `stopped` became true; nothing was written.
    """
    logits, rows = answers(network, dataset, "val", config, config.device, stopped, progress, ranks)
    if not ranks.first:
        return
    found = Predicted.of(logits, rows, dataset)
    thresholds = tuned_thresholds(found.probabilities, found.targets).tolist()
    content = {"split": "val", "epoch": epoch, "finished": finished, "loss": found.loss}
    draws = affordable_draws(*found.targets.shape)
    content |= figures(dataset.labels, found.probabilities, found.targets, thresholds, draws)
    found.save(run.validation)
    write_json(run.thresholds, dict(zip(dataset.labels, thresholds, strict=True)))
    write_json(run.report, content)
