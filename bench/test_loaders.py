"""Our loader beside torchvision's, timm's and a plain DALI chain: 320×320, full augmentation, two cores.

`extra_info` has pictures a second, and for ours how many times as long each
peer takes, the two taken in turn, median of seven pairs. Where the real photographs are missing it draws some itself,
and `pictures` says so.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.loaders import PEERS, WORKERS, Pass, ours
from bench.timing import median_ratio

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "datasets"
SIZE, BATCH, PICTURES, PAIRS = 320, 32, 288, 7
PLACES = {"study": ("study/data", 320, 240), "coco96": ("coco96/*", 640, 480)}  # and what is drawn in their place

Make = Callable[..., Pass]


@cache
def pictures(name: str) -> tuple[str, list[str]]:
    """Where the pictures come from, and their paths, the same again where there are fewer than PICTURES."""
    pattern, width, height = PLACES[name]
    files, source = sorted(str(path) for path in PHOTOGRAPHS.glob(f"{pattern}/*.jpg")), "photographs"
    if not files:
        files, source = draw_pictures(width, height), "drawn"
    return source, (files * (PICTURES // len(files) + 1))[:PICTURES]


def draw_pictures(width: int, height: int) -> list[str]:
    folder, rng = Path(mkdtemp(prefix="manylabel-bench-")), np.random.default_rng(0)
    names = []
    for i in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((width, height))
        grain = rng.normal(0, 6, (height, width, 3))
        names.append(str(folder / f"{i}.jpg"))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(names[-1], quality=90)
    return names


@pytest.fixture(autouse=True)
def as_in_training() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(WORKERS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("provider", ["ours", *PEERS])
@pytest.mark.parametrize("name", PLACES)
def test_loader(benchmark: Any, name: str, provider: str) -> None:
    makes: dict[str, Make] = {"ours": ours, **PEERS}
    for package in ("torchvision", "timm"):
        pytest.importorskip(package, reason=f"a peer, {package}, is missing: pip install -e '.[bench]'")
    source, files = pictures(name)
    once = makes[provider](files, SIZE, BATCH)
    assert once() == PICTURES // BATCH * BATCH  # and whatever is compiled, is
    benchmark.group = f"{name} {SIZE}x{SIZE}"
    benchmark.pedantic(once, rounds=3, iterations=1)
    benchmark.extra_info |= {"pictures": source, "pictures_per_s": round(PICTURES / benchmark.stats.stats.median)}
    if provider == "ours":
        for peer, make in PEERS.items():
            ratio = median_ratio(make(files, SIZE, BATCH), once, "cpu", PAIRS)
            benchmark.extra_info[f"{peer} over ours"] = round(ratio, 2)
