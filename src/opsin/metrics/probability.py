"""How far the probabilities can be trusted: log loss, Brier score, expected calibration error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsin.errors import ConfigError
from opsin.metrics.inputs import (
    FloatArray,
    Weights,
    check_classified,
    check_probabilities,
    over_replicates,
    ratio,
)


def log_loss(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean of -log p(true class), natural logarithm; () or (R,), 0 is perfect.

    Probabilities are clipped to the smallest step of their own float type away from 0 and 1, as scikit-learn does, so
    that one sure mistake costs 36.0 (float64) or 15.9 (float32), not infinity.

    Args:
        scores: probabilities (n, K), rows adding up to 1.
        target: class indices, (n,).
        weights: None, (n,) or (R, n).

    Raises:
        ShapeError: shapes that do not fit.
        DataError: rows that are not probabilities, class indices outside [0, K).
    """
    checked, labels = check_classified(scores, target)
    check_probabilities(checked)
    step = float(np.finfo(checked.dtype).eps)
    own = np.take_along_axis(checked, labels[:, None], 1)[:, 0].astype(np.float64)
    loss = -np.log(np.clip(own, step, 1 - step))
    return over_replicates(lambda chunk: ratio(chunk @ loss, chunk.sum(1)), weights, len(labels))


def brier(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean squared distance of the probabilities from the truth; () or (R,), 0 is perfect.

    Brier 1950: mean over rows of sum_k (p_k - y_k)^2, in [0, 2]. With two classes half of that, (p_1 - y)^2 in [0, 1],
    the common binary form; scikit-learn makes the same distinction. Args and Raises as `log_loss`.
    """
    checked, labels = check_classified(scores, target)
    check_probabilities(checked)
    distance = checked.astype(np.float64)
    distance[np.arange(len(labels)), labels] -= 1
    loss = (distance**2).sum(1) * (0.5 if checked.shape[1] == 2 else 1.0)
    return over_replicates(lambda chunk: ratio(chunk @ loss, chunk.sum(1)), weights, len(labels))


def ece(scores: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None, num_bins: int = 15) -> FloatArray:
    """Expected calibration error: how far confidence and accuracy lie apart, () or (R,) in [0, 1], 0 is calibrated.

    sum_b mass_b |accuracy_b - confidence_b| over bins of equal mass of the largest probability (Nixon et al. 2019 for
    equal mass; Guo et al. 2017 for the error). Rows of equal confidence always share a bin, the one that holds the
    middle of their mass; bins are made anew for each replicate, so a row of weight 3 is the same as the row three
    times, and the order of rows does not matter. With few rows the estimate is biased upward.

    Args:
        scores: probabilities (n, K), rows adding up to 1.
        target: class indices, (n,).
        weights: None, (n,) or (R, n).
        num_bins: at least 1.

    Raises:
        ConfigError: num_bins below 1.
        ShapeError: shapes that do not fit.
        DataError: rows that are not probabilities, class indices outside [0, K).
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins={num_bins}; expected at least 1.")
    checked, labels = check_classified(scores, target)
    check_probabilities(checked)
    order = np.argsort(checked.max(1), kind="stable")
    confidence = checked.max(1)[order].astype(np.float64)
    right = (checked.argmax(1) == labels)[order].astype(np.float64)
    starts = np.flatnonzero(np.diff(confidence, prepend=-1.0))  # (G,) first row of each distinct confidence

    def compute(chunk: FloatArray) -> FloatArray:
        if not len(labels):
            return np.full(len(chunk), np.nan)
        rows = chunk[:, order]  # (r, n) ascending confidence
        mass = np.add.reduceat(rows, starts, axis=1)  # (r, G)
        gap = np.add.reduceat(rows * right, starts, axis=1) - mass * confidence[starts]  # (r, G)
        cumulative = np.cumsum(mass, axis=1)
        total = cumulative[:, -1:]
        middle = (cumulative - mass / 2) * num_bins
        bins = np.floor_divide(middle, total, out=np.zeros_like(middle), where=total > 0)
        flat = np.minimum(bins, num_bins - 1).astype(np.int64) + num_bins * np.arange(len(chunk))[:, None]
        sums = np.bincount(flat.ravel(), gap.ravel(), num_bins * len(chunk)).reshape(-1, num_bins)
        return ratio(np.abs(sums).sum(1), total[:, 0])

    return over_replicates(compute, weights, len(labels))
