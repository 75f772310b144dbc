"""Learning rate as a pure function of the step."""

import math

from engine.config import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, steps: int) -> float:
    """The rate of a step, counted from 0 over the whole run.

    "one-cycle": linear from 0 to the peak over the first 20 % of the run, then a half cosine to 0 (Smith, "Super-
    Convergence", 2018; Loshchilov and Hutter, "SGDR", 2017). "cosine": the half cosine alone, from the first step on.
    """
    if schedule == "constant":
        return peak
    warm = max(1, round(0.2 * steps)) if schedule == "one-cycle" else 0
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
