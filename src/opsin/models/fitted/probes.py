"""Probes: simple classifiers on features, fitted by scikit-learn in seconds.

Features are standardized with the mean and deviation of the training rows. What a probe has to choose (strength of
regularization, number of neighbors) is chosen by cross-validation on the training rows, never on what it is judged by.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import ConfigError, UnknownName

Array = NDArray[Any]
STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C of the logistic regression, weakest fit first
FOLDS = 5
FEW_STRENGTH = 1e-2  # where there are too few rows to choose by
MANY = 5000  # rows above which one fold says enough
ABSENT = -30.0  # log-odds of a class without any training row


@dataclass(frozen=True)
class LinearHead:
    """A linear layer that was fitted: logits = features @ weight.T + bias.

    Args:
        weight: (K, D) float32.
        bias: (K,) float32.
        strength: the chosen C.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float


def fit_logistic(
    features: Array, labels: Array, num_classes: int, class_weights: Mapping[int, float] | None = None
) -> LinearHead:
    """Multinomial logistic regression with L2, as a linear layer over the raw features.

    Args:
        features: (N, D).
        labels: (N,) class numbers from 0 to K - 1; rows below 0 are left out.
        num_classes: K.
        class_weights: weight of the rows of each class.
    """
    from sklearn.linear_model import LogisticRegression

    known = labels >= 0
    if not np.isfinite(features).all():
        raise ConfigError(
            "Features of some pictures are not finite; the weights or the layer they come from are spoiled."
        )
    x, mean, std = _standardized(np.asarray(features, np.float64)[known])
    y = labels[known].astype(np.int64)
    present = np.unique(y)
    weight, bias = np.zeros((num_classes, x.shape[1])), np.full(num_classes, ABSENT)
    if len(present) < 2:
        bias[present] = 0.0
        return LinearHead(weight.astype(np.float32), bias.astype(np.float32), 0.0)
    given = None if class_weights is None else {int(k): float(class_weights[int(k)]) for k in present}

    def model(strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=500, tol=1e-5, class_weight=given)

    strength = _best_strength(model, x, y, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the last digits of an optimum are still moving
        fitted = model(strength).fit(x, y)
    if len(present) == 2:  # one row for the second class against the first
        half = fitted.coef_[0] / 2
        weight[present], bias[present] = np.stack([-half, half]), fitted.intercept_[0] / 2 * np.array([-1, 1])
    else:
        weight[present], bias[present] = fitted.coef_, fitted.intercept_
    weight /= std
    bias -= weight @ mean
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), strength)


def fit_labels(features: Array, labels: Array) -> LinearHead:
    """One logistic regression per label, for heads with any number of labels.

    Args:
        features: (N, D).
        labels: (N, K) of 0 and 1, nan or -1 where missing.
    """
    columns = [fit_logistic(features, np.where(np.isnan(c) | (c < 0), -1, c).astype(np.int64), 2) for c in labels.T]
    weight = np.stack([head.weight[1] - head.weight[0] for head in columns])
    bias = np.array([head.bias[1] - head.bias[0] for head in columns], np.float32)
    return LinearHead(weight, bias, float(np.median([head.strength for head in columns])))


def _standardized(x: Array) -> tuple[Array, Array, Array]:
    if not len(x):
        return x, np.zeros(x.shape[1]), np.ones(x.shape[1])
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-6 * max(float(std.max(initial=0.0)), 1e-12), std, np.inf)  # what never varies says nothing
    return (x - mean) / std, mean, std


def _best_strength(model: Any, x: Array, y: Array, class_weights: Mapping[int, float] | None) -> float:
    """The C with the least log loss in stratified cross-validation, without classes of a single row."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    several = np.bincount(y)[y] > 1
    x, y = x[several], y[several]
    counts = np.bincount(y, minlength=1)
    if len(counts[counts > 0]) < 2:
        return FEW_STRENGTH
    folds = min(FOLDS, int(counts[counts > 0].min()))
    weight = np.ones(len(y)) if class_weights is None else np.array([class_weights[int(k)] for k in y])
    cuts = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y))
    cuts = cuts[:1] if len(y) > MANY else cuts
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for strength in STRENGTHS:
            parts = [
                log_loss(y[test], fitted.predict_proba(x[test]), labels=fitted.classes_, sample_weight=weight[test])
                * weight[test].sum()
                for train, test in cuts
                for fitted in [model(strength).fit(x[train], y[train])]
            ]
            losses.append(sum(parts))
            if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:
                break  # the loss over C has one valley
    return STRENGTHS[int(np.argmin(losses))]


# Probes by name -----------------------------------------------------------------------------------------------------


def probe(name: str, features: Array, labels: Array, test: Array) -> tuple[NDArray[np.int64], str]:
    """Fit a probe and answer for other rows.

    Args:
        name: one of `PROBES`.
        features: (N, D).
        labels: (N,) class numbers, none missing.
        test: (M, D).

    Returns:
        Class numbers (M,), and what was chosen, in words.

    Raises:
        UnknownName: if there is no such probe.
    """
    if name not in PROBES:
        raise UnknownName("probe", name, PROBES)
    x, mean, std = _standardized(np.asarray(features, np.float64))
    model, grid = PROBES[name]()
    counts = np.bincount(labels)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if grid and folds >= 2:
            from sklearn.model_selection import GridSearchCV, StratifiedKFold

            grid = {
                k: [v for v in values if k != "n_neighbors" or v < len(x) * (folds - 1) / folds]
                for k, values in grid.items()
            }
            search = GridSearchCV(model, grid, cv=StratifiedKFold(folds, shuffle=True, random_state=0)).fit(x, labels)
            fitted, words = search.best_estimator_, ", ".join(f"{k}={v:g}" for k, v in search.best_params_.items())
        else:
            fitted, words = model.set_params(**{k: v[0] for k, v in grid.items()}).fit(x, labels), ""
        answers: NDArray[np.int64] = fitted.predict((np.asarray(test, np.float64) - mean) / std)
    return answers, words


def _logistic() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=500), {"C": list(STRENGTHS)}


def _linear_svm() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.svm import LinearSVC

    return LinearSVC(dual="auto"), {"C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]}


def _rbf_svm() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.svm import SVC

    return SVC(), {"C": [0.1, 1.0, 10.0, 100.0]}


def _nearest() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(), {"n_neighbors": [1, 3, 5, 9, 15]}


def _means() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid(), {}


def _mlp() -> tuple[Any, dict[str, list[float]]]:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((64,), solver="lbfgs", max_iter=200, random_state=0), {"alpha": [1e-1, 10.0]}


PROBES = {
    "logistic": _logistic,
    "linear-svm": _linear_svm,
    "rbf-svm": _rbf_svm,
    "nearest": _nearest,
    "class-means": _means,
    "mlp": _mlp,
}
