"""How often the decided class is right: accuracy and everything else that is counted from (decided, true) pairs.

The decided class is the one with the largest score; among equal scores the lowest index wins (as numpy and torch
argmax do). Definitions follow scikit-learn with `zero_division=nan`, which the tests use as the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from opsin.errors import ConfigError, ShapeError
from opsin.metrics.inputs import (
    FloatArray,
    Weights,
    check_binary,
    check_classified,
    check_labels,
    check_scores,
    mean_of_defined,
    over_replicates,
    ratio,
)

Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class ClassCounts:
    """What accuracy, precision, recall, F1, MCC and kappa are made of; much smaller than the confusion matrix.

    Args:
        hits: rows of each class that were decided right, (K,) or (R, K).
        support: rows of each class, same shape.
        predicted: rows decided as each class, same shape.
    """

    hits: FloatArray
    support: FloatArray
    predicted: FloatArray

    def accuracy(self) -> FloatArray:
        """Share of rows decided right, () or (R,) in [0, 1]."""
        return ratio(self.hits.sum(-1), self.support.sum(-1))

    def precision_per_class(self) -> FloatArray:
        """Of the rows decided as a class, the share that is of it, (K,) or (R, K); nan for a class never decided."""
        return ratio(self.hits, self.predicted)

    def recall_per_class(self) -> FloatArray:
        """Of the rows of a class, the share that was found, (K,) or (R, K); nan for a class without rows."""
        return ratio(self.hits, self.support)

    def f1_per_class(self) -> FloatArray:
        """2 hits / (support + predicted), (K,) or (R, K); nan for a class neither present nor decided."""
        return ratio(2 * self.hits, self.support + self.predicted)

    def balanced_accuracy(self) -> FloatArray:
        """Mean recall of the classes that have rows, () or (R,) in [0, 1]."""
        return mean_of_defined(self.recall_per_class())

    def average(self, per_class: FloatArray, average: Average) -> FloatArray:
        """One number from a per-class ratio (see `precision`)."""
        if average == "macro":
            return mean_of_defined(per_class)
        if average == "micro":  # every row is decided once: micro precision, recall and F1 are all the accuracy
            return self.accuracy()
        if average == "weighted":
            return mean_of_defined(per_class, self.support)
        raise ConfigError(f"average={average!r} is not known; expected 'macro', 'micro' or 'weighted'.")

    def mcc(self) -> FloatArray:
        """Correlation of decided and true class, () or (R,) in [-1, 1]; nan when either is always the same class."""
        total = self.support.sum(-1)
        agreement = self.hits.sum(-1) * total - (self.support * self.predicted).sum(-1)
        spread_true = total**2 - (self.support**2).sum(-1)
        spread_predicted = total**2 - (self.predicted**2).sum(-1)
        varied = ((self.support > 0).sum(-1) > 1) & ((self.predicted > 0).sum(-1) > 1)
        return ratio(agreement, np.where(varied, np.sqrt(np.abs(spread_true * spread_predicted)), 0.0))

    def kappa(self) -> FloatArray:
        """Agreement beyond chance, () or (R,) in [-1, 1]; nan when one class is all there is on both sides."""
        total = self.support.sum(-1)
        chance = ratio((self.support * self.predicted).sum(-1), total**2)
        several = ((self.support + self.predicted) > 0).sum(-1) > 1
        return ratio(self.accuracy() - chance, np.where(several, 1 - chance, 0.0))


@dataclass(frozen=True)
class BinaryCounts:
    """True and false positives and negatives, and their ratios; any common shape, nan where a ratio is 0/0."""

    tp: FloatArray
    fp: FloatArray
    fn: FloatArray
    tn: FloatArray

    def accuracy(self) -> FloatArray:
        """(TP + TN) / all."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def sensitivity(self) -> FloatArray:
        """TP / (TP + FN): recall, true positive rate."""
        return ratio(self.tp, self.tp + self.fn)

    def specificity(self) -> FloatArray:
        """TN / (TN + FP): true negative rate."""
        return ratio(self.tn, self.tn + self.fp)

    def fpr(self) -> FloatArray:
        """FP / (TN + FP): false positive rate."""
        return ratio(self.fp, self.tn + self.fp)

    def ppv(self) -> FloatArray:
        """TP / (TP + FP): precision, positive predictive value."""
        return ratio(self.tp, self.tp + self.fp)

    def npv(self) -> FloatArray:
        """TN / (TN + FN): negative predictive value."""
        return ratio(self.tn, self.tn + self.fn)

    def f1(self) -> FloatArray:
        """2 TP / (2 TP + FP + FN)."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class PerClass:
    """Precision, recall, F1 and support of each class, each (K,) or (R, K)."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: FloatArray


def confusion_matrix(
    predicted: npt.ArrayLike, target: npt.ArrayLike, num_classes: int, weights: Weights = None
) -> FloatArray:
    """Weight of the rows of each true class (first axis) decided as each class (second axis).

    Args:
        predicted: decided class indices, (n,).
        target: true class indices, (n,).
        num_classes: K.
        weights: None, (n,) or (R, n).

    Returns:
        (K, K) or (R, K, K).

    Raises:
        ShapeError: predicted and target of different length.
        DataError: an index outside [0, K).
    """
    decided, true = _pairs(predicted, target, num_classes)
    cells = true * num_classes + decided

    def count(chunk: FloatArray) -> FloatArray:
        rows = [np.bincount(cells, row, num_classes * num_classes) for row in chunk]
        return np.array(rows, dtype=np.float64).reshape(-1, num_classes, num_classes)

    return over_replicates(count, weights, len(true))


def class_counts(
    predicted: npt.ArrayLike, target: npt.ArrayLike, num_classes: int, weights: Weights = None
) -> ClassCounts:
    """Hits, support and decisions per class: count once, then read any of the counted metrics.

    Args and Raises as `confusion_matrix`.
    """
    decided, true = _pairs(predicted, target, num_classes)
    right = decided == true
    right_class = true[right]

    def count(chunk: FloatArray) -> FloatArray:
        return np.array(
            [
                (
                    np.bincount(right_class, row[right], num_classes),
                    np.bincount(true, row, num_classes),
                    np.bincount(decided, row, num_classes),
                )
                for row in chunk
            ],
            dtype=np.float64,
        )  # (r, 3, K)

    counts = over_replicates(count, weights, len(true))
    return ClassCounts(counts[..., 0, :], counts[..., 1, :], counts[..., 2, :])


def counts_of_scores(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> ClassCounts:
    """`class_counts` with the class of the largest score as the decision; scores (n, K), target (n,)."""
    checked, labels = check_classified(scores, target)
    return class_counts(checked.argmax(1), labels, checked.shape[1], weights)


def accuracy(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Share of rows whose largest score is at the true class.

    Args:
        scores: (n, K), larger is surer.
        target: class indices, (n,).
        weights: None, (n,) or (R, n).

    Returns:
        () or (R,), in [0, 1]; nan without rows.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, class indices outside [0, K), negative weights.
    """
    return counts_of_scores(scores, target, weights).accuracy()


def top_k_accuracy(scores: npt.ArrayLike, target: npt.ArrayLike, k: int, weights: Weights = None) -> FloatArray:
    """Share of rows whose true class is among the k largest scores; () or (R,) in [0, 1].

    Ties: among equal scores the lower class index stands first, as in argmax, so that exactly k classes are in,
    `top_k_accuracy(..., k=1)` is `accuracy`, and a model that gives every class the same score gains nothing.

    Raises:
        ConfigError: k below 1 or above K.
    """
    checked, labels = check_classified(scores, target)
    num_classes = checked.shape[1]
    if not 1 <= k <= num_classes:
        raise ConfigError(f"k={k} with {num_classes} classes; expected k from 1 to {num_classes}.")
    own = np.take_along_axis(checked, labels[:, None], 1)  # (n, 1)
    earlier = np.arange(num_classes) < labels[:, None]  # (n, K)
    place = ((checked > own) | ((checked == own) & earlier)).sum(1)  # (n,) 0 is first
    found = (place < k).astype(np.float64)
    return over_replicates(lambda chunk: ratio(chunk @ found, chunk.sum(1)), weights, len(labels))


def balanced_accuracy(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean recall over the classes that have rows, () or (R,) in [0, 1]: each class counts the same."""
    return counts_of_scores(scores, target, weights).balanced_accuracy()


def per_class(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> PerClass:
    """Precision, recall, F1 and support of each class; (K,) or (R, K), nan where undefined."""
    counts = counts_of_scores(scores, target, weights)
    return PerClass(counts.precision_per_class(), counts.recall_per_class(), counts.f1_per_class(), counts.support)


def precision(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, average: Average = "macro"
) -> FloatArray:
    """Of the rows decided as a class, the share that is of it; () or (R,) in [0, 1].

    Args:
        scores: (n, K).
        target: class indices, (n,).
        weights: None, (n,) or (R, n).
        average: "macro" is the mean over classes where the ratio is defined, "weighted" the same weighted by support,
            "micro" counts all classes together (with one label per row that is the accuracy).

    Raises:
        ConfigError: another average.
    """
    counts = counts_of_scores(scores, target, weights)
    return counts.average(counts.precision_per_class(), average)


def recall(
    scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, average: Average = "macro"
) -> FloatArray:
    """Of the rows of a class, the share that was found; () or (R,) in [0, 1]. Averages as in `precision`."""
    counts = counts_of_scores(scores, target, weights)
    return counts.average(counts.recall_per_class(), average)


def f1(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, average: Average = "macro") -> FloatArray:
    """Harmonic mean of precision and recall; () or (R,) in [0, 1]. Averages as in `precision`."""
    counts = counts_of_scores(scores, target, weights)
    return counts.average(counts.f1_per_class(), average)


def mcc(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Matthews correlation of decided and true class, () or (R,) in [-1, 1] (Gorodkin 2004 for K classes)."""
    return counts_of_scores(scores, target, weights).mcc()


def kappa(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Cohen's kappa: agreement beyond chance, () or (R,) in [-1, 1] (Cohen 1960)."""
    return counts_of_scores(scores, target, weights).kappa()


def binary_counts(
    scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5, weights: Weights = None
) -> BinaryCounts:
    """True and false positives and negatives when a score at or above the threshold is called positive.

    Args:
        scores: score of the positive class, (n,), of any range.
        target: 0 or 1, (n,).
        threshold: on the scale of the scores.
        weights: None, (n,) or (R, n).

    Returns:
        Counts of shape () or (R,).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: nan scores, a target other than 0 and 1, a threshold that is nan.
    """
    positive = check_binary(target)
    called = check_scores(scores, len(positive), dims=1) >= float(check_scores([threshold], dims=1)[0])
    cells = np.stack([positive & called, ~positive & called, positive & ~called, ~positive & ~called], 1)
    counts = over_replicates(lambda chunk: chunk @ cells.astype(np.float64), weights, len(positive))  # (..., 4)
    return BinaryCounts(counts[..., 0], counts[..., 1], counts[..., 2], counts[..., 3])


def sensitivity(
    scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5, weights: Weights = None
) -> FloatArray:
    """Of the positives, the share called positive; () or (R,) in [0, 1]. Args as `binary_counts`."""
    return binary_counts(scores, target, threshold, weights).sensitivity()


def specificity(
    scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5, weights: Weights = None
) -> FloatArray:
    """Of the negatives, the share called negative; () or (R,) in [0, 1]. Args as `binary_counts`."""
    return binary_counts(scores, target, threshold, weights).specificity()


def ppv(scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5, weights: Weights = None) -> FloatArray:
    """Of the rows called positive, the share that is positive; () or (R,) in [0, 1]. Args as `binary_counts`."""
    return binary_counts(scores, target, threshold, weights).ppv()


def npv(scores: npt.ArrayLike, target: npt.ArrayLike, threshold: float = 0.5, weights: Weights = None) -> FloatArray:
    """Of the rows called negative, the share that is negative; () or (R,) in [0, 1]. Args as `binary_counts`."""
    return binary_counts(scores, target, threshold, weights).npv()


def _pairs(
    predicted: npt.ArrayLike, target: npt.ArrayLike, num_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    decided = check_labels(predicted, num_classes, "predicted")
    true = check_labels(target, num_classes)
    if len(decided) != len(true):
        raise ShapeError(f"predicted has {len(decided)} rows, target has {len(true)}; expected the same rows in both.")
    return decided, true
