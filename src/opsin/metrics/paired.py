"""Whether two models differ on the same rows: McNemar, paired bootstrap, DeLong; Holm when several are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from opsin.errors import DataError, ShapeError
from opsin.metrics.inputs import FloatArray, check_binary, check_scores
from opsin.metrics.intervals import Statistic, check_level, finite, normal_quantile, percentile, replicate

Json = dict[str, float | int | str | None]


@dataclass(frozen=True)
class McNemar:
    """Rows only the first model has right, rows only the second has, and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float
    method: str

    def to_dict(self) -> Json:
        """JSON-safe: the fields; nan becomes None."""
        return _to_dict(self)


@dataclass(frozen=True)
class Difference:
    """First minus second on the same rows, with an interval and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p_value: float
    n: int
    groups: int | None
    method: str

    def to_dict(self) -> Json:
        """JSON-safe: the fields; nan becomes None."""
        return _to_dict(self)


@dataclass(frozen=True)
class DeLong:
    """Two AUROCs on the same rows, their difference (first minus second) with interval, z and two-sided p-value."""

    first: float
    second: float
    value: float
    low: float
    high: float
    standard_error: float
    z: float
    p_value: float
    n: int

    def to_dict(self) -> Json:
        """JSON-safe: the fields; nan becomes None."""
        return _to_dict(self)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike, mid_p: bool = False) -> McNemar:
    """Exact test whether two models are right equally often on the same rows (McNemar 1947).

    Only rows on which exactly one model is right tell anything; of them, each side is expected to have half.

    Args:
        first: whether the first model is right on each row, (n,) of 0 and 1.
        second: the same of the second model.
        mid_p: count the observed split half; less conservative, recommended by Fagerland et al. 2013.

    Raises:
        ShapeError: not the same rows.
        DataError: values other than 0 and 1.
    """
    one, two = _same_rows(first, second)
    return mcnemar_from_counts(int((one & ~two).sum()), int((~one & two).sum()), mid_p)


def mcnemar_from_counts(only_first: int, only_second: int, mid_p: bool = False) -> McNemar:
    """`mcnemar` from the two discordant counts; p is 1 when there is no discordant row.

    Raises:
        DataError: a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise DataError(f"discordant counts {only_first} and {only_second}; expected none below 0.")
    total, fewer = only_first + only_second, min(only_first, only_second)
    method = "mcnemar mid-p" if mid_p else "mcnemar exact"
    if not total:
        return McNemar(0, 0, 1.0, method)
    through = float(special.bdtr(fewer, total, 0.5))  # P(X <= fewer), X binomial(total, 1/2)
    below = float(special.bdtr(fewer - 1, total, 0.5)) if fewer else 0.0
    return McNemar(only_first, only_second, through + below if mid_p else min(1.0, 2 * through), method)


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    n: int,
    *,
    groups: npt.ArrayLike | None = None,
    replicates: int = 1000,
    seed: int | np.random.Generator,
    level: float = 0.95,
) -> dict[str, Difference]:
    """How far two models lie apart in any metric, drawing the same rows (or groups) for both.

    The p-value is twice the smaller share of replicates at or beyond zero, (1 + count) / (1 + replicates), at most 1:
    it cannot be below 2 / (1 + replicates).

    Args:
        first: takes row weights (R, n), returns name to values (R,).
        second: the same for the other model, on the same rows in the same order.
        n: rows.
        groups: group of each row, (n,): groups are drawn.
        replicates: R.
        seed: an integer, or a numpy generator, which is advanced.
        level: confidence, in (0, 1).

    Returns:
        One difference for each name both have; no interval (nan) where `bootstrap` gives none, and no p-value with
        one row or group or when more than half of the replicates are undefined.

    Raises:
        ConfigError: level, replicates or n out of range.
        ShapeError: groups that are not (n,), or a statistic that does not return (R,).
        DataError: the two statistics have no name in common.
    """
    check_level(level)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        one, two = first(weights), second(weights)
        common = [name for name in one if name in two]
        if not common:
            raise DataError(f"no metric in common: first has {sorted(one)}, second has {sorted(two)}.")
        return {name: np.asarray(one[name], np.float64) - np.asarray(two[name], np.float64) for name in common}

    drawn = replicate(statistic, n, groups=groups, replicates=replicates, seed=seed)
    differences = {}
    for name, value in drawn.values.items():
        interval = percentile(drawn, name, level)
        draws = drawn.draws[name][np.isfinite(drawn.draws[name])]
        p_value = math.nan
        if 2 * len(draws) >= replicates and math.isfinite(value) and (interval.groups or n) > 1:
            beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
            p_value = min(1.0, 2 * (1 + beyond) / (1 + len(draws)))
        method = "paired " + interval.method
        differences[name] = Difference(value, interval.low, interval.high, p_value, n, interval.groups, method)
    return differences


def delong(first: npt.ArrayLike, second: npt.ArrayLike, target: npt.ArrayLike, level: float = 0.95) -> DeLong:
    """Test whether two scores rank the same rows equally well, by AUROC.

    DeLong, DeLong and Clarke-Pearson 1988, with midranks in O(n log n) (Sun and Xu 2014). Rows are taken as
    independent: with groups use `paired_bootstrap`.

    Args:
        first: scores of the first model for the positive class, (n,).
        second: scores of the second model on the same rows.
        target: 0 or 1, (n,).
        level: confidence of the interval of the difference, in (0, 1).

    Returns:
        Interval, z and p are nan with fewer than two positives or two negatives, or when the variance is zero while
        the difference is not; p is 1 when both are zero.

    Raises:
        ConfigError: level outside (0, 1).
        ShapeError: not the same rows.
        DataError: nan scores, a target other than 0 and 1.
    """
    quantile = normal_quantile(level)
    positive = check_binary(target)
    n, num_positive = len(positive), int(positive.sum())
    num_negative = n - num_positive
    scores = [check_scores(values, n, dims=1) for values in (first, second)]
    if not num_positive or not num_negative:
        nan = math.nan
        return DeLong(nan, nan, nan, nan, nan, nan, nan, nan, n)
    of_positives = np.zeros((2, num_positive))  # share of negatives below each positive
    of_negatives = np.zeros((2, num_negative))  # share of positives above each negative
    for index, values in enumerate(scores):
        ranks = midranks(values)
        of_positives[index] = (ranks[positive] - midranks(values[positive])) / num_negative
        of_negatives[index] = 1 - (ranks[~positive] - midranks(values[~positive])) / num_positive
    one, two = (float(area) for area in of_positives.mean(1))
    low = high = error = z = p_value = math.nan
    if num_positive > 1 and num_negative > 1:
        variance = (
            np.var(of_positives[0] - of_positives[1], ddof=1) / num_positive
            + np.var(of_negatives[0] - of_negatives[1], ddof=1) / num_negative
        )
        error = math.sqrt(variance)
        if error > 1e-12:
            z = (one - two) / error
            p_value = math.erfc(abs(z) / math.sqrt(2))
            low, high = one - two - quantile * error, one - two + quantile * error
        elif abs(one - two) < 1e-12:
            p_value = 1.0
    return DeLong(one, two, one - two, low, high, error, z, p_value, n)


def midranks(values: npt.NDArray[np.floating]) -> FloatArray:
    """Ranks from 1, equal values sharing the mean of their ranks; (n,) to (n,)."""
    _, member, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[member], dtype=np.float64)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for having made several comparisons (Holm 1979); compare each with the usual 0.05.

    Keeps the chance of any false alarm among all of them at the level, and is never weaker than Bonferroni.

    Args:
        p_values: name of the comparison to p-value; nan (undefined) stays nan and is not counted as a comparison.

    Raises:
        DataError: a p-value outside [0, 1].
    """
    for name, p in p_values.items():
        if not (math.isnan(p) or 0 <= p <= 1):
            raise DataError(f"p-value of '{name}' is {p}; expected a number from 0 to 1.")
    defined = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    largest = 0.0
    for place, (p, name) in enumerate(defined):
        largest = max(largest, min(1.0, (len(defined) - place) * p))
        corrected[name] = largest
    return corrected


def _same_rows(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    one, two = np.asarray(first), np.asarray(second)
    if one.shape != two.shape or one.ndim != 1:
        raise ShapeError(f"first has shape {one.shape}, second {two.shape}; expected (n,) for both, the same rows.")
    return check_binary(one), check_binary(two)


def _to_dict(result: McNemar | Difference | DeLong) -> Json:
    return {name: finite(value) if isinstance(value, float) else value for name, value in vars(result).items()}
