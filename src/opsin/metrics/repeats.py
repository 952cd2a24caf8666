"""What repeated training says: mean over seeds with interval, and how much of the noise is seed, how much test rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from opsin.errors import DataError, ShapeError
from opsin.metrics.intervals import check_level, finite


@dataclass(frozen=True)
class RepeatSummary:
    """One metric over several seeds.

    Args:
        mean: over the seeds where the metric is defined.
        low: lower end of the t-interval of the mean; nan with fewer than two seeds.
        high: upper end.
        sd: standard deviation between seeds (ddof 1); nan with fewer than two seeds.
        minimum: worst or best seed, as the metric goes.
        maximum: the other end.
        seeds: seeds that count.
        undefined: seeds left out because the metric was nan.
    """

    mean: float
    low: float
    high: float
    sd: float
    minimum: float
    maximum: float
    seeds: int
    undefined: int

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-safe: the fields; nan becomes None."""
        return {name: finite(value) if isinstance(value, float) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class VarianceParts:
    """Two separate reasons why a number would be different next time.

    Args:
        seed_variance: of one training run to the next on the same test rows (ddof 1).
        sample_variance: of the mean over seeds from one set of test rows to the next.
        seed_sd: root of seed_variance.
        sample_sd: root of sample_variance.
        seeds: number of training runs.
        replicates: number of resampled test sets.
    """

    seed_variance: float
    sample_variance: float
    seed_sd: float
    sample_sd: float
    seeds: int
    replicates: int

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-safe: the fields; nan becomes None."""
        return {name: finite(value) if isinstance(value, float) else value for name, value in vars(self).items()}


def summarize_repeats(values: npt.ArrayLike, level: float = 0.95) -> RepeatSummary:
    """Mean, t-interval, spread, worst and best of one metric over seeds.

    The interval covers the mean over *seeds* on these test rows; it says nothing of other test rows (`separate`).

    Args:
        values: the metric of each seed, (S,); nan where undefined.
        level: confidence, in (0, 1).

    Raises:
        ConfigError: level outside (0, 1).
        ShapeError: not (S,).
        DataError: no value, or an infinite one.
    """
    check_level(level)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError(f"values have shape {array.shape}; expected (S,), one for each seed.")
    if not array.size or np.isinf(array).any():
        raise DataError("expected at least one seed, and finite values.")
    defined = array[~np.isnan(array)]
    count = len(defined)
    if not count:
        nan = math.nan
        return RepeatSummary(nan, nan, nan, nan, nan, nan, 0, len(array))
    mean = float(defined.mean())
    sd = float(defined.std(ddof=1)) if count > 1 else math.nan
    half = float(special.stdtrit(count - 1, 0.5 + level / 2)) * sd / math.sqrt(count) if count > 1 else math.nan
    return RepeatSummary(
        mean, mean - half, mean + half, sd, float(defined.min()), float(defined.max()), count, len(array) - count
    )


def separate(values: npt.ArrayLike, replicates: npt.ArrayLike) -> VarianceParts:
    """Seed noise and test-sample noise, reported apart: more seeds cure the first, more test rows the second.

    Args:
        values: the metric of each seed on the test rows, (S,).
        replicates: the metric of each seed on each resampled test set, (S, R), the same rows drawn for all seeds
            (one seed of `intervals.replicate`).

    Returns:
        A part is nan with fewer than two seeds, or two replicates where every seed is defined.

    Raises:
        ShapeError: shapes that do not fit.
    """
    array, draws = np.asarray(values, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    if array.ndim != 1 or draws.ndim != 2 or len(draws) != len(array):
        raise ShapeError(f"values have shape {array.shape}, replicates {draws.shape}; expected (S,) and (S, R).")
    means = draws.mean(0)  # (R,)
    means = means[np.isfinite(means)]
    between = float(array.var(ddof=1)) if len(array) > 1 else math.nan
    within = float(means.var(ddof=1)) if len(means) > 1 else math.nan
    return VarianceParts(between, within, math.sqrt(between), math.sqrt(within), len(array), len(means))
