"""What every metric takes: arrays checked with a message, and row weights of one or of many replicates.

A bootstrap replicate is a row of weights: how often each sample was drawn. Every metric therefore takes `weights` of
shape (n,) or (R, n), and answers with shape () or (R,); a ratio that is 0/0 is nan, never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from opsin.errors import DataError, ShapeError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Weights = npt.NDArray[Any] | None

CHUNK_CELLS = 1_000_000  # weights held at once: 8 MB, near the cache of one core (measured fastest of 0.2 M to 4 M)


def over_replicates(compute: Callable[[FloatArray], FloatArray], weights: Weights, num_rows: int) -> FloatArray:
    """Applies `compute` to row weights, a bounded number of replicates at a time.

    Args:
        compute: takes weights (r, n) and returns (r, ...).
        weights: None (each row counts 1), (n,) or (R, n), integers or floats, none negative.
        num_rows: n.

    Returns:
        (...) for weights None or (n,), (R, ...) for (R, n).

    Raises:
        ShapeError: weights of another shape.
        DataError: weights that are negative, not finite or not numbers.
    """
    array = np.ones(num_rows) if weights is None else np.asarray(weights)
    if array.ndim not in (1, 2) or array.shape[-1] != num_rows or (array.ndim == 2 and not len(array)):
        raise ShapeError(
            f"weights have shape {array.shape}; expected ({num_rows},) or (R, {num_rows}), "
            f"one weight for each of the {num_rows} rows, R at least 1."
        )
    if array.dtype.kind not in "biuf":
        raise DataError(f"weights have type {array.dtype}; expected integers or floats.")
    matrix = array.reshape(-1, num_rows) if num_rows else np.zeros((1 if array.ndim == 1 else len(array), 0))
    step = max(1, CHUNK_CELLS // max(1, num_rows))
    parts = [compute(_checked(matrix[start : start + step])) for start in range(0, len(matrix), step)]
    values = np.concatenate(parts)  # (R, ...)
    return np.asarray(values[0] if array.ndim == 1 else values, dtype=np.float64)


def _checked(chunk: npt.NDArray[Any]) -> FloatArray:
    weights: FloatArray = np.ascontiguousarray(chunk, dtype=np.float64)
    if weights.size and not (weights.min() >= 0 and np.isfinite(weights.max())):
        raise DataError("weights hold a negative or non-finite value; expected finite numbers, zero or larger.")
    return weights


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Numerator / denominator with nan wherever the denominator is not positive: an undefined ratio stays undefined."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    quotient: FloatArray = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom > 0)
    return quotient


def mean_of_defined(values: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Mean over the last axis of the values that are not nan (nan when there is none).

    Args:
        values: (..., K).
        weights: (..., K), what each value counts; None counts each once.
    """
    mass = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    return ratio((np.where(np.isnan(values), 0.0, values) * mass).sum(-1), mass.sum(-1))


def check_labels(labels: npt.ArrayLike, num_classes: int, name: str = "target") -> IntArray:
    """Class indices (n,) as int64, each in [0, num_classes).

    Raises:
        ShapeError: not one-dimensional.
        DataError: not integers, or outside the range; the message names the row.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ShapeError(f"{name} has shape {array.shape}; expected (n,), one class index for each row.")
    if array.dtype.kind not in "biu" and array.size:
        raise DataError(f"{name} has type {array.dtype}; expected integer class indices.")
    outside = np.flatnonzero((array < 0) | (array >= num_classes))
    if outside.size:
        raise DataError(
            f"{name} row {outside[0]} is {array[outside[0]]}; expected a class index from 0 to {num_classes - 1}."
        )
    return array.astype(np.int64)


def check_scores(scores: npt.ArrayLike, num_rows: int | None = None, dims: int = 2) -> npt.NDArray[Any]:
    """Scores (n, K) or (n,) as floats of their own precision, free of nan.

    Raises:
        ShapeError: another shape, or another number of rows than the target.
        DataError: a nan; the message names the row.
    """
    array = np.asarray(scores)
    if array.dtype.kind != "f":
        if array.dtype.kind not in "biu":
            raise DataError(f"scores have type {array.dtype}; expected numbers.")
        array = array.astype(np.float64)
    expected = "(n,)" if dims == 1 else "(n, K)"
    if array.ndim != dims or (dims == 2 and array.shape[1] == 0):
        raise ShapeError(f"scores have shape {array.shape}; expected {expected}.")
    if num_rows is not None and len(array) != num_rows:
        raise ShapeError(f"scores have {len(array)} rows, target has {num_rows}; expected one row of each per sample.")
    bad = np.flatnonzero(np.isnan(array) if dims == 1 else np.isnan(array).any(1))
    if bad.size:
        raise DataError(f"scores row {bad[0]} is nan ({bad.size} rows in all); expected numbers. Did training diverge?")
    return array


def check_classified(scores: npt.ArrayLike, target: npt.ArrayLike) -> tuple[npt.NDArray[Any], IntArray]:
    """Scores (n, K) and target (n,) that fit together."""
    checked = check_scores(scores)
    labels = check_labels(target, checked.shape[1])
    return check_scores(checked, len(labels)), labels


def check_probabilities(scores: npt.NDArray[Any]) -> None:
    """Rows that are probabilities: in [0, 1] and adding up to 1 within 0.01.

    Raises:
        DataError: a row that is not; the message names it.
    """
    sums = scores.sum(1, dtype=np.float64)
    bad = np.flatnonzero((scores < 0).any(1) | (scores > 1).any(1) | (np.abs(sums - 1) > 0.01))
    if bad.size:
        raise DataError(
            f"scores row {bad[0]} is not a probability distribution (values from {scores[bad[0]].min():.4g} to "
            f"{scores[bad[0]].max():.4g}, sum {sums[bad[0]]:.4g}). Expected values in [0, 1] adding up to 1: "
            "apply softmax first."
        )


def check_binary(target: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Target (n,) of 0 and 1 as booleans.

    Raises:
        ShapeError: not one-dimensional.
        DataError: another value than 0 or 1; the message names the row.
    """
    array = np.asarray(target)
    if array.ndim != 1:
        raise ShapeError(f"target has shape {array.shape}; expected (n,) of 0 and 1.")
    other = np.flatnonzero((array != 0) & (array != 1))
    if other.size:
        raise DataError(f"target row {other[0]} is {array[other[0]]}; expected 0 (negative) or 1 (positive).")
    return array.astype(bool)
