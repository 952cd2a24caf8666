"""How far predicted numbers are from the true ones: R2, RMSE, MAE.

Predictions and targets are (n,) or (n, D), on the user's own scale; D outputs are averaged, each counting the same,
as scikit-learn does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsin.errors import DataError, ShapeError
from opsin.metrics.inputs import FloatArray, Weights, mean_of_defined, over_replicates, ratio


def r2(predicted: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Share of the target's variance that is explained, 1 - SS_residual / SS_total; () or (R,), at most 1.

    0 is what always answering the mean gets; worse is negative. The mean is that of the (weighted) rows themselves.

    Args:
        predicted: (n,) or (n, D).
        target: same shape.
        weights: None, (n,) or (R, n).

    Returns:
        Mean over the outputs where it is defined; nan where every target is the same value.

    Raises:
        ShapeError: shapes that do not fit.
        DataError: values that are not finite numbers.
    """
    guess, true = _pairs(predicted, target)
    squares = (guess - true) ** 2  # (n, D)

    def compute(chunk: FloatArray) -> FloatArray:
        mass = chunk.sum(1)
        counted = chunk > 0
        outputs = []
        for column in true.T:
            mean = ratio(chunk @ column, mass)  # (r,)
            spread = (chunk * (column - mean[:, None]) ** 2).sum(1)
            low = np.where(counted, column, np.inf).min(1, initial=np.inf)
            high = np.where(counted, column, -np.inf).max(1, initial=-np.inf)
            outputs.append(np.where(high > low, spread, 0.0))
        return mean_of_defined(1 - ratio(chunk @ squares, np.stack(outputs, 1)))

    return over_replicates(compute, weights, len(true))


def rmse(predicted: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Root of the mean squared error, in units of the target; () or (R,), 0 is perfect.

    With D outputs the mean of the D roots. Args and Raises as `r2`.
    """
    guess, true = _pairs(predicted, target)
    squares = (guess - true) ** 2
    mean = over_replicates(lambda chunk: ratio(chunk @ squares, chunk.sum(1)[:, None]), weights, len(true))
    return np.asarray(np.sqrt(mean).mean(-1), dtype=np.float64)


def mae(predicted: npt.ArrayLike, target: npt.ArrayLike, weights: Weights = None) -> FloatArray:
    """Mean absolute error, in units of the target; () or (R,), 0 is perfect. Args and Raises as `r2`."""
    guess, true = _pairs(predicted, target)
    distance = np.abs(guess - true).mean(1)
    return over_replicates(lambda chunk: ratio(chunk @ distance, chunk.sum(1)), weights, len(true))


def _pairs(predicted: npt.ArrayLike, target: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    guess, true = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if guess.shape != true.shape or guess.ndim not in (1, 2) or (guess.ndim == 2 and not guess.shape[1]):
        raise ShapeError(f"predicted has shape {guess.shape}, target {true.shape}; expected (n,) or (n, D) for both.")
    for name, values in (("predicted", guess), ("target", true)):
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1)) if values.size else np.zeros(0)
        if bad.size:
            raise DataError(f"{name} row {bad[0]} is not a finite number ({bad.size} rows in all).")
    return guess.reshape(len(guess), -1 if guess.size else 1), true.reshape(len(true), -1 if true.size else 1)
