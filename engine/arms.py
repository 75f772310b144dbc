"""The arms of the study that the engine repeats, as options of training."""

from dataclasses import dataclass
from typing import Any, Literal

Arm = Literal["baseline", "weights", "augmentation", "ours"]


@dataclass(frozen=True, slots=True)
class Option:
    """What an arm is.

    Attributes:
        title: in tables and figures.
        values: of the configuration, by the names of engine.train's options.
        published: the micro-F1 that the study reports for it, in percent.
    """

    title: str
    values: dict[str, Any]
    published: float | None


ARMS: dict[Arm, Option] = {
    "baseline": Option("baseline", {"preset": "paper", "sampling": "uniform", "augment": False}, 65.10),
    "weights": Option(
        "class weights",
        {"preset": "paper", "sampling": "uniform", "augment": False, "class_weights": True},
        68.21,
    ),
    "augmentation": Option("augmentation, oversampling", {"preset": "paper"}, 74.45),
    "ours": Option("ours", {"preset": "fast"}, None),
}


def command_line(values: dict[str, Any]) -> list[str]:
    """Values as options of engine.train; None is left out."""
    line: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            line.append(option if value else f"--no-{option[2:]}")
        elif value is not None:
            line += [option, str(value)]
    return line
