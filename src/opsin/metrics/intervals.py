"""How sure a measured number is: Wilson intervals for shares, bootstrap intervals for any metric, by groups if any.

Rows that belong together (one patient, one video) are drawn together: as single rows they would look like more
evidence than they are, and the interval would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from opsin.errors import ConfigError, DataError, ShapeError
from opsin.metrics.inputs import FloatArray, IntArray

Statistic = Callable[[FloatArray], Mapping[str, npt.ArrayLike]]

CHUNK_CELLS = 4_000_000  # row weights handed to the statistic at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A value with the range it could be in, as it stands under "metrics" in JSON.

    Args:
        value: of the rows as they are; nan where undefined.
        low: lower end, nan where no interval can be given (`method` says why).
        high: upper end.
        n: rows.
        groups: groups that were drawn, None when rows were.
        method: how the interval was made, and how many replicates were undefined.
    """

    value: float
    low: float
    high: float
    n: int
    groups: int | None
    method: str

    def to_dict(self) -> dict[str, float | int | str | None]:
        """JSON-safe: exactly value, low, high, n, groups, method; nan and infinity become None."""
        return {
            "value": finite(self.value),
            "low": finite(self.low),
            "high": finite(self.high),
            "n": self.n,
            "groups": self.groups,
            "method": self.method,
        }


@dataclass(frozen=True)
class Replicates:
    """What a bootstrap drew, before it is read off as an interval.

    Args:
        values: name to the value of the rows as they are.
        draws: name to the value in each replicate, (R,); nan where undefined.
        n: rows.
        groups: groups that were drawn, None when rows were.
    """

    values: dict[str, float]
    draws: dict[str, FloatArray]
    n: int
    groups: int | None


def finite(value: float) -> float | None:
    """The number as JSON can hold it: None for nan and infinity."""
    return float(value) if math.isfinite(value) else None


def normal_quantile(level: float) -> float:
    """z with `level` of the normal distribution within +-z.

    Raises:
        ConfigError: level outside (0, 1).
    """
    check_level(level)
    return NormalDist().inv_cdf(0.5 + level / 2)


def check_level(level: float) -> None:
    """Raises ConfigError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level}; expected a confidence level between 0 and 1, such as 0.95.")


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Interval of a share, right even near 0 and 1 and for few rows (Wilson 1927).

    c +- h with c = (p + z^2/2n) / (1 + z^2/n) and h = z / (1 + z^2/n) sqrt(p(1-p)/n + z^2/4n^2).

    Args:
        successes: rows that count, in [0, n].
        n: rows; with 0 everything is nan.
        level: confidence, in (0, 1).

    Raises:
        ConfigError: level outside (0, 1).
        DataError: successes outside [0, n].
    """
    z = normal_quantile(level)
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} rows; expected a number from 0 to {n}.")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, None, "wilson")
    p = successes / n
    shrink = 1 + z * z / n
    center = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return Interval(p, low, high, math.ceil(n), None, "wilson")


def proportion(correct: npt.ArrayLike, *, groups: npt.ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Interval of the share of rows that are right; unlike the bootstrap it also works when all of them are.

    Without groups it is Wilson's. With groups, Wilson's for the number of independent rows that the data are worth:
    n divided by the design effect (variance between groups over binomial variance, at least 1; Kish 1965). When every
    row is right or every row is wrong that cannot be estimated, and each group counts as one row.

    Args:
        correct: (n,) of 0 and 1.
        groups: group of each row, (n,), any labels.
        level: confidence, in (0, 1).

    Raises:
        ConfigError: level outside (0, 1).
        ShapeError: groups of another length.
        DataError: values other than 0 and 1.
    """
    right = np.asarray(correct, dtype=np.float64)
    if right.ndim != 1:
        raise ShapeError(f"correct has shape {right.shape}; expected (n,) of 0 and 1.")
    if not np.isin(right, (0, 1)).all():
        raise DataError("correct holds a value other than 0 and 1; expected whether each row is right.")
    n = len(right)
    if groups is None or n == 0:
        return wilson(float(right.sum()), n, level)
    member, count = _members(groups, n)
    share = float(right.mean())
    effective = float(count)
    if count > 1 and 0 < share < 1:
        residual = np.bincount(member, right - share, count)  # (G,)
        variance = count / (count - 1) * float((residual**2).sum()) / n**2
        effective = n / max(1.0, variance / (share * (1 - share) / n))
    around = wilson(share * effective, effective, level)
    method = f"wilson, {count} groups worth {effective:.1f} independent rows"
    return Interval(share, around.low, around.high, n, count, method)


def generator(seed: int | np.random.Generator) -> np.random.Generator:
    """The given generator, or a Philox generator keyed by the seed."""
    return seed if isinstance(seed, np.random.Generator) else np.random.Generator(np.random.Philox(seed))


def replicate(
    statistic: Statistic,
    n: int,
    *,
    groups: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    replicates: int = 1000,
    seed: int | np.random.Generator,
) -> Replicates:
    """The statistic on the rows as they are and on resampled rows; args and errors as `bootstrap`."""
    if replicates < 1 or n < 1:
        raise ConfigError(f"replicates={replicates}, n={n}; expected at least 1 of each.")
    base = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if base.shape != (n,):
        raise ShapeError(f"weights have shape {base.shape}; expected ({n},), one base weight for each row.")
    member, count = (np.arange(n), n) if groups is None else _members(groups, n)
    values = {name: float(array[0]) for name, array in _evaluate(statistic, base[None]).items()}
    random = generator(seed)
    step = max(1, CHUNK_CELLS // n)
    parts: list[dict[str, FloatArray]] = []
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = random.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)  # (r, G) multiplicities
        parts.append(_evaluate(statistic, times[:, member] * base))
    draws = {name: np.concatenate([part[name] for part in parts]) for name in values}
    return Replicates(values, draws, n, None if groups is None else count)


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    groups: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    replicates: int = 1000,
    seed: int | np.random.Generator,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of any metrics by drawing the rows, or whole groups of rows, again (Efron 1979).

    Undefined replicates (a class that was not drawn) are left out and counted in `method`. Low and high are nan, and
    `method` says why, when nothing can be said: one row or group, more than half of the replicates undefined, or all
    replicates equal (a perfect score on few rows; use `proportion` for a share).

    Args:
        statistic: takes row weights (R, n), returns name to values (R,).
        n: rows.
        groups: group of each row, (n,), any labels: groups are drawn, a row's weight is its group's multiplicity.
        weights: base weight of each row, (n,), multiplied into the draws.
        replicates: R; 1000 is enough for two digits of a 95 % interval.
        seed: an integer, or a numpy generator, which is advanced.
        level: confidence, in (0, 1).

    Raises:
        ConfigError: level, replicates or n out of range.
        ShapeError: groups or weights that are not (n,), or a statistic that does not return (R,).
        DataError: group labels of kinds that cannot be compared, such as None among words.
    """
    check_level(level)
    drawn = replicate(statistic, n, groups=groups, weights=weights, replicates=replicates, seed=seed)
    return {name: percentile(drawn, name, level) for name in drawn.values}


def percentile(drawn: Replicates, name: str, level: float = 0.95) -> Interval:
    """The interval of one metric read off its replicates (see `bootstrap`)."""
    draws = drawn.draws[name]
    defined = draws[np.isfinite(draws)]
    units = drawn.n if drawn.groups is None else drawn.groups
    method = f"{'bootstrap' if drawn.groups is None else 'cluster bootstrap'} percentile, {len(draws)} replicates"
    if len(defined) < len(draws):
        method += f", {len(draws) - len(defined)} undefined"
    reason = None
    if units == 1:
        reason = "one row" if drawn.groups is None else "one group"
    elif 2 * len(defined) < len(draws):
        reason = "too many undefined"
    elif defined.max() - defined.min() <= 1e-12 * max(1.0, float(np.abs(defined).max())):
        reason = "all replicates equal"
    if reason:
        low = high = math.nan
        method += f"; no interval: {reason}"
    else:
        low, high = (float(edge) for edge in np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2]))
    return Interval(drawn.values[name], low, high, drawn.n, drawn.groups, method)


def _members(groups: npt.ArrayLike, n: int) -> tuple[IntArray, int]:
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ShapeError(f"groups have shape {labels.shape}; expected ({n},), the group of each row.")
    try:
        names, member = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise DataError(f"groups hold labels that cannot be compared ({error}). Give every row a group.") from error
    return member.astype(np.int64), len(names)


def _evaluate(statistic: Statistic, weights: npt.NDArray[Any]) -> dict[str, FloatArray]:
    values = {name: np.asarray(array, dtype=np.float64) for name, array in statistic(weights).items()}
    for name, array in values.items():
        if array.shape != (len(weights),):
            raise ShapeError(
                f"the statistic returned '{name}' of shape {array.shape} for weights {weights.shape}; "
                f"expected ({len(weights)},), one value for each row of weights."
            )
    return values
