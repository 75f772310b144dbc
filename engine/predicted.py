"""Answers beside the truth, for the pictures of a split: what figures and report are made of."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.answers import mean_loss
from pipelines.cache import replace_file
from pipelines.dataset import Dataset
from pipelines.errors import InputError, reading


@dataclass(frozen=True, slots=True)
class Predicted:
    """The network's answers for some pictures.

    Attributes:
        files: the pictures' names, as the data set has them.
        probabilities: float32 [pictures, labels].
        targets: bool [pictures, labels].
        loss: binary cross-entropy, unweighted, the mean over all answers.
    """

    files: tuple[str, ...]
    probabilities: NDArray[np.float32]
    targets: NDArray[np.bool_]
    loss: float

    @classmethod
    def of(cls, logits: Tensor, rows: NDArray[np.int64], dataset: Dataset) -> "Predicted":
        """From logits [rows, labels] for rows of a data set."""
        targets = dataset.targets[rows]
        files = tuple(dataset.files[row] for row in rows)
        return cls(files, torch.sigmoid(logits).numpy(), targets, mean_loss(logits, targets))

    def save(self, path: Path) -> None:
        """Writes a NumPy .npz file, whole or not at all."""
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                files=np.array(self.files, np.str_),
                probabilities=self.probabilities,
                targets=self.targets,
                loss=np.array(self.loss),
            )

    @classmethod
    def load(cls, path: Path, labels: int) -> "Predicted":
        """What `save` wrote.

        Raises:
            InputError: no such file, or none of ours, or one of another number of labels.
        """
        try:
            with reading(path), np.load(path) as found:
                made = cls(
                    tuple(found["files"].tolist()), found["probabilities"], found["targets"], float(found["loss"])
                )
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            raise InputError(f"{path}: does not hold a run's answers") from None
        if not made.probabilities.shape == made.targets.shape == (len(made.files), labels):
            raise InputError(f"{path}: does not hold answers for the run's labels")
        return made


def validation_files(path: Path) -> frozenset[str] | None:
    """The pictures that `Predicted.save` wrote answers for; None where there is no such file, or none of ours."""
    try:
        with np.load(path) as found:
            return frozenset(found["files"].tolist())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None
