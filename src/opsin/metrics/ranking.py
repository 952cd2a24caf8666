"""Whether positives score above negatives, at any threshold: AUROC and average precision.

Sorted once for each class; each replicate then costs one cumulative sum over the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opsin.metrics.inputs import (
    FloatArray,
    IntArray,
    Weights,
    check_binary,
    check_classified,
    check_scores,
    mean_of_defined,
    over_replicates,
    ratio,
)


@dataclass(frozen=True)
class Ranked:
    """One binary ranking, sorted: what both areas need to know of the scores.

    Args:
        order: rows by falling score, (n,).
        places: place in that order of each positive, (P,) ascending.
        before: rows that score strictly higher than each positive, (P,).
        through: rows that score as high or higher, (P,).
        positives_through: positives that score as high or higher, (P,).
        positives_before: positives that score strictly higher, (P,).
        negative: 1.0 for each negative row in the original order, (n,).
    """

    order: IntArray
    places: IntArray
    before: IntArray
    through: IntArray
    positives_before: IntArray
    positives_through: IntArray
    negative: FloatArray


def rank(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> Ranked:
    """Sorts scores (n,) once; positive (n,) says which rows are positives."""
    order = np.argsort(scores, kind="stable")[::-1]  # (n,) falling
    falling = scores[order]
    starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1])) if len(order) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(order))  # (G,) one past the last row of each tie
    tie = np.repeat(np.arange(len(starts)), ends - starts)  # (n,) which tie each place is in
    places = np.flatnonzero(positive[order])
    through = ends[tie[places]]
    before = starts[tie[places]]
    return Ranked(
        order,
        places,
        before,
        through,
        np.searchsorted(places, before),
        np.searchsorted(places, through),
        (~positive).astype(np.float64),
    )


def areas(ranked: Ranked, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """AUROC and average precision of one ranking for many replicates.

    AUROC (Hanley and McNeil 1982) is the chance that a positive scores above a negative, a tie counting one half.
    Average precision is sum_t (R_t - R_(t-1)) P_t over distinct thresholds t, without interpolation.

    Args:
        ranked: of n rows.
        columns: weights (n, r), one column per replicate.

    Returns:
        Two arrays (r,) in [0, 1]; AUROC is nan without weight on positives or on negatives, AP without positives.
    """
    rows = columns[ranked.order]  # (n, r) falling score
    everything = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=everything[1:])
    mass = rows[ranked.places]  # (P, r)
    positives = np.zeros((len(mass) + 1, rows.shape[1]))
    np.cumsum(mass, axis=0, out=positives[1:])
    true_through = positives[ranked.positives_through]  # (P, r) weight of the true positives at the own threshold
    all_through = everything[ranked.through]
    false_through = all_through - true_through
    false_before = everything[ranked.before] - positives[ranked.positives_before]
    total_positive = positives[-1]
    total_negative = ranked.negative @ columns
    beaten = total_negative - (false_through + false_before) / 2  # (P, r)
    auroc_values = ratio((mass * beaten).sum(0), total_positive * total_negative)
    precision = np.divide(true_through, all_through, out=np.zeros_like(mass), where=all_through > 0)
    ap_values = ratio((mass * precision).sum(0), total_positive)
    return np.clip(auroc_values, 0, 1), np.clip(ap_values, 0, 1)


def _both(rankings: list[Ranked], weights: Weights, num_rows: int) -> FloatArray:
    def compute(chunk: FloatArray) -> FloatArray:
        columns = np.ascontiguousarray(chunk.T)  # (n, r)
        return np.array([areas(ranked, columns) for ranked in rankings]).transpose(2, 0, 1)  # (r, L, 2)

    return over_replicates(compute, weights, num_rows)


def binary_areas(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None
) -> tuple[FloatArray, FloatArray]:
    """`auroc` and `average_precision` from one pass."""
    positive = check_binary(target)
    checked = check_scores(scores, len(positive), dims=1)
    both = _both([rank(checked, positive)], weights, len(positive))
    return both[..., 0, 0], both[..., 0, 1]


def auroc(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Chance that a positive scores above a negative (area under the ROC curve), () or (R,) in [0, 1].

    Args:
        scores: score of the positive class, (n,), of any range.
        target: 0 or 1, (n,).
        weights: None, (n,) or (R, n).

    Returns:
        nan where there is no positive or no negative.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, a target other than 0 and 1.
    """
    return binary_areas(scores, target, weights)[0]


def average_precision(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean precision over the positives as the threshold falls (area under the precision-recall steps), in [0, 1].

    Args, Raises as `auroc`; nan where there is no positive.
    """
    return binary_areas(scores, target, weights)[1]


def class_areas(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> tuple[FloatArray, FloatArray]:
    """AUROC and average precision of each class against the rest, from one pass.

    Args:
        scores: (n, K).
        target: class indices, (n,).
        weights: None, (n,) or (R, n).

    Returns:
        Two arrays (K,) or (R, K); nan for a class without rows (AUROC: also for a class that has all of them).
    """
    checked, labels = check_classified(scores, target)
    rankings = [rank(checked[:, index], labels == index) for index in range(checked.shape[1])]
    both = _both(rankings, weights, len(labels))
    return both[..., 0], both[..., 1]


def auroc_macro(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean AUROC of each class against the rest, over classes where it is defined; () or (R,). Scores (n, K)."""
    return mean_of_defined(class_areas(scores, target, weights)[0])


def average_precision_macro(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean average precision of each class against the rest, over classes with rows; () or (R,). Scores (n, K)."""
    return mean_of_defined(class_areas(scores, target, weights)[1])
