"""The comparisons as bars: how many times as long as ours each peer takes, readable on a light page and a dark one."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from bench.summary import Case
from engine.run_figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#7a828c"  # at least 3.8 to 1 against white and against GitHub's dark page
BAR, GAP, HEAD = 0.14, 0.1, 0.75  # inches: a bar, between cases, what a panel takes beside them
AXES, CHARACTER = 4.0, 0.052  # inches: width of a panel's axes, of a character beside a bar, about
TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


def draw(cases: Sequence[Case]) -> "Figure":
    """A panel a suite, in two columns of about the same height; cases without peers are left out.

    Bars begin at 1, on a scale of ratios: to the right the peer takes longer than ours, to the left less.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Case]] = {}
    for case in cases:
        if case.peers:
            panels.setdefault(case.suite, []).append(case)
    columns: list[list[str]] = [[], []]
    for suite in sorted(panels, key=lambda suite: -_inches(panels[suite])):
        min(columns, key=lambda column: _height(column, panels)).append(suite)
    columns = [column for column in columns if column]
    height = max((_height(column, panels) for column in columns), default=HEAD)
    figure = Figure(figsize=(6.5 * max(1, len(columns)), height), layout="constrained", facecolor="none")
    for part, column in zip(_parts(figure, len(columns)), columns, strict=True):
        part.set_facecolor("none")
        spare = height - _height(column, panels)
        ratios = [_inches(panels[suite]) for suite in column]
        grid = part.add_gridspec(len(column) + (spare > 0), 1, height_ratios=[*ratios, *[spare] * (spare > 0)])
        for number, suite in enumerate(column):
            _panel(part.add_subplot(grid[number]), suite, panels[suite])
    return figure


def _parts(figure: Any, count: int) -> list[Any]:
    return list(figure.subfigures(1, count, squeeze=False)[0]) if count else []


def _inches(cases: Sequence[Case]) -> float:
    return HEAD + sum(BAR * max(2, len(case.peers)) + GAP for case in cases)


def _height(suites: Sequence[str], panels: dict[str, list[Case]]) -> float:
    return sum(_inches(panels[suite]) for suite in suites)


def _panel(axes: Any, suite: str, cases: Sequence[Case]) -> None:
    peers = list(dict.fromkeys(peer for case in cases for peer in case.peers))
    place, middles, longest = 0.0, [], 0
    for case in cases:
        first = place
        for peer, ratio in case.peers.items():
            axes.barh(place, ratio - 1, BAR * 0.85, left=1, color=COLOURS[peers.index(peer) % len(COLOURS)])
            text = f"{ratio:.2f}  {peer}"
            at, style = (max(ratio, 1), place), {"color": GREY, "fontsize": 6.5, "parse_math": False}
            axes.annotate(text, at, (3, 0), textcoords="offset points", va="center_baseline", **style)
            longest = max(longest, len(text))
            place += BAR
        middles.append((first + place - BAR) / 2)
        place += max(0, 2 - len(case.peers)) * BAR + GAP
    ratios = [ratio for case in cases for ratio in case.peers.values()]
    low, most = min(1.0, *ratios) / 1.1, max(1.5, *ratios)
    texts = min(0.6, CHARACTER * longest / AXES)  # share of the axes that the names beside the bars take
    high = most * (most / low) ** (texts / (1 - texts))
    ticks = [tick for tick in TICKS if low <= tick <= most]
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(place, -BAR - GAP))
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], color=GREY, fontsize=7)
    axes.set_yticks(middles, [fill(case.name, 34) for case in cases], color=GREY, fontsize=7, parse_math=False)
    axes.minorticks_off()
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_title(f"{suite}: times as long as ours", color=GREY, fontsize=9, loc="left")
    axes.set_facecolor("none")
    axes.tick_params(color=GREY, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
