"""Learning-rate schedules: factor of the peak rate as a pure function of the step, so that there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable

from opsin.recipe import ScheduleSettings

Schedule = Callable[[int], float]


def schedule(settings: ScheduleSettings, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The factor for step 0 .. total_steps - 1.

    constant, step, linear, cosine: linear warm-up over `warmup_epochs` from 1/100, then the curve over the rest.
    one-cycle (Smith 2018): from 1/25 up to 1 at `peak` of the run, then down to `final`, both along a half cosine.
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), max(total_steps - 1, 0))
    span = max(total_steps - warmup, 1)

    def curve(step: int) -> float:
        share = min(step / span, 1.0)
        if settings.name == "constant":
            return 1.0
        if settings.name == "step":
            return settings.gamma ** sum(share >= milestone for milestone in settings.milestones)
        if settings.name == "linear":
            return 1.0 - (1.0 - settings.final) * share
        return settings.final + (1.0 - settings.final) * 0.5 * (1.0 + math.cos(math.pi * share))

    def factor(step: int) -> float:
        if settings.name == "one-cycle":
            return _one_cycle(step, total_steps, settings.peak, settings.final)
        if step < warmup:
            return 0.01 + 0.99 * step / warmup
        return curve(step - warmup)

    return factor


def _one_cycle(step: int, total_steps: int, peak: float, final: float) -> float:
    top = max(peak * (total_steps - 1), 1e-9)
    if step <= top:
        low, high, share = 1.0 / 25.0, 1.0, step / top
    else:
        low, high, share = 1.0, final, (step - top) / max(total_steps - 1 - top, 1e-9)
    return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * min(share, 1.0)))
