"""How right several yes/no labels per picture are, with missing labels left out of every count.

A label is missing where the target is nan, or where `mask` is False. A missing label is neither right nor wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opsin.errors import DataError, ShapeError
from opsin.metrics.classification import BinaryCounts
from opsin.metrics.inputs import FloatArray, Weights, check_scores, mean_of_defined, over_replicates, ratio
from opsin.metrics.ranking import areas, rank

BoolArray = npt.NDArray[np.bool_]


def check_multilabel(
    scores: npt.ArrayLike, target: npt.ArrayLike, mask: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[Any], BoolArray, BoolArray]:
    """Scores, positives and observed labels, each (n, L).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, an observed target other than 0 and 1.
    """
    checked = check_scores(scores)
    labels = np.asarray(target, dtype=np.float64)
    observed = ~np.isnan(labels) if mask is None else np.asarray(mask).astype(bool)
    if labels.shape != checked.shape or observed.shape != checked.shape:
        raise ShapeError(
            f"scores have shape {checked.shape}, target {labels.shape}, mask {observed.shape}; expected (n, L) for all."
        )
    observed = observed & ~np.isnan(labels)
    wrong = np.argwhere(observed & (labels != 0) & (labels != 1))
    if wrong.size:
        row, label = wrong[0]
        raise DataError(f"target row {row}, label {label} is {labels[row, label]}; expected 0, 1, or nan for missing.")
    return checked, observed & (labels == 1), observed


def label_counts(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> BinaryCounts:
    """True and false positives and negatives of each label: count once, then read sensitivity, PPV, F1 and so on.

    Args:
        scores: (n, L), of any range.
        target: 0, 1 or nan (missing), (n, L).
        weights: row weights; None, (n,) or (R, n).
        threshold: a score at or above it says yes; one number, or one for each label (L,).
        mask: True where a label is known, (n, L); None takes every label that is not nan.

    Returns:
        Counts of shape (L,) or (R, L).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, an observed target other than 0 and 1.
    """
    checked, positive, observed = check_multilabel(scores, target, mask)
    num_labels = checked.shape[1]
    called = checked >= _thresholds(threshold, num_labels)
    negative = observed & ~positive
    cells = np.stack([positive & called, negative & called, positive & ~called, negative & ~called])  # (4, n, L)
    table = cells.transpose(1, 0, 2).reshape(len(checked), 4 * num_labels).astype(np.float64)  # (n, 4L)
    counts = over_replicates(lambda chunk: (chunk @ table).reshape(len(chunk), 4, num_labels), weights, len(checked))
    return BinaryCounts(counts[..., 0, :], counts[..., 1, :], counts[..., 2, :], counts[..., 3, :])


def exact_match(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> FloatArray:
    """Share of rows whose known labels are all right (subset accuracy), () or (R,); rows without labels left out.

    Args and Raises as `label_counts`.
    """
    checked, positive, observed = check_multilabel(scores, target, mask)
    wrong = observed & ((checked >= _thresholds(threshold, checked.shape[1])) != positive)
    known = observed.any(1)
    table = np.stack([known & ~wrong.any(1), known], 1).astype(np.float64)  # (n, 2)
    sums = over_replicates(lambda chunk: chunk @ table, weights, len(checked))
    return ratio(sums[..., 0], sums[..., 1])


def hamming(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> FloatArray:
    """Share of known labels that are wrong (Hamming loss), () or (R,) in [0, 1]; 0 is perfect.

    Args and Raises as `label_counts`.
    """
    counts = label_counts(scores, target, weights, threshold, mask)
    wrong = (counts.fp + counts.fn).sum(-1)
    return ratio(wrong, wrong + (counts.tp + counts.tn).sum(-1))


def f1_per_label(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> FloatArray:
    """F1 of each label, (L,) or (R, L); nan for a label neither present nor called. Args as `label_counts`."""
    return label_counts(scores, target, weights, threshold, mask).f1()


def f1_macro(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> FloatArray:
    """Mean F1 over the labels where it is defined, () or (R,) in [0, 1]. Args as `label_counts`."""
    return mean_of_defined(f1_per_label(scores, target, weights, threshold, mask))


def f1_micro(
    scores: npt.ArrayLike,
    target: npt.ArrayLike,
    weights: Weights = None,
    threshold: npt.ArrayLike = 0.5,
    mask: npt.ArrayLike | None = None,
) -> FloatArray:
    """F1 of all labels counted together, () or (R,) in [0, 1]. Args as `label_counts`."""
    return pooled(label_counts(scores, target, weights, threshold, mask)).f1()


def pooled(counts: BinaryCounts) -> BinaryCounts:
    """The counts of all labels added up: (R, L) becomes (R,)."""
    return BinaryCounts(counts.tp.sum(-1), counts.fp.sum(-1), counts.fn.sum(-1), counts.tn.sum(-1))


def label_areas(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, mask: npt.ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """AUROC and average precision of each label over its known rows, from one pass.

    Args:
        scores: (n, L), of any range.
        target: 0, 1 or nan (missing), (n, L).
        weights: row weights; None, (n,) or (R, n).
        mask: True where a label is known, (n, L).

    Returns:
        Two arrays (L,) or (R, L); nan for a label without positives (AUROC: also without negatives).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, an observed target other than 0 and 1.
    """
    checked, positive, observed = check_multilabel(scores, target, mask)
    known = [np.flatnonzero(observed[:, label]) for label in range(checked.shape[1])]
    rankings = [rank(checked[rows, label], positive[rows, label]) for label, rows in enumerate(known)]

    def compute(chunk: FloatArray) -> FloatArray:
        columns = np.ascontiguousarray(chunk.T)  # (n, r)
        both = [areas(ranked, columns[rows]) for ranked, rows in zip(rankings, known)]
        return np.array(both).transpose(2, 0, 1)  # (r, L, 2)

    values = over_replicates(compute, weights, len(checked))
    return values[..., 0], values[..., 1]


def auroc_macro(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, mask: npt.ArrayLike | None = None
) -> FloatArray:
    """Mean AUROC over the labels where it is defined, () or (R,) in [0, 1]. Args as `label_areas`."""
    return mean_of_defined(label_areas(scores, target, weights, mask)[0])


def average_precision_macro(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, mask: npt.ArrayLike | None = None
) -> FloatArray:
    """Mean average precision over the labels that have positives, () or (R,) in [0, 1]. Args as `label_areas`."""
    return mean_of_defined(label_areas(scores, target, weights, mask)[1])


def _thresholds(threshold: npt.ArrayLike, num_labels: int) -> FloatArray:
    array = np.asarray(threshold, dtype=np.float64)
    if array.shape not in ((), (num_labels,)):
        raise ShapeError(f"threshold has shape {array.shape}; expected one number, or ({num_labels},), one per label.")
    if np.isnan(array).any():
        raise DataError("threshold holds nan; expected numbers on the scale of the scores.")
    return array
