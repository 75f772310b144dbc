"""What a training run is: presets, and the configuration that they and the command line make together."""

from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pipelines.dataset import Layout
from pipelines.errors import InputError
from pipelines.sampling import Sampling

Preset = Literal["demo", "paper", "fast"]
Device = Literal["auto", "cpu", "cuda"]
Compile = Literal["auto", "on", "off"]
Optimizer = Literal["adam", "muon"]
BranchInit = Literal["he", "zero"]
Schedule = Literal["constant", "one-cycle", "cosine"]
PictureSizes = Literal["full", "growing"]

SMALLEST_IMAGE = 75  # the network's last reduction has no pixel left below
LARGEST = {
    "seed": 2**32 - 1,  # what the generators of all libraries take
    "image_size": 4096,
    "width": 16,
    "epochs": 1_000_000,
    "batch_size": 65_536,
    "lr": 1000,
    "positive_weight": 1000,
    "patience": 1_000_000,
    "accumulate": 1_000_000,
    "clip_grad_norm": 1e9,
    "oversample_target": 1_000_000,
    "checkpoint_steps": 10**9,
    "picture_memory": 1e6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every choice of a run, resolved; RUN/config.json holds it. Defaults are the study's (preset `paper`)."""

    data: str | None = None
    layout: Layout = "auto"
    val_fraction: float = 0.1
    allow_bad: bool = False
    preset: Preset = "paper"
    seed: int = 0

    image_size: int = 320
    picture_sizes: PictureSizes = "full"
    width: float = 1.0
    dropout: float = 0.2
    branch_init: BranchInit = "he"
    init: str | None = None
    block8: bool = False  # in networks whose weights came from facenet-pytorch; follows from `init`

    epochs: int = 20
    batch_size: int = 32
    optimizer: Optimizer = "adam"
    lr: float = 0.001
    schedule: Schedule = "constant"
    patience: int | None = 3
    accumulate: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    sync_norm: bool = False
    sampling: Sampling = "oversample"
    oversample_target: int | None = None
    class_weights: bool = False
    positive_weight: float = 1.0
    augment: bool = True

    amp: bool = False
    device: Device = "auto"
    compile: Compile = "auto"
    checkpoint_steps: int = 500
    picture_memory: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "width", "checkpoint_steps", "accumulate", "positive_weight"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        if self.batch_size < 2:
            raise InputError("--batch-size 1: batch norm needs 2 pictures or more")
        if self.image_size < SMALLEST_IMAGE:
            raise InputError(f"--image-size {self.image_size}: the network takes {SMALLEST_IMAGE} pixels or more")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction}: must lie between 0 and 1")
        if self.oversample_target is not None and self.oversample_target < 1:
            raise InputError(f"--oversample-target {self.oversample_target}: must be above 0")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise InputError(f"--clip-grad-norm {self.clip_grad_norm}: must be above 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay {self.ema_decay}: must lie between 0 and 1")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"--patience {self.patience}: must be above 0")
        if self.picture_memory is not None and self.picture_memory < 0:
            raise InputError(f"--picture-memory {self.picture_memory}: must not be negative")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative")
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if value is not None and not value <= largest:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be {largest:,.10g} at most")

    @classmethod
    def load(cls, values: dict[str, Any], source: object = "config.json") -> "Config":
        """From the mapping that a run's config.json holds; `source`, its path, is for messages.

        Raises:
            InputError: a value of another type, or one that is no choice.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        own = {name: value for name, value in values.items() if name in kinds}
        for name, value in own.items():
            if not _fits(value, kinds[name]):
                raise InputError(f"{source}: {name} is {value!r}, which is not a configuration's")
        return cls(**own)

    def values(self) -> dict[str, Any]:
        """As plain data, for config.json."""
        return asdict(self)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of a type that a field of Config has."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


PRESETS: dict[Preset, dict[str, Any]] = {
    "paper": {},
    "fast": {
        "optimizer": "muon",
        "schedule": "one-cycle",
        "lr": 0.01,
        "batch_size": 64,
        "picture_sizes": "growing",
        "epochs": 8,
        "patience": None,
        "positive_weight": 2.5,
        "branch_init": "zero",
    },
    "demo": {
        "schedule": "one-cycle",
        "lr": 0.003,
        "patience": None,
        "image_size": 96,
        "width": 0.25,
        "epochs": 10,
        "batch_size": 16,
    },
}


def resolve(preset: Preset, given: dict[str, Any]) -> Config:
    """The preset's configuration with what the command line gives (values that are not None) put over it."""
    return Config(**{**PRESETS[preset], "preset": preset, **{k: v for k, v in given.items() if v is not None}})
