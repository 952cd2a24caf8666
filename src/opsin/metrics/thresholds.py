"""Which threshold to use: the sweep over all of them, ROC and precision-recall curves, operating points.

A score at or above the threshold is called positive. Scores may have any range; nothing is assumed to lie in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsin.errors import ConfigError, DataError, ShapeError
from opsin.metrics.classification import BinaryCounts
from opsin.metrics.inputs import FloatArray, check_binary, check_scores, ratio
from opsin.metrics.intervals import finite


@dataclass(frozen=True)
class ThresholdTable:
    """Counts at each threshold, thresholds falling; ratios through `counts`.

    Args:
        threshold: (T,) strictly falling; infinity calls nothing positive.
        counts: TP, FP, FN, TN, each (T,).
    """

    threshold: FloatArray
    counts: BinaryCounts

    def to_dict(self) -> dict[str, list[float | None]]:
        """JSON-safe columns: threshold, tp, fp, fn, tn, tpr, fpr, ppv, npv, f1; infinity and nan become None."""
        counts = self.counts
        columns = {
            "threshold": self.threshold,
            "tp": counts.tp,
            "fp": counts.fp,
            "fn": counts.fn,
            "tn": counts.tn,
            "tpr": counts.sensitivity(),
            "fpr": counts.fpr(),
            "ppv": counts.ppv(),
            "npv": counts.npv(),
            "f1": counts.f1(),
        }
        return {name: [finite(value) for value in column.tolist()] for name, column in columns.items()}


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold that was chosen, what it gives, and the rule that chose it.

    The counts are of the rows it was chosen on: choose on validation rows, report on test rows.
    """

    threshold: float
    tp: float
    fp: float
    fn: float
    tn: float
    tpr: float
    fpr: float
    ppv: float
    npv: float
    f1: float
    accuracy: float
    rule: str

    def to_dict(self) -> dict[str, float | str | None]:
        """JSON-safe: the fields; threshold None calls nothing positive, a ratio None is undefined."""
        return {name: value if isinstance(value, str) else finite(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class RocCurve:
    """ROC curve from (0, 0) to (1, 1): fpr, tpr (T,) rising, threshold (T,) falling from infinity; nan if undefined."""

    fpr: FloatArray
    tpr: FloatArray
    threshold: FloatArray

    def area(self) -> float:
        """Area under the curve by trapezoids: the AUROC; nan without positives or negatives."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def tpr_at(self, fpr: npt.ArrayLike) -> FloatArray:
        """Sensitivity at given false positive rates, on the curve (the upper end of a vertical step)."""
        rates: FloatArray = np.asarray(fpr, dtype=np.float64)
        last = np.searchsorted(self.fpr, rates, side="right") - 1
        between = np.asarray(np.interp(rates.ravel(), self.fpr, self.tpr), dtype=np.float64).reshape(rates.shape)
        return np.where(self.fpr[last] == rates, self.tpr[last], between)


@dataclass(frozen=True)
class PrCurve:
    """Precision-recall curve: precision, recall (T,) at threshold (T,) falling; recall rises. nan without positives."""

    precision: FloatArray
    recall: FloatArray
    threshold: FloatArray

    def area(self) -> float:
        """Area by steps: the average precision."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum()) if len(self.recall) else math.nan


def threshold_table(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    thresholds: npt.ArrayLike | None = None,
) -> ThresholdTable:
    """TP, FP, FN, TN at every threshold that makes a difference, or at the ones asked for.

    Args:
        scores: score of the positive class, (n,), of any range.
        target: 0 or 1, (n,).
        weights: None or (n,).
        thresholds: (T,) in any order; None takes infinity and every distinct score.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores or thresholds, a target other than 0 and 1, negative weights.
    """
    positive = check_binary(target)
    checked = check_scores(scores, len(positive), dims=1).astype(np.float64)
    mass = np.ones(len(positive)) if weights is None else np.asarray(weights, dtype=np.float64)
    if mass.shape != positive.shape:
        raise ShapeError(f"weights have shape {mass.shape}; expected ({len(positive)},), one for each row.")
    if not (np.isfinite(mass) & (mass >= 0)).all():
        raise DataError("weights hold a negative or non-finite value; expected finite numbers, zero or larger.")
    asked = np.append(checked, np.inf) if thresholds is None else check_scores(thresholds, dims=1)
    falling = np.unique(asked.astype(np.float64))[::-1]
    order = np.argsort(checked, kind="stable")[::-1]
    called = np.searchsorted(-checked[order], -falling, side="right")  # (T,) rows at or above each threshold
    hits, alarms = mass[order] * positive[order], mass[order] * ~positive[order]
    tp = np.append(0.0, np.cumsum(hits))
    fp = np.append(0.0, np.cumsum(alarms))
    counts = BinaryCounts(tp[called], fp[called], tp[-1] - tp[called], fp[-1] - fp[called])
    return ThresholdTable(falling, counts)


def roc_curve(scores: npt.ArrayLike, target: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> RocCurve:
    """True against false positive rate at every threshold. Args and Raises as `threshold_table`."""
    table = threshold_table(scores, target, weights)
    return RocCurve(table.counts.fpr(), table.counts.sensitivity(), table.threshold)


def pr_curve(scores: npt.ArrayLike, target: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> PrCurve:
    """Precision against recall at every threshold. Args and Raises as `threshold_table`.

    Thresholds that call nothing positive (infinity, rows of weight 0) have no precision and are left out.
    """
    table = threshold_table(scores, target, weights)
    some = table.counts.tp + table.counts.fp > 0
    return PrCurve(table.counts.ppv()[some], table.counts.sensitivity()[some], table.threshold[some])


def point_by_f1(table: ThresholdTable) -> OperatingPoint:
    """The threshold with the largest F1; the highest of several.

    Raises:
        DataError: F1 is defined nowhere (no positives).
    """
    return _pick(table, np.asarray(table.counts.f1()), "largest F1")


def point_by_cost(table: ThresholdTable, *, fp: float, fn: float, tp: float = 0.0, tn: float = 0.0) -> OperatingPoint:
    """The threshold with the lowest total cost; the highest of several.

    Args:
        table: from `threshold_table`.
        fp: cost of each false alarm.
        fn: cost of each miss.
        tp: cost of each true positive (a gain is negative).
        tn: cost of each true negative.

    Raises:
        ConfigError: a cost that is not finite.
    """
    costs = np.array([tp, fp, fn, tn], dtype=np.float64)
    if not np.isfinite(costs).all():
        raise ConfigError(f"costs tp={tp}, fp={fp}, fn={fn}, tn={tn}; expected finite numbers.")
    counts = table.counts
    total = tp * counts.tp + fp * counts.fp + fn * counts.fn + tn * counts.tn
    return _pick(table, -total, f"lowest cost (TP {tp:g}, FP {fp:g}, FN {fn:g}, TN {tn:g})")


def point_by_recall(table: ThresholdTable, recall: float) -> OperatingPoint:
    """The highest threshold that finds at least this share of the positives: as few false alarms as that allows.

    Raises:
        ConfigError: recall outside [0, 1].
        DataError: no threshold of the table reaches it.
    """
    _check_share("recall", recall)
    reached = np.asarray(table.counts.sensitivity() >= recall)
    return _pick(table, np.where(reached, 0.0, np.nan), f"recall at least {recall:g}")


def point_by_fpr(table: ThresholdTable, fpr: float) -> OperatingPoint:
    """The threshold that finds the most positives with at most this false positive rate; the highest of several.

    Raises:
        ConfigError: fpr outside [0, 1].
        DataError: no threshold of the table keeps it.
    """
    _check_share("fpr", fpr)
    kept = np.asarray(table.counts.fpr() <= fpr)
    return _pick(table, np.where(kept, table.counts.tp, np.nan), f"false positive rate at most {fpr:g}")


def point_by_specificity(table: ThresholdTable, specificity: float) -> OperatingPoint:
    """The threshold that finds the most positives with at least this specificity; the highest of several.

    Raises:
        ConfigError: specificity outside [0, 1].
        DataError: no threshold of the table keeps it.
    """
    _check_share("specificity", specificity)
    kept = np.asarray(table.counts.specificity() >= specificity)
    return _pick(table, np.where(kept, table.counts.tp, np.nan), f"specificity at least {specificity:g}")


def roc_band(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: npt.ArrayLike, fpr: npt.ArrayLike, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Pointwise band around the ROC curve from bootstrap replicates.

    Args:
        scores: (n,).
        target: 0 or 1, (n,).
        weights: replicates, (R, n); those without positives or negatives are left out.
        fpr: where to read the band, (F,) in [0, 1].
        level: confidence, in (0, 1).

    Returns:
        Lower and upper sensitivity, each (F,); nan when no replicate is defined.
    """
    grid = np.asarray(fpr, dtype=np.float64)
    curves = [roc_curve(scores, target, row) for row in np.atleast_2d(np.asarray(weights, dtype=np.float64))]
    heights = [curve.tpr_at(grid) for curve in curves if math.isfinite(curve.area())]
    if not heights:
        return np.full(grid.shape, np.nan), np.full(grid.shape, np.nan)
    low, high = np.quantile(np.array(heights), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low, high


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value}; expected a share from 0 to 1.")


def _pick(table: ThresholdTable, merit: FloatArray, rule: str) -> OperatingPoint:
    if not len(merit) or np.isnan(merit).all():
        raise DataError(f"no threshold of the table gives {rule}. Are there positives and negatives, and enough steps?")
    index = int(np.nanargmax(merit))  # thresholds fall: the first is the highest
    counts = table.counts
    tp, fp, fn, tn = (float(column[index]) for column in (counts.tp, counts.fp, counts.fn, counts.tn))
    return OperatingPoint(
        threshold=float(table.threshold[index]),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        tpr=float(ratio(tp, tp + fn)),
        fpr=float(ratio(fp, fp + tn)),
        ppv=float(ratio(tp, tp + fp)),
        npv=float(ratio(tn, tn + fn)),
        f1=float(ratio(2 * tp, 2 * tp + fp + fn)),
        accuracy=float(ratio(tp + tn, tp + fp + fn + tn)),
        rule=rule,
    )
